"""`ltg-mdlm eval harness` on local tasks of lm-eval, with small models that nobody trained."""

import json
import sys
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.lm_eval import lm_eval_installed as lm_eval_installed
from support.trained import write_run

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.tokenizer import BOS, MASK
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.inference.texts import Encoded
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
    assert (written["config"]["model"], written["config"]["score"]) == (plugin, options[1] if options else written["config"]["score"])
    assert f"{accuracy:.4f}" in out
    assert str(file) in out
