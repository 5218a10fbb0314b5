"""`ltg-mdlm eval generation` on small models: figures, files, and what it refuses."""

import contextlib
import json
import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from support.corpora import documents, small_tokenizer, write_text
from support.trained import write_run

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.synthetic.builtin import builtin_corpus
from ltg_mdlm.data.tokenizer import BOS
from ltg_mdlm.evaluation import sample_quality as likeness
from ltg_mdlm.evaluation.judge import open_judge
from ltg_mdlm.evaluation.sample_measures import token_entropy
from ltg_mdlm.evaluation.sample_quality import Mauve, reference_draws, rules_for
from ltg_mdlm.inference.trained_model import open_model
from ltg_mdlm.interchange.export_model import export_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = folder / "tokenizer.json"
    small_tokenizer().save(tokenizer)
    train, valid = write_text(folder / "train.txt", documents(40)), write_text(folder / "valid.txt", documents(30, 1))
    prepare_corpus([train], folder / "made", valid=[valid], tokenizer=tokenizer, workers=1, progress=False)
    return folder / "made"


@pytest.fixture(scope="module")
def models(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("runs")
    return {
        plugin: write_run(folder / plugin, plugin, f"data.corpus={corpus}") for plugin in ("uniform_mdlm", "gpt_bert")
    }


SMALL = ("--count", "3", "--length", "8")


def test_every_sampler_and_number_of_steps_has_a_line_and_its_samples(run, models, tmp_path):
    options = ("--sampler", "ancestral", "--sampler", "confidence", "--steps", "2", "--steps", "4")
    judge = ("--judge", str(models["gpt_bert"]))
    code, out, err = run(
        "eval", "generation", str(models["uniform_mdlm"]), *SMALL, *options, *judge, "--out", str(tmp_path)
    )
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["ancestral", "2"], ["ancestral", "4"], ["confidence", "2"], ["confidence", "4"],
    ]  # fmt: skip
    assert lines[5].startswith("real text")
    assert all(name in lines[0] for name in ("ppl/word", "entropy", "distinct-2", "rep-4", "JS"))
    assert "grammatical" not in out, "this corpus has no grammar"
    folder = tmp_path / "uniform_mdlm" / "main" / "generation"
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [(row["sampler"], row["steps"], row["sample"]) for row in rows[:4]] == [
        ("ancestral", 2, 0), ("ancestral", 2, 1), ("ancestral", 2, 2), ("ancestral", 4, 0),
    ]  # fmt: skip
    assert all(len(row["ids"]) == len(row["unmasked_at"]) == 8 for row in rows)
    assert rows[0]["text"] == small_tokenizer().decode(rows[0]["ids"])
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["model"], summary["grammar"], summary["count"]) == ("uniform_mdlm", False, 3)
    mean = sum(token_entropy(row["ids"]) for row in rows[:3]) / 3
    assert summary["results"][0]["entropy"] == pytest.approx(mean)
    assert summary["results"][0]["rule"]["steps"] == 2
    assert summary["real_text"]["tokens"] == 24
    assert summary["real_text"]["spread"]["js_distance"] > 0


def test_the_same_seed_gives_the_same_files_and_another_one_others(run, models, tmp_path):
    written = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        arguments = ("--seed", str(seed), "--out", str(tmp_path / name))
        assert run("eval", "generation", str(models["uniform_mdlm"]), *SMALL, *arguments)[0] == 0
        written.append((tmp_path / name / "uniform_mdlm" / "main" / "generation" / "samples.jsonl").read_bytes())
    assert written[0] == written[1] != written[2]


def test_a_judge_gives_the_causal_likelihood_of_the_text_and_nothing_else(models):
    trained = open_model(models["gpt_bert"])
    texts = ["the dog ran", "one, two. 1984", "a"]
    for text, score in zip(texts, open_judge(models["gpt_bert"], torch.device("cpu")).scores(texts), strict=True):
        ids = torch.tensor([[BOS, *trained.tokenizer.encode(text)]])
        causal = torch.ones(1, dtype=torch.bool)
        hidden = trained.model(ids, causal_B=causal, conditioning_B=trained.value(torch.zeros(1), True))
        log_p = trained.model.logits(trained.model.head(hidden[0, :-1])).log_softmax(-1)
        expected = sum(log_p[place, token].item() for place, token in enumerate(ids[0, 1:].tolist()))
        assert score.log_likelihood == pytest.approx(expected, rel=1e-5)
        assert score.tokens == ids.shape[1] - 1


def test_the_features_of_a_text_are_the_last_hidden_state_at_its_last_token(models):
    trained = open_model(models["gpt_bert"])
    texts = ["the dog ran", "one, two. 1984", ""]
    features = open_judge(models["gpt_bert"], torch.device("cpu")).features(texts)
    assert features.dtype == np.float32
    for text, found in zip(texts, features, strict=True):
        ids = torch.tensor([[BOS, *trained.tokenizer.encode(text)]])
        causal = torch.ones(1, dtype=torch.bool)
        hidden = trained.model(ids, causal_B=causal, conditioning_B=trained.value(torch.zeros(1), True))
        assert found == pytest.approx(hidden[0, -1].tolist(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("weights", [(), ("model.safetensors",)])
def test_a_model_of_transformers_is_known_by_its_configuration_and_needs_the_extra(tmp_path, monkeypatch, weights):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for name in weights:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"ltg-mdlm\[judge\]"):
        open_judge(tmp_path, torch.device("cpu"))


def test_an_exported_model_is_a_judge_without_transformers(models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    export_model(models["gpt_bert"], tmp_path / "exported")
    judges = [open_judge(path, torch.device("cpu")) for path in (models["gpt_bert"], tmp_path / "exported")]
    (own,), (exported,) = (judge.scores(["the dog ran"]) for judge in judges)
    assert exported.log_likelihood == pytest.approx(own.log_likelihood, rel=1e-5)


def test_a_model_of_the_built_in_corpus_is_measured_by_its_grammar(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = builtin_corpus(words=2000)
    folder = write_run(tmp_path / "tiny", "uniform_mdlm", "data.builtin_words=2000", tokenizer=made.tokenizer)
    size = ("--count", "3", "--length", "60")
    code, out, err = run("eval", "generation", str(folder), *size, "--out", str(tmp_path / "results"), "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["grammar"] is True
    assert summary["real_text"]["sentences"] > 3
    assert summary["real_text"]["grammatical_sentences"] == summary["real_text"]["grammatical_samples"] == 1
    assert not summary["results"][0]["grammatical_sentences"], "noise is no language"


@pytest.fixture
def library(monkeypatch):
    """In place of mauve: compares means, and keeps what it is given."""
    module = ModuleType("mauve")
    module.given = []

    def compute_mauve(*, p_features, q_features, seed):
        module.given.append((p_features, q_features))
        return SimpleNamespace(mauve=np.float64(closeness(p_features, q_features)))

    module.compute_mauve = compute_mauve
    monkeypatch.setitem(sys.modules, "mauve", module)
    return module


def closeness(one, other):
    return math.exp(-np.abs(one.mean(0) - other.mean(0)).sum())


def test_samples_and_other_real_texts_are_compared_with_the_same_real_texts(
    run, models, corpus, tmp_path, library, monkeypatch
):
    monkeypatch.setattr(likeness, "MIN_TEXTS", 3)
    options = ("--mauve", "--judge", str(models["gpt_bert"]), "--steps", "2", "--out", str(tmp_path))
    code, out, err = run("eval", "generation", str(models["uniform_mdlm"]), *SMALL, *options)
    assert code == 0, err
    assert "MAUVE" in out.splitlines()[0]
    folder = tmp_path / "uniform_mdlm" / "main" / "generation"
    sampled = [json.loads(line)["text"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    draws = reference_draws(Corpus.open(corpus).valid, 3, 8, 0)
    assert len(draws) == 5
    judge = open_judge(models["gpt_bert"], torch.device("cpu"))
    real, *others = [judge.features([small_tokenizer().decode(ids) for ids in draw]) for draw in draws]
    compared = [judge.features(sampled), *others]
    for (p, q), expected in zip(library.given, compared, strict=True):
        np.testing.assert_array_equal(p, real)
        np.testing.assert_array_equal(q, expected)
    summary = json.loads((folder / "summary.json").read_text())
    figures = [closeness(real, features) for features in compared]
    assert summary["results"][0]["mauve"] == pytest.approx(figures[0])
    assert summary["real_text"]["mauve"] == pytest.approx(figures[1])
    assert summary["real_text"]["spread"]["mauve"] == pytest.approx(np.std(figures[1:], ddof=1))


@pytest.mark.usefixtures("library")
def test_without_other_real_texts_that_figure_is_missing(run, models, tmp_path, monkeypatch):
    monkeypatch.setattr(likeness, "MIN_TEXTS", 3)
    options = ("--mauve", "--judge", str(models["gpt_bert"]), "--count", "20", "--length", "8", "--steps", "1")
    code, out, err = run("eval", "generation", str(models["uniform_mdlm"]), *options, "--json", "--out", str(tmp_path))
    assert code == 0, err
    summary = json.loads(out)
    assert summary["real_text"]["mauve"] is None
    assert "mauve" not in summary["real_text"]["spread"]
    assert 0 < summary["results"][0]["mauve"] < 1


@pytest.mark.usefixtures("library")
def test_few_texts_are_not_compared(run, models, tmp_path):
    options = ("--mauve", "--judge", str(models["gpt_bert"]), "--count", "99", "--out", str(tmp_path / "results"))
    code, _, err = run("eval", "generation", str(models["uniform_mdlm"]), *options)
    assert (code, "at least 100 are needed" in err) == (2, True), err
    assert not (tmp_path / "results").exists()


def test_without_the_library_the_message_names_the_extra(run, models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    options = ("--mauve", "--judge", str(models["gpt_bert"]), "--out", str(tmp_path / "results"))
    code, _, err = run("eval", "generation", str(models["uniform_mdlm"]), *options)
    assert (code, "ltg-mdlm[mauve]" in err) == (2, True), err


def test_real_texts_are_like_each_other_and_not_like_the_same_words_in_any_order(models):
    pytest.importorskip("mauve", reason="mauve-text is not installed (extra: mauve)")
    judge = open_judge(models["gpt_bert"], torch.device("cpu"))
    rng = np.random.default_rng(0)
    parts = (["the", "a"], ["dog", "cats"], ["ran", "saw", "don´t"], ["one,", "1984"], ["(quickly)", "it's", "two."])
    texts = [" ".join(map(rng.choice, parts)) for _ in range(600)]
    mauve = Mauve(judge, texts[:300])
    shuffled = [" ".join(rng.permutation(text.split())) for text in texts[300:]]
    assert mauve(texts[:300]) == pytest.approx(1)
    assert mauve(texts[300:]) > 0.8
    assert mauve(shuffled) < 0.5
    assert mauve(shuffled) == mauve(shuffled)


def test_autoregressive_sampling_has_no_steps_and_so_one_line():
    rules = rules_for(["ancestral", "autoregressive"], [2, 4], seed=0)
    assert [(rule.sampler, rule.steps) for rule in rules] == [
        ("ancestral", 2), ("ancestral", 4), ("autoregressive", None),
    ]  # fmt: skip
    assert [rule.steps for rule in rules_for(["entropy"], [], seed=0)] == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--judge", "nowhere"), "nowhere: no such folder"),
        (("--judge", "{uniform_mdlm}"), "trained on masked rows only"),
        (("--mauve",), "give one with --judge"),
        (("--sampler", "autoregressive"), "needs a model trained on causal rows"),
        (("--sampler", "magic"), "no such sampler"),
        (("--sampler", "autoregressive", "--steps", "3"), "--steps has no effect"),
        (("--corpus", "nowhere"), "not a corpus folder"),
        (("--out", "{file}/results"), "cannot be written"),
        (("--length", "5000"), "do not fit"),
        (("--temperature", "0", "--top-p", "0.9"), "has no effect"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_writes_nothing(run, models, tmp_path, options, message):
    (tmp_path / "file").write_text("")
    places = {"file": tmp_path / "file", **models}
    chosen = [option.format(**places) for option in options]
    out = () if "--out" in chosen else ("--out", str(tmp_path / "results"))
    size = ("--count", "3") if "--length" in chosen else SMALL
    code, _, err = run("eval", "generation", str(models["uniform_mdlm"]), *size, *chosen, *out)
    assert (code, message in err) == (2, True), err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_several_processes_are_refused_since_they_would_do_the_same(run, models, monkeypatch):
    several = contextlib.nullcontext(Ranks(rank=0, world_size=2, local_rank=0, device=torch.device("cpu")))
    monkeypatch.setattr(Ranks, "setup", lambda: several)
    code, _, err = run("eval", "generation", str(models["uniform_mdlm"]))
    assert (code, "start it without torchrun" in err) == (2, True), err


def test_a_corpus_that_is_gone_is_named_with_the_option_that_helps(run, tmp_path):
    folder = write_run(tmp_path / "run", "uniform_mdlm", f"data.corpus={tmp_path}/gone")
    code, _, err = run("eval", "generation", str(folder), *SMALL, "--out", str(tmp_path / "results"))
    assert code == 2
    assert "gone" in err
    assert "--corpus" in err


def test_a_corpus_of_another_tokenizer_is_refused(run, models, tmp_path):
    train, valid = (write_text(tmp_path / f"{seed}.txt", documents(20, seed)) for seed in (2, 3))
    prepare_corpus([train], tmp_path / "other", valid=[valid], vocab_size=300, workers=1, progress=False)
    arguments = ("--corpus", str(tmp_path / "other"), "--out", str(tmp_path / "results"))
    code, _, err = run("eval", "generation", str(models["uniform_mdlm"]), *SMALL, *arguments)
    assert (code, "made with another tokenizer" in err) == (2, True)


def test_a_figure_without_a_value_is_null_in_files_and_a_dash_in_the_table(run, models, tmp_path):
    arguments = ("--count", "2", "--length", "2", "--out", str(tmp_path))
    code, out, err = run("eval", "generation", str(models["uniform_mdlm"]), *arguments)
    assert (code, " - " in out) == (0, True), err
    summary = json.loads((tmp_path / "uniform_mdlm" / "main" / "generation" / "summary.json").read_text())
    assert summary["results"][0]["rep_4"] is None
    assert math.isfinite(summary["results"][0]["entropy"])
