"""`ltg-mdlm finetune`: which tasks are run, what is written, what is not repeated, and how ranks share the work."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.finetuning import trained_model, write_rows, write_task
from support.trained import write_run

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation import finetune_suite as finetune_suite_module
from ltg_mdlm.evaluation.finetune_suite import finetune_suite, finetuning_table, share
from ltg_mdlm.evaluation.finetune_tasks import FinetuneSettings
from ltg_mdlm.evaluation.finetune_training import finetune_once
from ltg_mdlm.testing.ranks import run_on_ranks

QUICK = ("epochs=2", "lr=1e-3", "batch_rows=8", "seq_len=64", "precision=fp32")


@pytest.fixture
def suite(tmp_path):
    """Fine-tunes a small model on the tasks of a folder: (summaries, what was said)."""

    def run(data: Path, **options):
        said: list[str] = []
        arguments = {"sets": QUICK, "out": tmp_path / "results"} | options
        return finetune_suite(trained_model(), data, Ranks.alone(), say=said.append, **arguments), said

    return run


def json_lines(file: Path):
    return [json.loads(line) for line in file.read_text().splitlines()]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_official_file_our_items_and_the_summary_agree(suite, tmp_path):
    data = write_task(tmp_path / "data", "rte", valid=12)
    ((summary,), _) = suite(data, seeds=[42, 7, 42])
    folder = tmp_path / "results" / "tiny" / "main" / "finetune" / "rte"
    files = ["items.jsonl", "predictions.json", "results.txt", "summary.json"]
    assert sorted(path.name for path in folder.iterdir()) == files
    results = dict(line.split(": ") for line in (folder / "results.txt").read_text().split("\n"))
    assert {name: float(value) for name, value in results.items()} == summary["runs"][0]["metrics"]
    official = json.loads((folder / "predictions.json").read_text())
    rows = official["rte"]["predictions"]
    assert [row["id"] for row in rows] == [f"rte_{i}" for i in range(12)]
    assert all(type(row["pred"]) is int for row in rows)
    items, labels = json_lines(folder / "items.jsonl"), [row["label"] for row in json_lines(data / "rte.valid.jsonl")]
    assert [item["label"] for item in items] == labels
    assert [item["predictions"][0] for item in items] == [row["pred"] for row in rows]
    right_by_seed = np.array([[p == item["label"] for p in item["predictions"]] for item in items]).mean(0)
    assert [run["metrics"]["accuracy"] for run in summary["runs"]] == pytest.approx(right_by_seed.tolist())
    assert np.mean([item["correct"] for item in items]) == pytest.approx(summary["mean"]["accuracy"])
    assert summary["seeds"] == [42, 7]
    assert summary["spread"]["accuracy"] == pytest.approx(np.std(right_by_seed, ddof=1))
    assert summary["majority_accuracy"] == max(np.mean(labels), 1 - np.mean(labels))
    assert summary == json.loads((folder / "summary.json").read_text())


def test_the_summary_says_what_was_asked_for_and_counts(suite, tmp_path):
    data = write_task(tmp_path / "data", "mrpc", train=20, valid=9)
    write_rows(data / "mrpc.valid.jsonl", [{"sentence1": "a dog", "sentence2": "the " * 200, "label": 1}] * 3)
    ((summary,), _) = suite(data)
    assert (summary["task"], summary["model"], summary["revision"], summary["step"]) == ("mrpc", "tiny", "main", 12)
    assert (summary["metric"], summary["selected_by"], summary["data"]) == ("f1", "f1", "data")
    assert summary["seeds"] == [42]
    assert summary["settings"]["epochs"] == 2
    assert summary["settings"].keys() == FinetuneSettings.model_fields.keys()
    assert summary["train"]["rows"] == 20
    assert summary["valid"] == {"rows": 3, "labels": {"1": 3}, "truncated": 3}
    (run,) = summary["runs"]
    assert [epoch["epoch"] for epoch in run["epochs"]] == [1, 2]
    assert run["metrics"] == {key: run["epochs"][run["best_epoch"] - 1][key] for key in ("accuracy", "f1", "mcc")}


def test_a_finished_task_is_not_done_again_unless_asked_for(suite, tmp_path):
    data = write_task(tmp_path / "data")
    first, _ = suite(data, sets=[*QUICK, "epochs=1"])
    before = everything(tmp_path / "results")
    again, said = suite(data, sets=[*QUICK, "epochs=1"])
    assert again == first
    assert said == [
        f"rte: already finished, in {tmp_path}/results/tiny/main/finetune/rte (--overwrite repeats it)",
    ]
    assert everything(tmp_path / "results") == before
    replaced, said = suite(data, overwrite=True)
    assert replaced[0]["settings"]["epochs"] == 2
    assert said == [f"rte: {tmp_path}/results/tiny/main/finetune/rte"]
    assert [path.name for path in (tmp_path / "results/tiny/main/finetune").iterdir()] == ["rte"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sets": [*QUICK, "epochs=1", "clip=1"]}, "holds a result with other settings.clip, settings.epochs;"),
        ({"seeds": [1]}, "holds a result with other seeds;"),
    ],
)
def test_a_result_of_other_settings_is_neither_shown_nor_replaced(suite, tmp_path, change, complaint):
    data = write_task(tmp_path / "data")
    suite(data)
    before = everything(tmp_path / "results")
    with pytest.raises(UserError, match=complaint):
        suite(data, **change)
    write_task(data, train=41)
    with pytest.raises(UserError, match=r"holds a result with other sha256\.train;"):
        suite(data)
    assert everything(tmp_path / "results") == before


def test_nothing_is_written_when_one_of_the_files_is_bad(suite, tmp_path):
    data = write_task(write_task(tmp_path / "data", "rte"), "mrpc")
    with (data / "mrpc.valid.jsonl").open("a") as file:
        file.write('{"sentence1": "a"}\n')
    with pytest.raises(UserError, match=r"mrpc.valid.jsonl:13: label must be 0 or 1"):
        suite(data)
    assert not (tmp_path / "results").exists()


def test_an_interrupted_task_leaves_no_folder_and_finished_ones_stay(suite, tmp_path):
    data = write_task(write_task(tmp_path / "data", "rte"), "mrpc", train=80)
    with pytest.raises(UserError, match=r"mrpc, seed 42: .* not finite"):
        suite(data, tasks=["mrpc"], sets=[*QUICK, "lr=1e30", "warmup=0"])
    assert not (tmp_path / "results").exists()
    suite(data, tasks=["rte"])
    assert [path.name for path in (tmp_path / "results/tiny/main/finetune").iterdir()] == ["rte"]


def test_a_folder_that_is_no_result_is_left_alone(suite, tmp_path):
    folder = tmp_path / "results/tiny/main/finetune/rte"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="rte: not a result of fine-tuning"):
            suite(write_task(tmp_path / "data"), overwrite=overwrite)
    assert (folder / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_damaged_summary_is_no_result(suite, tmp_path, content):
    folder = tmp_path / "results/tiny/main/finetune/rte"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "summary.json").write_text(content)
    with pytest.raises(UserError, match="rte: not a result of fine-tuning"):
        suite(write_task(tmp_path / "data"))


def test_a_place_that_cannot_be_written_to_is_found_before_training(suite, tmp_path, monkeypatch):
    (tmp_path / "results").write_text("a file")
    monkeypatch.setattr("ltg_mdlm.evaluation.finetune_suite.finetune_once", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(UserError, match=r"rte: cannot be written: .*results is not a folder"):
        suite(write_task(tmp_path / "data"))


def test_rows_longer_than_the_model_takes_are_refused_with_the_setting_that_helps(suite, tmp_path):
    with pytest.raises(UserError, match=r"the model takes at most 512 tokens.*\n?.*--set seq_len=512"):
        suite(write_task(tmp_path / "data"), sets=["seq_len=1024"])


def test_the_table_has_a_line_per_task_and_the_mean_score(suite, tmp_path):
    data = write_task(write_task(tmp_path / "data", "rte"), "mnli", labels=3)
    summaries, _ = suite(data, seeds=[0, 1], sets=[*QUICK, "epochs=1"])
    table = finetuning_table(summaries)
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["task"] == ["mnli", "rte", "mean"]
    assert cells["F1"][0] == "-"
    assert "±" in cells["accuracy"][0]
    means = [summary["mean"]["accuracy"] for summary in summaries]
    assert cells["score"][2] == f"{50 * sum(means):.1f}"


@dataclass(frozen=True)
class Load:
    """A job of so many tokens."""

    tokens: int


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_share_all_jobs_evenly_by_tokens(world_size):
    jobs = [Load(tokens) for tokens in (9, 1, 5, 4, 3)]
    shares = [share(jobs, Ranks(rank, world_size, 0, Ranks.alone().device)) for rank in range(world_size)]
    assert sorted(job.tokens for mine in shares for job in mine) == [1, 3, 4, 5, 9]
    assert all(mine == sorted(mine, key=lambda job: job.tokens) for mine in shares)
    most = {1: 22, 2: 12, 3: 9, 8: 9}
    assert max(sum(job.tokens for job in mine) for mine in shares) == most[world_size]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A run folder."""
    return write_run(tmp_path_factory.mktemp("runs") / "mine")


def test_the_command_trains_prints_a_table_and_later_says_that_it_is_done(run, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write_task(tmp_path / "data", train=16)
    sets = [part for text in ("epochs=1", "batch_rows=8") for part in ("--set", text)]
    code, out, err = run("finetune", str(tiny_run), "--data", str(data), *sets)
    assert code == 0, err
    assert out.splitlines()[0].split() == [
        "task",
        "rows",
        "seeds",
        "epoch",
        "score",
        "accuracy",
        "F1",
        "MCC",
        "majority",
        "truncated",
    ]
    assert out.splitlines()[1].startswith("rte")
    code, out, err = run("finetune", str(tiny_run), "--data", str(data), *sets, "--json")
    assert code == 0
    assert "rte: already finished, in results/mine/main/finetune/rte" in err
    assert [summary["task"] for summary in json.loads(out)] == ["rte"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "data", "--task", "rta"), "did you mean 'rte'"),
        (("--data", "data", "--set", "learning_rate=1"), "settings of finetune: lr, batch_rows"),
        (("--data", "nowhere"), "nowhere: no such file"),
        (("--data", "data", "--task", "wsc"), "wsc.train.jsonl"),
    ],
)
def test_mistakes_of_the_command_end_with_code_2_and_one_message(
    run, tiny_run, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    write_task(Path("data"))
    code, _, err = run("finetune", str(tiny_run), *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert [path.name for path in Path().iterdir()] == ["data"]


def test_the_help_names_every_setting(run):
    _, out, _ = run("finetune", "--help")
    words = " ".join(out.replace("│", " ").split())
    assert ", ".join(FinetuneSettings.model_fields) in words


def suite_on_rank(ranks: Ranks, data: Path, out: Path):
    said: list[str] = []
    summaries = finetune_suite(trained_model(), data, ranks, sets=QUICK, out=out, say=said.append)
    return [(s["task"], s["mean"]) for s in summaries], said


def test_two_ranks_get_the_results_of_one(tmp_path):
    data = write_task(write_task(tmp_path / "data", "rte"), "mrpc", train=48)
    (alone, _) = suite_on_rank(Ranks.alone(), data, tmp_path / "alone")
    (first, said), (second, also_said) = run_on_ranks(suite_on_rank, 2, data, tmp_path / "together")
    assert first == second == alone
    assert sorted(text[:4] for text in said + also_said) == ["mrpc", "rte:"]
    kept = ("predictions.json", "items.jsonl")
    alone_files, together = everything(tmp_path / "alone"), everything(tmp_path / "together")
    assert alone_files.keys() == together.keys()
    assert all(together[name] == content for name, content in alone_files.items() if name.endswith(kept))


def failing_on_rank(ranks: Ranks, data: Path, out: Path) -> str:
    """The error, if the task mrpc fails."""

    def once(trained, data, settings, seed, **options):
        if data.task.name == "mrpc":
            raise UserError("mrpc: a loss that is not finite")
        return finetune_once(trained, data, settings, seed, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finetune_suite_module, "finetune_once", once)
        with pytest.raises(UserError) as error:
            finetune_suite(trained_model(), data, ranks, sets=QUICK, out=out)
    return str(error.value)


def test_a_task_that_fails_on_one_rank_is_an_error_on_all_and_stops_no_other(tmp_path):
    data = write_task(write_task(tmp_path / "data", "rte"), "mrpc", train=48)
    errors = run_on_ranks(failing_on_rank, 2, data, tmp_path / "results")
    assert errors == ["mrpc: a loss that is not finite"] * 2
    assert (tmp_path / "results/tiny/main/finetune/rte/summary.json").is_file()


def test_a_result_of_other_weights_is_not_taken(suite, tmp_path):
    data = write_task(tmp_path / "data", "rte")
    suite(data)
    assert "already finished" in suite(data)[1][0]
    (summary,) = (tmp_path / "results").rglob("summary.json")
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"weights_sha256": "0" * 64}))
    with pytest.raises(UserError, match="holds a result with other weights_sha256"):
        suite(data)


def test_a_multilingual_task_writes_the_files_of_its_official_script(suite, tmp_path):
    """Of 13 validation rows, 5 do not fill a batch of 8."""
    for split, count in (("train", 40), ("valid", 13)):
        rows = [{"sentence": f"a {word}", "label": word} for word in (["dog", "tree"] * count)[:count]]
        write_rows(tmp_path / f"sib200_en.{split}.jsonl", rows)
    ((summary,), _) = suite(tmp_path)
    folder = tmp_path / "results" / "tiny" / "main" / "finetune" / "sib200_en"
    assert sorted(path.name for path in folder.iterdir()) == [
        "eval_results.json",
        "items.jsonl",
        "predictions.txt",
        "summary.json",
    ]
    header, *lines = (folder / "predictions.txt").read_text().splitlines()
    items = json_lines(folder / "items.jsonl")
    assert header == "index\tprediction"
    assert lines == [f"{i}\t{item['predictions'][0]}" for i, item in enumerate(items)]
    assert [item["label"] for item in items] == ["dog", "tree"] * 4
    results = json.loads((folder / "eval_results.json").read_text())
    assert results["eval_accuracy"] == np.mean([item["correct"] for item in items])
    assert results["eval_samples"] == 8
    assert (summary["seeds"], summary["selected_by"], summary["protocol"]) == ([12], "f1", "2026")
    assert summary["train"]["labels"] == {"dog": 20, "tree": 20}


def test_the_protocol_of_2025_pools_the_first_position_and_counts_accuracy(suite, tmp_path):
    data = write_task(tmp_path / "data", "mrpc")
    ((new,), _) = suite(data)
    ((old,), _) = suite(data, out=tmp_path / "old", protocol="2025")
    assert (new["settings"]["pooling"], new["metric"], new["protocol"]) == ("last", "f1", "2026")
    assert (old["settings"]["pooling"], old["metric"], old["protocol"]) == ("first", "accuracy", "2025")
    assert new["runs"][0]["epochs"][0]["loss"] != old["runs"][0]["epochs"][0]["loss"]
    with pytest.raises(UserError, match=r"holds a result with other protocol, settings\.pooling"):
        suite(data, protocol="2025")
