"""`ltg-mdlm eval harness` on local tasks of lm-eval, with small models that nobody trained."""

import json
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.lm_eval import lm_eval_installed as lm_eval_installed
from support.trained import write_run

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.tokenizer import BOS, MASK
from ltg_mdlm.evaluation.result_folders import BACKENDS
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.inference.texts import Encoded, TextScore
from ltg_mdlm.inference.trained_model import open_model
from ltg_mdlm.interchange.export_model import export_model

pytestmark = [pytest.mark.usefixtures("lm_eval_installed"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PAIRS = [
    {"sentence_good": "The dogs run.", "sentence_bad": "The dogs runs.", "UID": "agreement", "field": "morphology"},
    {"sentence_good": "A cat saw it.", "sentence_bad": "A cat see it.", "UID": "agreement", "field": "morphology"},
    {"sentence_good": "Who is it?", "sentence_bad": "Is it who?", "UID": "order", "field": "syntax"},
]
STORIES = [
    {"text": "The dog", "ends": [" ran.", " cats"]},
    {"text": "One, two. ", "ends": ["cats ran", "a"]},
    {"text": "", "ends": ["The cats ran.", "A dog."]},
]
CHOICE = {"output_type": "multiple_choice", "doc_to_target": 0, "target_delimiter": ""}
ACCURACY = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
TASKS = {
    "pairs": CHOICE | {"doc_to_text": "", "doc_to_choice": "{{[sentence_good, sentence_bad]}}"},
    "stories": CHOICE | {"doc_to_text": "{{text}}", "doc_to_choice": "{{ends}}"},
    "last_word": {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": "{{ends[0]}}"},
    "written": {"output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{ends[0]}}"},
}


def write_rows(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks for --include_path; their data are beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    pairs, stories = write_rows(folder / "blimp" / "pairs.jsonl", PAIRS), write_rows(folder / "stories.jsonl", STORIES)
    for name, task in TASKS.items():
        data = {"test": str(pairs if name == "pairs" else stories)}
        common = {"task": f"local_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": data}}
        settings = common | {"test_split": "test", "metric_list": [ACCURACY]} | task
        (folder / f"{name}.yaml").write_text(json.dumps(settings))
    lost = {"task": "local_lost", "dataset_path": "json", "dataset_kwargs": {"data_files": str(folder / "no.jsonl")}}
    (folder / "lost.yaml").write_text(json.dumps(lost | {"test_split": "train"} | TASKS["stories"]))
    group = {"group": "local_group", "task": ["local_pairs", "local_stories"]}
    (folder / "group.yaml").write_text(json.dumps(group | {"aggregate_metric_list": [{"metric": "acc"}]}))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Run folders of a masked model and a hybrid, and their exports."""
    folder = tmp_path_factory.mktemp("models")
    runs = {plugin: write_run(folder / "runs" / plugin, plugin) for plugin in ("freq_mdlm", "gpt_bert")}
    for plugin, path in runs.items():
        export_model(path, folder / "exports" / plugin)
    return folder


@pytest.fixture
def evaluate(run, models, tasks, tmp_path, monkeypatch):
    """Run the command with the local tasks only, since lm-eval needs seconds to read its own."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr("lm_eval.utils.setup_logging", lambda level: None)  # keeps the standard error of one test
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip, for seconds

    def call(model, *arguments):
        place = ("--include_path", str(tasks), "--out", str(tmp_path))
        return run("eval", "harness", str(models / model), *arguments, *place)

    return call


def samples(folder, task):
    """The score of every request of a task."""
    (file,) = folder.glob(f"samples_{task}_*.jsonl")
    return [[score for score, _ in json.loads(line)["filtered_resps"]] for line in file.read_text().splitlines()]


@pytest.mark.parametrize("source", ["runs", "exports"])
@pytest.mark.parametrize(
    ("plugin", "options", "backend"),
    [
        ("freq_mdlm", (), "mlm"),
        ("freq_mdlm", ("--score", "bound", "--draws", "4"), "bound"),
        ("gpt_bert", (), "mntp"),
        ("gpt_bert", ("--score", "causal"), "causal"),
    ],
)
def test_minimal_pairs_get_the_scores_and_the_accuracy_of_eval_pairs(
    evaluate, run, models, tasks, tmp_path, source, plugin, options, backend
):
    code, out, err = evaluate(f"{source}/{plugin}", "--tasks", "local_pairs", "--log_samples", *options)
    assert code == 0, err
    data = ("--data", str(tasks / "blimp"), "--out", str(tmp_path))
    assert run("eval", "pairs", str(models / source / plugin), *data, *options)[0] == 0
    results = tmp_path / plugin / "main"
    items = [
        json.loads(line)
        for line in (results / "zero_shot" / backend / "blimp" / "blimp" / "items.jsonl").read_text().splitlines()
    ]
    for ours, theirs in zip(items, samples(results / "harness" / backend, "local_pairs"), strict=True):
        assert theirs == pytest.approx(ours["log_likelihoods"], abs=1e-6)
    accuracy = sum(item["correct"] for item in items) / len(items)
    (file,) = (results / "harness" / backend).glob("results_*.json")
    written = json.loads(file.read_text())
    assert written["results"]["local_pairs"]["acc,none"] == pytest.approx(accuracy)
    assert (written["config"]["model"], BACKENDS[written["config"]["score"]]) == (plugin, backend)
    assert f"{accuracy:.4f}" in out
    assert str(file) in out


@torch.no_grad()
def literal_score(trained, context, continuation, score):
    """The score of a continuation, token by token, as the multilingual track of BabyLM splits it from its context."""
    stripped = context.rstrip()
    before = len(trained.tokenizer.encode(stripped)) if context else 0
    ids = [BOS, *trained.tokenizer.encode(stripped + context[len(stripped) :] + continuation)]
    total = 0.0
    for place in range(1 + before, len(ids)):
        if score == "causal":
            row, value = ids[:place], 0.0
        else:
            row, value = [*ids[:place], MASK, *ids[place + 1 :]], 1 / (len(ids) - 1)
        hidden = trained.model(
            torch.tensor([row]),
            causal_B=torch.tensor([score == "causal"]),
            conditioning_B=trained.value(torch.tensor([value]), score == "causal"),
        )
        logits = trained.model.logits(trained.model.head(hidden))[0]
        total += float(logits[place if score == "pll" else place - 1].log_softmax(-1)[ids[place]])
    return total


@pytest.mark.parametrize(
    ("plugin", "score", "backend"),
    [("freq_mdlm", "pll", "mlm"), ("gpt_bert", "mntp", "mntp"), ("gpt_bert", "causal", "causal")],
)
def test_the_continuation_is_scored_after_one_bos_and_its_context(evaluate, models, tmp_path, plugin, score, backend):
    code, _, err = evaluate(f"exports/{plugin}", "--tasks", "local_stories", "--log_samples", "--score", score)
    assert code == 0, err
    trained = open_model(models / "runs" / plugin, Ranks.alone())
    expected = [[literal_score(trained, row["text"], end, score) for end in row["ends"]] for row in STORIES]
    found = samples(tmp_path / plugin / "main" / "harness" / backend, "local_stories")
    for theirs, ours in zip(found, expected, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-4)


def test_groups_options_of_lm_eval_and_json_work(evaluate):
    code, out, err = evaluate("runs/freq_mdlm", "--tasks", "local_group", "--limit", "2", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["results"]["local_group"]["sample_len"] == 4
    assert found["n-samples"]["local_pairs"] == {"original": 3, "effective": 2}


def test_a_cache_keeps_models_and_scores_apart(evaluate, tmp_path, monkeypatch):
    values = {}
    cache = ("--tasks", "local_pairs", "--log_samples", "--use_cache", str(tmp_path / "cache"))
    for score, backend in (("mntp", "mntp"), ("causal", "causal")):
        assert evaluate("runs/gpt_bert", *cache, "--score", score)[0] == 0
        values[score] = samples(tmp_path / "gpt_bert" / "main" / "harness" / backend, "local_pairs")
    assert values["mntp"] != values["causal"]

    def score_again(*_):
        raise AssertionError

    monkeypatch.setattr(LikelihoodScorer, "score_encoded", score_again)
    assert evaluate("runs/gpt_bert", *cache[:2], *cache[3:], "--score", "causal")[0] == 0


def test_tasks_are_separated_by_spaces_or_commas(evaluate):
    for names in (("local_pairs", "local_stories"), ("local_pairs,local_stories",)):
        code, out, err = evaluate("runs/freq_mdlm", "--limit", "1", "--tasks", *names, "--json")
        assert code == 0, err
        assert json.loads(out)["results"].keys() == {"local_pairs", "local_stories"}


def test_tasks_of_greedy_decoding_are_scored_by_causal_models_only(evaluate):
    code, out, err = evaluate("runs/gpt_bert", "--tasks", "local_last_word", "--score", "causal")
    assert code == 0, err
    assert "local_last_word" in out
    code, _, err = evaluate("runs/gpt_bert", "--tasks", "local_last_word", "--score", "mntp")
    assert code == 2
    assert "local_last_word: counts continuations that greedy decoding from left to right gives" in err


def test_greedy_decoding_is_recognised(models):
    trained = open_model(models / "runs" / "gpt_bert", Ranks.alone())
    ids = [BOS, *trained.tokenizer.encode("The dog")]
    start = len(ids)
    for _ in range(3):
        with torch.no_grad():
            hidden = trained.model(
                torch.tensor([ids]), causal_B=torch.tensor([True]), conditioning_B=trained.value(torch.zeros(1), True)
            )
            ids.append(int(trained.model.logits(trained.model.head(hidden))[0, -1].argmax()))
    other = [*ids[:-1], ids[-1] - 1]
    scorer = LikelihoodScorer(trained, ScoringRule(score="causal"), Ranks.alone())
    assert scorer.greedy([Encoded(tuple(ids), start), Encoded(tuple(other), start)]) == [True, False]


@given(length=st.integers(1, 400), seed=st.integers(0, 9))
def test_windows_of_a_long_text_score_every_token_once_after_the_tokens_before_it(length, seed):
    from lm_eval.api.instance import Instance

    from ltg_mdlm.evaluation.lm_eval_adapter import HarnessModel

    limit = 40
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 1000, (length,), generator=generator).tolist()
    seen = []

    class Recording(HarnessModel):
        def __init__(self):
            self._limit = limit
            self.trained = SimpleNamespace(tokenizer=SimpleNamespace(encode=lambda text: ids))
            self._score = SimpleNamespace(score_encoded=self.record)

        def record(self, groups):
            seen.extend(text for (text,) in groups)
            return [[TextScore(float(text.scored), text.scored)] for (text,) in groups]

    request = Instance("loglikelihood_rolling", {}, ("text",), 0, metadata=("task", 0, 1))
    assert Recording().loglikelihood_rolling([request]) == [length]
    done = 0
    for window in seen:
        assert len(window.ids) <= limit
        assert window.ids[0] == BOS
        context, scored = list(window.ids[1 : window.start]), list(window.ids[window.start :])
        assert scored == ids[done : done + len(scored)]
        assert context == ids[done - len(context) : done] if done else not context
        done += len(scored)
    assert done == length


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "local_written"), "local_written: generates text, but eval harness only scores given text"),
        (("--tasks", "nowhere"), "Tasks not found: nowhere\n  `lm-eval ls tasks` lists the names"),
        (("--tasks", "local_lost"), "check the YAML file of the task, and the data files that it names"),
        (("--tasks", "local_pairs", "--score", "causal"), "--score causal needs a model trained on causal rows"),
        (("--tasks", "local_pairs", "--score", "mntp"), "--score mntp does not fit this model"),
        (
            ("--tasks", "local_pairs", "--batch_size", "8"),
            "--batch_size: has no effect in eval harness; use --tokens-per",
        ),
        (("--tasks", "local_pairs", "--output_path", "x"), "--output_path: has no effect in eval harness; use --out"),
        (("--tasks", "local_pairs", "--apply_chat_template"), "these models have no chat template"),
        (("--tasks", "local_pairs", "--num_fewshots", "1"), "unrecognized arguments: --num_fewshots 1"),
        (("--tasks", "local_pairs", "--limit", "many"), "argument --limit/-L: invalid float value: 'many'"),
        (("--tasks", "local_pairs", "--samples", "{"), "--samples/-E: "),
        ((), "no tasks\n  add --tasks NAMES..."),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_message(evaluate, tmp_path, arguments, message):
    code, _, err = evaluate("runs/freq_mdlm", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("results_*.json"))


def test_a_continuation_within_a_token_of_its_context_is_refused(models):
    from lm_eval.api.instance import Instance

    from ltg_mdlm.evaluation.lm_eval_adapter import HarnessModel

    trained = open_model(models / "runs" / "freq_mdlm", Ranks.alone())
    whole = next(token for token in trained.tokenizer.tokens if token.startswith(" ") and len(token) > 3)
    model = HarnessModel(trained, ScoringRule(), Ranks.alone())
    cut = next(n for n in range(2, len(whole)) if len(trained.tokenizer.encode(whole[1:n])) == 1)
    request = Instance("loglikelihood", {}, (whole[1:cut], whole[cut:]), 0, metadata=("task", 0, 1))
    with pytest.raises(UserError, match="no token belongs to it alone"):
        model.loglikelihood([request])


def test_the_model_comes_first(run):
    code, _, err = run("eval", "harness", "--limit", "3", "runs/x", "--tasks", "y")
    assert code == 2
    assert "--limit: MODEL must be the first argument" in err


def test_without_lm_eval_the_extra_is_named(run, monkeypatch, models):
    monkeypatch.setitem(sys.modules, "lm_eval.utils", None)
    code, _, err = run("eval", "harness", str(models / "runs" / "freq_mdlm"), "--tasks", "x")
    assert code == 2
    assert 'pip install "ltg-mdlm[harness]"' in err
