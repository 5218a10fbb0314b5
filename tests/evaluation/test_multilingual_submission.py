"""`ltg-mdlm submit --track multilingual` on local tasks of lm-eval under the official names.

`accept` is written from the published description of both files, and knows nothing of the program.
"""

import json
import shutil

import pytest
import torch
from support.finetuning import write_rows
from support.lm_eval import lm_eval_installed as lm_eval_installed
from support.submissions import CHECKPOINTS, SMALL
from support.trained import write_run
from support.treebanks import write_treebanks

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.tokenizer import BOS
from ltg_mdlm.evaluation import multilingual_work
from ltg_mdlm.evaluation.multilingual_submission import FINETUNING, LANGUAGES, ZERO_SHOT, MultilingualData
from ltg_mdlm.evaluation.multilingual_work import word_surprisals
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.inference.trained_model import open_model

pytestmark = [pytest.mark.usefixtures("lm_eval_installed"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

REVISIONS = [*SMALL, *(f"chck_{i}M" for i in range(200, 1001, 100))]
PAIRS = [
    {"sentence_good": "The dogs run.", "sentence_bad": "The dogs runs."},
    {"sentence_good": "A cat saw it.", "sentence_bad": "A cat see it."},
]
TOKENIZER = """
import os
from tokenizers import Tokenizer
def process_results(doc, results):
    tokenizer = Tokenizer.from_file(os.environ["HANZI_TOKENIZER"] + "/tokenizer.json")
    assert len(tokenizer.encode(doc["sentence_good"], add_special_tokens=False).ids) > 1
    return {"acc": 0.0}
"""


def write_data(root):
    """The folder `multilingual` of the official pipeline, with a few of its tasks."""
    tasks = root / "tasks"
    tasks.mkdir(parents=True)
    pairs = write_rows(tasks / "pairs.jsonl", PAIRS)
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    task = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(pairs)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "metric_list": [metric],
    }
    for name in ("blimp_babylm_filtered_a", "blimp_babylm_filtered_b", "multiblimp_eng"):
        (tasks / f"{name}.yaml").write_text(json.dumps(task | {"task": name}))
    group = {"group": "blimp_babylm_filtered", "task": ["blimp_babylm_filtered_a", "blimp_babylm_filtered_b"]}
    mean = {"metric": "acc", "aggregation": "mean", "weight_by_size": True}
    (tasks / "_blimp.yaml").write_text(json.dumps(group | {"aggregate_metric_list": [mean]}))
    (tasks / "utils.py").write_text(TOKENIZER)
    hanzi = json.dumps(task | {"task": "hanzi_structure"})[:-1]
    (tasks / "hanzi.yaml").write_text(hanzi + ', "process_results": !function utils.process_results}')
    lost = task | {"task": "multiblimp_nld", "dataset_path": "jumelet/multiblimp", "dataset_kwargs": {}}
    (tasks / "lost.yaml").write_text(json.dumps(lost))
    meco = root / "meco" / "data"
    meco.mkdir(parents=True)
    rows = ["lang\titemid\twordnum\tFullTextMarked", "en\t1\t1\t*The*", "en\t1\t2\tThe *dog*", "en\t1\t2\tThe *dog-*"]
    (meco / "meco_l1_stims.tsv").write_text("\n".join([*rows, "du\t2\t1\t*De*", "ch_s\t3\t1\t*dog*", ""]))
    arc = root / "finetune/data/multilingual/en/arc"
    arc.mkdir(parents=True)
    for split, count in (("train", 16), ("valid", 8)):
        rows = [{"sentence": f"a {word}", "label": word} for word in ["dog", "tree"] * (count // 2)]
        write_rows(arc / f"arc_en.{split}.jsonl", rows)
    write_treebanks(root / "pos", ["en", "nl"])
    return root


def accept(submission, predictions):
    """The content of both files, for the data of `write_data`, the languages eng and nld, and eight checkpoints."""
    assert submission.keys() == {"blimp", "multiblimp_eng", "arc", "pos"}
    assert all(submission[key].keys() == {key} for key in ("blimp", "multiblimp_eng"))
    assert (submission["arc"].keys(), submission["pos"].keys()) == ({"en"}, {"en", "nl"})
    assert all(0 <= score <= 1 for scores in submission.values() for score in scores.values())
    assert predictions.keys() == {"zeroshot", "finetune", "hidden", "fast_eval_results", "fast_eval_hidden"}
    raw = predictions["zeroshot"]
    assert raw.keys() == {"blimp_babylm_filtered", *(f"blimp_babylm_filtered_{x}" for x in "ab"), "multiblimp_eng"}
    assert raw["blimp_babylm_filtered"]["acc,none"] == submission["blimp"]["blimp"]
    assert predictions["finetune"].keys() == {"arc_en", "pos_en", "pos_nl"}
    for rows in predictions["finetune"].values():
        assert [row["index"] for row in rows] == list(range(len(rows)))
        assert all(isinstance(row["prediction"], str) for row in rows)
    assert predictions["hidden"].keys() == {"meco_l1"}
    assert predictions["hidden"]["meco_l1"].keys() == {"eng", "nld"}
    assert predictions["hidden"]["meco_l1"]["eng"].keys() == {"1:1", "1:2"}
    results, hidden = predictions["fast_eval_results"], predictions["fast_eval_hidden"]
    assert [entry["revision"] for entry in hidden] == REVISIONS
    for revision, scores, entry in zip(REVISIONS, results, hidden, strict=True):
        there = revision in CHECKPOINTS
        assert scores.keys() == ({"blimp", "multiblimp_eng"} if there else set())
        assert entry["hidden"].keys() == ({"meco_l1"} if there else set())


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", words_seen=[i * 1_000_000 for i in range(1, 9)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "multilingual")


@pytest.fixture
def submit(run, small_run, data, tmp_path, monkeypatch):
    """Run the command: (exit code, stdout, stderr)."""
    monkeypatch.setattr("lm_eval.utils.setup_logging", lambda *_, **__: None)
    # Another test may have imported the module before the variable was set.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def call(*more, model=small_run, data=data):
        quick = [part for text in ("epochs=1", "batch_rows=8", "seq_len=64") for part in ("--set", text)]
        where = ("--data", str(data), "--out", str(tmp_path / "out"), "--results", str(tmp_path / "results"))
        return run("submit", str(model), "--track", "multilingual", *where, *quick, *more)

    return call


def test_both_files_are_built_although_the_command_is_interrupted(submit, tmp_path, monkeypatch):
    write, written = multilingual_work.write_folder, []

    def interrupted(folder, files):
        if len(written) == 5:
            written.append(None)
            raise KeyboardInterrupt
        written.append(folder)
        write(folder, files)

    monkeypatch.setattr(multilingual_work, "write_folder", interrupted)
    languages = ("--language", "nld", "--language", "eng")
    assert submit(*languages)[0] != 0
    code, out, err = submit(*languages)
    assert code == 0, err
    done = [folder for folder in written if folder]
    assert len(done) == len(set(done)) == (2 + 2) * (1 + len(CHECKPOINTS)), "nothing is done twice"
    submission, predictions = (
        json.loads((tmp_path / f"out/tiny_{kind}.json").read_text()) for kind in ("submission", "predictions")
    )
    accept(submission, predictions)
    lines = out.partition("missing:\n")[2].splitlines()
    assert any("multiblimp_nld of main, 8 checkpoints" in line and "jumelet/multiblimp" in line for line in lines)
    assert any("belebele of en" in line and "git clone" in line for line in lines)
    assert any("meco_l2" in line and "git clone" in line for line in lines)
    assert any("20 checkpoints from chck_9M to chck_1000M: not in the run" in line for line in lines)
    assert err.count("Couldn't reach 'jumelet/multiblimp'") == 1
    assert submit(*languages, "--collate-only")[0] == 0
    assert json.loads((tmp_path / "out/tiny_submission.json").read_text()) == submission


def test_hanzi_is_scored_with_the_models_tokenizer_and_left_to_the_leaderboard(submit, tmp_path, small_run):
    model = tmp_path / "tiny"
    shutil.copytree(small_run, model, ignore=shutil.ignore_patterns("chck_*"))
    code, _, err = submit("--language", "zho", model=model)
    assert code == 0, err
    submission, predictions = (
        json.loads((tmp_path / f"out/tiny_{kind}.json").read_text()) for kind in ("submission", "predictions")
    )
    assert "hanzi_structure" not in submission
    hanzi = predictions["hidden"]["hanzi_structure"]
    assert [key.partition(":")[0] for key in hanzi] == ["0", "1"]
    # The task counts every question as wrong, as those with unknown tokens.
    assert all(question["has_unk"] == (question["scores"][0] > question["scores"][1]) for question in hanzi.values())


def test_a_diffusion_bound_may_be_submitted(submit, tmp_path, small_run, data):
    model, few = tmp_path / "tiny", tmp_path / "few"
    shutil.copytree(small_run, model, ignore=shutil.ignore_patterns("chck_*"))
    shutil.copytree(data / "tasks", few / "tasks")
    assert submit("--language", "eng", "--score", "bound", model=model, data=few)[0] == 0
    assert (tmp_path / "results/tiny/main/harness/bound/multiblimp_eng/results.json").is_file()
    assert submit("--language", "eng", "--collate-only", model=model, data=few)[0] == 0


@torch.no_grad()
def test_the_surprisal_of_a_word_follows_the_text_before_it(tmp_path, data):
    trained = open_model(write_run(tmp_path / "hybrid", "gpt_bert"), Ranks.alone())
    scorer = LikelihoodScorer(trained, ScoringRule(score="causal"), Ranks.alone())
    found = word_surprisals(data / "meco/data/meco_l1_stims.tsv", "en", scorer)
    first, both = (trained.tokenizer.encode(text) for text in ("The", "The dog"))
    assert both[: len(first)] == first
    hidden = trained.model(
        torch.tensor([[BOS, *both]]), causal_B=torch.tensor([True]), conditioning_B=trained.value(torch.zeros(1), True)
    )
    logits_TV = trained.model.logits(trained.model.head(hidden))[0]
    nats = -logits_TV.log_softmax(-1)[range(len(both)), both]
    assert found["1:1"] == pytest.approx(float(nats[: len(first)].sum()), abs=1e-4)
    assert found["1:2"] == pytest.approx(float(nats[len(first) :].sum()), abs=1e-4)


def test_words_without_marks_name_their_line(tmp_path):
    file = tmp_path / "meco_l1_stims.tsv"
    file.write_text("lang\titemid\twordnum\tFullTextMarked\nen\t1\t1\tThe dog\n")
    with pytest.raises(UserError, match=r"stims\.tsv:2: FullTextMarked must be a text with a word between asterisks"):
        word_surprisals(file, "en", None)


def test_a_score_that_is_not_a_number_names_the_file(submit, tmp_path, data):
    folder = tmp_path / "results/tiny/main/harness/mlm/multiblimp_eng"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"multiblimp_eng": {"acc,none": "high"}}')
    code, _, err = submit("--collate-only", data=data)
    assert code == 2
    assert "multiblimp_eng/results.json: acc,none must be a number, not 'high'" in err


def test_every_language_has_the_published_tasks():
    counts = {language: len(tasks) for language, tasks in ZERO_SHOT.items()}
    assert counts == {"eng": 7, "nld": 8, "zho": 9}
    assert {language: len(FINETUNING[LANGUAGES[language]]) for language in LANGUAGES} == {"eng": 8, "nld": 8, "zho": 9}


def test_the_folder_above_is_the_same_data(data):
    assert MultilingualData(data.parent).top == MultilingualData(data).top == data
