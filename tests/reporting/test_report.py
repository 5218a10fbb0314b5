"""`ltg-mdlm report`: the table of runs in any state."""

import csv
import json
import os
import re
import time
from pathlib import Path

import pytest
import yaml

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.reporting.run_table import find_runs, read_run, report_table
from ltg_mdlm.storage.metrics_file import result_text
from ltg_mdlm.storage.run_folder import SILENT_SECONDS, RunFolder, Status

VALIDATION = {"valid/loss": 2.5, "valid/bound": 3.25, "valid/bound_standard_error": 0.01, "valid/minimal_pairs": None}


def make_run(path: Path, status: str | None = "finished", step: int = 10, *, seed: int = 0, **plugins) -> Path:
    """A run folder with one validation before training and one after."""
    path.mkdir(parents=True)
    plugins = plugins or {"uniform_mdlm": {}}
    settings = {"name": "laptop", "seed": seed, "plugins": plugins, "run": {"out": str(path)}}
    settings["provenance"] = {"masking": {"plugin": next(iter(plugins))}}
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = [{"step": 0, **VALIDATION, "valid/bound": 9.0}, {"step": 5, "loss": 3.0}, {"step": step, **VALIDATION}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status is not None:
        RunFolder(path).write_status(Status(status, step, "because" if status == "failed" else ""))
    return path


def table(*paths: Path) -> list[dict]:
    return report_table([read_run(path) for path in find_runs(paths)])


def test_runs_are_found_in_the_folders_of_sweeps_and_listed_once(tmp_path):
    b, a = make_run(tmp_path / "sweep" / "b"), make_run(tmp_path / "sweep" / "a")
    (tmp_path / "sweep" / "notes").mkdir()
    assert find_runs([b, tmp_path / "sweep"]) == [b, a]
    deep = make_run(tmp_path / "results" / "sweep" / "c")
    make_run(a / "checkpoints" / "not_a_run_of_its_own")
    assert find_runs([tmp_path]) == [deep, a, b]
    (tmp_path / "latest").symlink_to(a)
    assert find_runs([tmp_path]) == [deep, a, b]
    assert find_runs([a, tmp_path]) == [a, deep, b]


@pytest.mark.parametrize("name", ["empty", "missing", "file"])
def test_a_path_without_runs_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{name}: neither a run folder"):
        find_runs([tmp_path / name])


def test_only_settings_that_differ_are_shown_and_the_last_validation(tmp_path):
    make_run(tmp_path / "a", freq_mdlm={"power": 0.02, "curriculum": "linear"})
    make_run(tmp_path / "b", freq_mdlm={"power": 0.5, "curriculum": "linear"}, seed=1)
    first, second = table(tmp_path)
    assert first == {
        "run": str(tmp_path / "a"),
        "seed": 0,
        "power": 0.02,
        "status": "finished",
        "step": 10,
        "validated": 10,
        "loss": 2.5,
        "bound": 3.25,
        "bound_standard_error": 0.01,
        "minimal_pairs": None,
        "reason": "",
    }
    assert (second["seed"], second["power"]) == (1, 0.5)


def test_runs_with_other_plugins_differ_in_these_and_not_in_each_option(tmp_path):
    make_run(tmp_path / "a", freq_mdlm={"power": 0.02}, uniform_mdlm={})
    make_run(tmp_path / "b", uniform_mdlm={})
    rows = table(tmp_path)
    assert [row["plugins"] for row in rows] == ["freq_mdlm+uniform_mdlm", "uniform_mdlm"]
    assert list(rows[0])[:3] == ["run", "plugins", "status"]


def test_a_setting_never_takes_the_column_of_a_figure(tmp_path):
    for name, value in (("a", 1), ("b", 2)):
        make_run(tmp_path / name, mine={"loss": value})
    assert [(row["plugins.mine.loss"], row["loss"]) for row in table(tmp_path)] == [(1, 2.5), (2, 2.5)]


def test_unfinished_and_failed_runs_are_shown_with_their_status(tmp_path):
    make_run(tmp_path / "a", "failed", step=7)
    make_run(tmp_path / "b", "preempted", step=3)
    make_run(tmp_path / "c", None)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "lock").write_text("host process 1")
    rows = table(tmp_path)
    assert [(row["status"], row["step"]) for row in rows] == [
        ("failed", 7),
        ("preempted", 3),
        ("not started", None),
        ("not started", None),
    ]
    assert [row["reason"] for row in rows] == ["because", "", "", ""]
    assert rows[3]["bound"] is None


@pytest.mark.parametrize(
    ("owner", "seconds_ago", "status"),
    [("host process 1", 0, "running"), ("host process 1", SILENT_SECONDS + 60, "interrupted"), ("", 0, "interrupted")],
)
def test_a_run_without_a_live_process_is_not_running(tmp_path, owner, seconds_ago, status):
    run = make_run(tmp_path / "a", "running")
    (run / "lock").write_text(owner)
    then = time.time() - seconds_ago
    os.utime(run / "lock", (then, then))
    assert read_run(run).status == status


def test_an_incomplete_last_line_is_ignored(tmp_path):
    run = make_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "valid/lo')
    assert read_run(run).figures["validated"] == 10


@pytest.mark.parametrize("content", [b"a: [", b"- 1", b"\xff\xfe\x00"])
def test_a_run_whose_settings_cannot_be_read_is_listed_with_the_reason(tmp_path, content):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    (tmp_path / "b" / "config.yaml").write_bytes(content)
    good, broken = table(tmp_path)
    assert (good["status"], broken["status"]) == ("finished", "unreadable")
    assert str(tmp_path / "b" / "config.yaml") in broken["reason"]


def test_a_damaged_line_hides_no_later_figures(tmp_path):
    run = make_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('"valid/loss" rubbish\n' + json.dumps({"step": 20, **VALIDATION}) + "\n")
    assert read_run(run).figures["validated"] == 20


def test_a_damaged_line_does_not_keep_a_run_from_printing_its_result(tmp_path):
    run = make_run(tmp_path / "run")
    metrics = run / "metrics.jsonl"
    first, *others = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([first, '{"valid/loss": 1.0, "st\n', *others]))
    assert re.search(r"^bound on -log p, nats per token +9\.0000 +3\.2500 ± 0\.0100$", result_text(run), re.MULTILINE)


def test_text_json_and_csv_have_the_same_values(tmp_path, run):
    make_run(tmp_path / "runs" / "a", seed=1)
    make_run(tmp_path / "runs" / "b", "failed", seed=2)
    code, out, err = run("report", str(tmp_path / "runs"), "--csv", str(tmp_path / "table.csv"))
    assert code == 0, err
    heading, first, second = (re.split(r"\s{2,}", line.strip()) for line in out.splitlines())
    assert heading == ["run", "seed", "status", "step", "bound", "reason"]
    assert first == ["a", "1", "finished", "10", "3.250 ± 0.010"]
    assert f"2 run(s) in {os.path.relpath(tmp_path / 'runs')}" in err
    assert second[-1] == "because"
    printed = json.loads(run("report", str(tmp_path / "runs"), "--json")[1])
    written = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert written == [{k: "" if v is None else str(v) for k, v in row.items()} for row in printed]
    assert [row["status"] for row in printed] == ["finished", "failed"]
