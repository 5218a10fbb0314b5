"""Sampling from trained models: prompts, infilling, ends of texts, refused settings, and the command's output."""

from __future__ import annotations

import io
import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats
from support.corpora import small_tokenizer
from support.trained import write_run

from ltg_mdlm.cli.generate_command import order_picture, shown
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.tokenizer import BOS, EOS, MASK, NUM_SPECIAL
from ltg_mdlm.inference.canvas import continuation, draw_tokens, infilling, model_predictor, nucleus
from ltg_mdlm.inference.sampling import Sample, generate
from ltg_mdlm.inference.sampling_rule import SamplingRule, mask_rates, trained_schedule
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.inference.texts import Text
from ltg_mdlm.inference.trained_model import TrainedModel, open_model
from ltg_mdlm.interchange.export_model import export_model
from ltg_mdlm.testing.ranks import run_on_ranks

SAMPLERS = ("ancestral", "confidence", "entropy", "block", "autoregressive")
SHORT = ("model.max_position_embeddings=128",)


@pytest.fixture(scope="module")
def uniform_run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "uniform", "uniform_mdlm", *SHORT)


@pytest.fixture(scope="module")
def uniform(uniform_run) -> TrainedModel:
    return open_model(uniform_run, Ranks.alone())


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory) -> TrainedModel:
    return open_model(write_run(tmp_path_factory.mktemp("runs") / "hybrid", "gpt_bert", *SHORT), Ranks.alone())


@pytest.fixture
def ending(tmp_path) -> TrainedModel:
    run = write_run(tmp_path / "ending", "gpt_bert", "data.end_of_document=true", *SHORT)
    return open_model(run, Ranks.alone())


def test_every_sampler_draws_the_requested_number_of_ordinary_tokens(hybrid):
    for sampler in SAMPLERS:
        samples = generate(hybrid, SamplingRule(sampler=sampler), length=9, count=2)
        for sample in samples:
            assert len(sample.ids) == len(sample.unmasked_at) == 9
            assert min(sample.ids) >= NUM_SPECIAL
            assert sorted(sample.unmasked_at) == list(range(9))
            assert sample.text == hybrid.tokenizer.decode(sample.ids)
            assert (sample.passes, sample.ended) == (9, False)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_is_the_same_whatever_it_is_drawn_together_with(hybrid, sampler):
    exact = replace(hybrid, model=deepcopy(hybrid.model).double())  # so that rounding does not decide
    rule = SamplingRule(sampler=sampler, seed=3)
    together = generate(exact, rule, prompt="the dog", length=7, count=5)
    assert generate(exact, rule, prompt="the dog", length=7, count=5, tokens_per_batch=1) == together
    assert generate(exact, rule, prompt="the dog", length=7, count=3, tokens_per_batch=30) == together[:3]
    assert len({sample.ids for sample in together}) == 5
    assert generate(exact, replace(rule, seed=4), prompt="the dog", length=7)[0] != together[0]


def samples_on_rank(ranks: Ranks, run: Path) -> list[Sample]:
    trained = open_model(run, ranks)
    trained.model.double()  # so that rounding does not decide
    return generate(trained, SamplingRule(seed=2), prompt="the dog", length=5, count=5, ranks=ranks)


def test_two_ranks_get_the_samples_of_one(uniform_run):
    alone = samples_on_rank(Ranks.alone(), uniform_run)
    assert run_on_ranks(samples_on_rank, 2, uniform_run) == [alone, alone]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [{"sampler": name} for name in SAMPLERS] + [{"steps": 4, "eta_cap": 0.2}], ids=str)
def test_a_gpu_draws_what_the_cpu_draws(hybrid, settings):
    cuda, cpu = (replace(hybrid, model=deepcopy(hybrid.model).double().to(device)) for device in ("cuda", "cpu"))
    rule = SamplingRule(**settings)
    assert generate(cuda, rule, length=7, count=3) == generate(cpu, rule, length=7, count=3)


def test_a_prompt_is_kept(hybrid):
    given = tuple(hybrid.tokenizer.encode("the naïve dog"))
    for sampler in SAMPLERS:
        (sample,) = generate(hybrid, SamplingRule(sampler=sampler), prompt="the naïve dog", length=4)
        assert sample.ids[: len(given)] == given
        assert [place == -1 for place in sample.unmasked_at] == [True] * len(given) + [False] * 4


def test_the_default_length_is_cut_to_the_positions_of_the_model(uniform):
    assert len(generate(uniform, SamplingRule(steps=1))[0].ids) == 64
    prompt = "," * 90
    assert 128 - 64 < len(uniform.tokenizer.encode(prompt)) < 127
    assert len(generate(uniform, SamplingRule(steps=1), prompt=prompt)[0].ids) == 127


def test_gaps_stand_between_the_tokens_of_the_text():
    tokenizer = small_tokenizer()
    the, saw = tokenizer.encode("the"), tokenizer.encode("saw")
    full_stop = tokenizer.encode("dog.")[len(tokenizer.encode("dog")) :]
    assert infilling(tokenizer, "the <mask> <mask> saw").ids == (BOS, *the, MASK, MASK, *saw)
    assert infilling(tokenizer, "the <mask><mask> saw").ids == (BOS, *the, MASK, MASK, *saw)
    assert infilling(tokenizer, "<mask> saw the <mask>.").ids == (BOS, MASK, *saw, *the, MASK, *full_stop)
    assert infilling(tokenizer, "1984<mask>").ids == (BOS, *tokenizer.encode("1984"), MASK)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_that_was_trained_on_ends_ends_its_texts(ending, sampler):
    ending.model.output_bias_V[EOS] = 4
    samples = generate(ending, SamplingRule(sampler=sampler), prompt="the", length=30, count=8)
    assert any(sample.ended for sample in samples)
    for sample in samples:
        assert min(sample.ids) >= NUM_SPECIAL
        assert sample.ended == (len(sample.ids) < 30 + len(ending.tokenizer.encode("the")))
        assert sample.passes < 30
    ending.model.output_bias_V[EOS] = -100
    assert not generate(ending, SamplingRule(sampler=sampler), length=5)[0].ended


def test_a_text_does_not_end_before_given_words(ending):
    ending.model.output_bias_V[EOS] = 100
    (sample,) = generate(ending, SamplingRule(), infill="<mask> dog <mask> saw <mask> <mask>")
    assert sample.ended
    assert sample.text.endswith("saw")
    assert sample.unmasked_at.count(-1) == len(sample.ids) - 2


def test_other_models_never_draw_the_end(uniform):
    eager = replace(uniform, model=deepcopy(uniform.model))
    eager.model.output_bias_V[EOS] += 100
    assert len(generate(eager, SamplingRule(), length=6)[0].ids) == 6


@pytest.mark.parametrize(("kind", "score"), [("uniform", "pll"), ("hybrid", "mntp"), ("hybrid", "causal")])
def test_tokens_are_drawn_from_what_the_scores_of_evaluation_are_made_of(kind, score, request):
    """Positions of logits, conditioning and causal rows are as in `ltg_mdlm.inference.scoring`."""
    trained = request.getfixturevalue(kind)
    text = Text("the dog ran", ",")
    ids = torch.tensor([[BOS, *trained.tokenizer.encode("".join(text))]])
    column = len(trained.tokenizer.encode(text.prefix)) + 1
    [[expected]] = LikelihoodScorer(trained, ScoringRule(score=score), Ranks.alone())([[text]])
    label = ids[0, column].item()
    if score == "causal":
        ids = ids[:, :column]
    else:
        ids[0, column] = MASK
    assert expected.tokens == 1
    rate_B = torch.tensor([1 / (ids.shape[1] - 1)], dtype=torch.float64)
    readout = model_predictor(trained, causal=score == "causal")(ids, None, rate_B)
    log_p_V = readout(torch.tensor([0]), torch.tensor([column])).log_softmax(1)[0]
    assert float(log_p_V[label]) == pytest.approx(expected.log_likelihood, abs=1e-5)


def in_blocks(trained: TrainedModel, block_length: int) -> TrainedModel:
    """The model as if it had been trained in blocks; exact, so that rounding does not decide."""
    return replace(trained, model=deepcopy(trained.model).double(), block_length=block_length)


@pytest.mark.parametrize("sampler", ["ancestral", "confidence", "entropy", "block"])
def test_a_model_with_blocks_draws_a_text_as_it_draws_its_beginning(sampler, uniform):
    """Later blocks have no influence, and a text may be continued where it ended."""
    trained, rule = in_blocks(uniform, 4), SamplingRule(sampler=sampler)
    long, short = (generate(trained, rule, length=length, count=3) for length in (11, 7))
    assert [sample.ids[:7] for sample in long] == [sample.ids for sample in short]
    blocks = [(column + 1) // 4 for column in range(11)]
    for sample in long:
        order = [block for _, block in sorted(zip(sample.unmasked_at, blocks, strict=True))]
        assert order == sorted(order)


def test_the_predictions_of_a_model_with_blocks_do_not_depend_on_later_blocks(uniform):
    trained = in_blocks(uniform, 4)
    ids_BT = torch.tensor([[BOS, *range(NUM_SPECIAL, NUM_SPECIAL + 9)]])
    changed_BT = ids_BT.clone()
    changed_BT[:, 8:] = MASK
    row_N, column_N = torch.zeros(8, dtype=torch.int64), torch.arange(8)
    predict, rate_B = model_predictor(trained, causal=False), torch.ones(1, dtype=torch.float64)
    document_BT = torch.tensor([[0] * 8 + [-1] * 2])
    logits = predict(ids_BT, None, rate_B)(row_N, column_N)
    assert torch.equal(logits, predict(changed_BT, None, rate_B)(row_N, column_N))
    assert torch.equal(logits, predict(ids_BT, document_BT, rate_B)(row_N, column_N))
    changed_BT[:, 7] = MASK
    assert not torch.equal(logits[4:], predict(changed_BT, None, rate_B)(row_N, column_N)[4:])


def test_texts_of_a_model_with_blocks_end_in_any_block(ending):
    trained = in_blocks(ending, 3)
    trained.model.output_bias_V[EOS] = 4
    samples = generate(trained, SamplingRule(), prompt="the", length=30, count=8)
    assert any(sample.ended for sample in samples)
    assert all(min(sample.ids) >= NUM_SPECIAL for sample in samples)


@pytest.mark.parametrize(
    ("rule", "wanted", "message"),
    [
        ({}, {"infill": "the <mask> saw the dog and ran"}, "blocks of 3 tokens from left to right"),
        ({"sampler": "block", "block_length": 5}, {}, "--block-length 5: uniform was trained in blocks of 3 tokens"),
        ({"steps": 2}, {"length": 9}, "--steps 2: there are 4 blocks of 3 tokens"),
    ],
)
def test_a_rule_that_does_not_fit_the_blocks_of_a_model_is_refused(rule, wanted, message, uniform):
    with pytest.raises(UserError, match=message):
        generate(in_blocks(uniform, 3), SamplingRule(**rule), **wanted)


def test_an_exported_folder_generates_what_its_run_does(uniform_run, uniform, tmp_path):
    [folder] = export_model(uniform_run, tmp_path / "out")
    rule = SamplingRule(steps=4, schedule="trained")
    assert generate(open_model(str(folder), Ranks.alone()), rule, length=6) == generate(uniform, rule, length=6)


def test_the_trained_schedule_is_that_of_the_plugin(uniform):
    t = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    expected = [0.0, *(1 - torch.cos(torch.pi / 2 * t)).tolist(), 1.0]  # the laptop configuration's cosine
    assert mask_rates(trained_schedule(uniform), 4).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_three_lines_of_the_documentation_run(uniform_run, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/generation.md").read_text("utf-8")
    (code,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) == 3
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(uniform_run)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, list[Sample]] = {}
    exec(code, namespace)
    assert [sample.passes for sample in namespace["samples"]] == [8] * 4


def test_temperature_zero_takes_the_likeliest_token(uniform):
    rule = SamplingRule(sampler="confidence", temperature=0, seed=1)
    assert generate(uniform, rule, length=8) == generate(uniform, replace(rule, seed=2), length=8)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7)])
def test_tokens_are_drawn_with_their_probabilities(temperature, top_p):
    logits = [0.3, 2.0, -1.0, 1.2, -0.4]
    p = [2.718281828 ** (logit / temperature) for logit in logits]
    ranked = sorted(range(5), key=lambda v: -p[v])
    share = [p[v] / sum(p) for v in ranked]
    kept = [v for place, v in enumerate(ranked) if sum(share[:place]) < top_p]
    law = [p[v] / sum(p[k] for k in kept) if v in kept else 0.0 for v in range(5)]
    rule = SamplingRule(temperature=temperature, top_p=top_p)
    drawn_N = draw_tokens(torch.tensor([logits]).repeat(8000, 1), rule, 0, torch.arange(8000))
    counts = drawn_N.bincount(minlength=5).tolist()
    assert [counts[v] for v in range(5) if v not in kept] == [0] * (5 - len(kept))
    assert stats.chisquare([counts[v] for v in kept], [8000 * law[v] for v in kept]).pvalue > 1e-3


def test_the_nucleus_is_the_smallest_set_of_likeliest_types():
    logits_NV = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    assert nucleus(logits_NV, 0.65).tolist() == [[False, True, False, True]]
    assert nucleus(logits_NV, 0.71).tolist() == [[False, True, True, True]]
    assert nucleus(logits_NV, 1e-9).tolist() == [[False, True, False, False]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "--temperature -1.0"),
        ({"temperature": float("inf")}, "--temperature inf"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"top_p": 0.0}, "--top-p 0.0"),
        ({"top_p": 1.5}, "--top-p 1.5"),
        ({"steps": 0}, "--steps 0"),
        ({"sampler": "block", "block_length": 0}, "--block-length 0"),
        ({"steps": 4, "eta_cap": 0.0}, "--eta-cap 0.0"),
        ({"steps": 4, "eta_rescale": 1.1}, "--eta-rescale 1.1"),
        ({"temperature": 0.0, "top_p": 0.5}, "--top-p has no effect"),
        ({"sampler": "autoregressive", "steps": 3}, "--steps has no effect"),
        ({"schedule": "trained"}, "goes with --steps"),
        ({"sampler": "confidence", "block_length": 3}, "--block-length goes with --sampler block only"),
        ({"steps": 4, "eta_cap": 0.1, "eta_rescale": 0.1}, "give one of them"),
        ({"eta_cap": 0.1}, "give --steps"),
        ({"sampler": "entropy", "steps": 4, "eta_cap": 0.1}, "between the steps of --sampler ancestral"),
    ],
    ids=str,
)
def test_a_rule_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        SamplingRule(**settings)


@pytest.mark.parametrize(
    ("kind", "settings", "wanted", "message"),
    [
        (
            "uniform",
            {"sampler": "autoregressive"},
            {},
            "causal rows; uniform was trained only on masked rows",
        ),
        ("causal", {"sampler": "ancestral"}, {}, "needs a model trained on masked rows"),
        ("hybrid", {"sampler": "autoregressive"}, {"infill": "<mask> dog"}, "cannot fill gaps before given words"),
        ("hybrid", {"steps": 2, "schedule": "trained"}, {}, "lie between 0.15 and 0.15"),
        ("unknown", {"steps": 2, "schedule": "trained"}, {}, "does not say how it was trained"),
        ("uniform", {}, {"length": 128}, "128 tokens to draw and 1 given tokens .* draw at most 127 tokens"),
        ("uniform", {}, {"prompt": "dog " * 300}, "do not fit into the 128 positions of uniform"),
        ("uniform", {}, {"infill": "dog " * 300 + "<mask>"}, "do not fit"),
        ("uniform", {}, {"length": 0}, "--length 0"),
        ("uniform", {}, {"prompt": ""}, "--prompt: there is no text"),
        ("uniform", {}, {"prompt": "a <mask>"}, "is filled in --infill only"),
        ("uniform", {}, {"infill": "the dog"}, "there is no <mask> in it"),
        ("uniform", {}, {"prompt": "a \udcff"}, "some bytes are not valid"),
        ("uniform", {}, {"infill": "\udcff <mask>"}, "some bytes are not valid"),
        ("uniform", {}, {"infill": "a <mask>", "prompt": "a"}, "leave --prompt and --length out"),
        ("uniform", {}, {"infill": "a <mask>", "length": 3}, "leave --prompt and --length out"),
        ("uniform", {}, {"count": 0}, "--count 0"),
        ("uniform", {}, {"count": 2**16 + 1}, "use other seeds"),
        ("uniform", {"sampler": "entropy", "temperature": 0.0}, {"count": 2}, "all samples are the same"),
        (
            "uniform",
            {"sampler": "block", "steps": 3, "block_length": 2},
            {"length": 8},
            "there are 4 blocks of 2 tokens",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused(kind, settings, wanted, message, uniform, hybrid):
    models = {
        "uniform": uniform,
        "hybrid": hybrid,
        "causal": replace(hybrid, modes=frozenset({"causal"})),
        "unknown": replace(uniform, about={}),
    }
    with pytest.raises(UserError, match=f"(?s){message}"):
        generate(models[kind], SamplingRule(**settings), **wanted)


def test_given_words_are_dim_and_the_order_is_drawn():
    tokenizer = small_tokenizer()
    ids = tokenizer.encode("a, (")
    sample = Sample(text="a, (", ids=tuple(ids), unmasked_at=(-1, -1, 1, 0), ended=False, passes=2)
    text = shown(sample, tokenizer)
    assert text.plain == "a, ("
    assert [text.plain[span.start : span.end] for span in text.spans if span.style == "dim"] == ["a"]
    lines = [line.split() for line in order_picture(sample, tokenizer).plain.splitlines()]
    assert [line[:2] for line in lines] == [["·", "given"], ["a", "given"], [",", "1"], ["·(", "0"]]
    assert len(lines[2][2]) > len(lines[3][2])


def test_the_terminal_shows_the_text_that_programs_get():
    """The stack's tokenizer adds a space after a newline, and removes it again when it decodes."""
    tokenizer = small_tokenizer()
    ids = tokenizer.encode("the dog\nran")
    places = (-1,) * (len(ids) - 1) + (0,)
    sample = Sample(text=tokenizer.decode(ids), ids=tuple(ids), unmasked_at=places, ended=False, passes=1)
    assert shown(sample, tokenizer).plain == sample.text == "the dog\nran"


@pytest.mark.parametrize("prompt", ["the dog ", "the dog\n"])
def test_a_blank_at_the_end_of_a_prompt_belongs_to_the_first_drawn_token(prompt):
    tokenizer = small_tokenizer()
    template, stripped = continuation(tokenizer, prompt, 2), tokenizer.encode(prompt.rstrip(" "))
    expected = stripped[:-1] if prompt.endswith("\n") else stripped
    assert template.ids == (BOS, *expected, MASK, MASK)
    assert tokenizer.decode(template.ids[1:-2]) == prompt.rstrip(" ")


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_no_temperature_draws_what_is_forbidden(temperature, top_p):
    logits_NV = torch.tensor([[-torch.inf, -torch.inf, 3.0, 2.0, -1.0]]).repeat(50, 1)
    drawn_N = draw_tokens(logits_NV, SamplingRule(temperature=temperature, top_p=top_p), 0, torch.arange(50))
    assert (drawn_N == 2).all() if temperature < 1 else set(drawn_N.tolist()) <= {2, 3, 4}


def test_the_command_prints_texts_and_their_order(run, uniform_run):
    code, out, _ = run("generate", str(uniform_run), "--prompt", "the dog", "--length", "3", "--show-order")
    assert code == 0
    assert out.startswith("the dog")
    assert out.count("given") == len(small_tokenizer().encode("the dog"))


def test_the_command_prints_a_json_object_per_sample(run, uniform_run):
    code, out, _ = run(
        "generate", str(uniform_run), "--infill", "the <mask> <mask> ran", "--steps", "2", "--count", "3", "--json"
    )
    records = [json.loads(line) for line in out.splitlines()]
    assert (code, len(records)) == (0, 3)
    for number, record in enumerate(records):
        assert (record["model"], record["sample"]) == ("uniform", number)
        assert len(record["ids"]) == len(record["tokens"]) == len(record["unmasked_at"])
        assert record["forward_passes"] in (1, 2)
        assert record["rule"]["steps"] == 2
        assert record["text"].startswith("the")


def test_characters_that_the_terminal_lacks_are_question_marks(run, uniform_run, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1", write_through=True))
    code, _, err = run("generate", str(uniform_run), "--prompt", "the 日本", "--length", "2", "--show-order")
    assert code == 0, err
    assert written.getvalue().startswith(b"the ??")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "--show-order"], "leave --show-order out"),
        (["--sampler", "autoregressive"], "use --sampler ancestral"),
        (["--length", "500"], "shorten the text"),
    ],
)
def test_the_command_refuses_in_one_message(run, uniform_run, arguments, message):
    code, out, err = run("generate", str(uniform_run), *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
