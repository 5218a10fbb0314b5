"""Run folders: which paths are accepted, locking, and files that are written atomically."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.storage import run_folder
from ltg_mdlm.storage.metrics_file import truncate_metrics
from ltg_mdlm.storage.run_folder import RunFolder, Status


def test_a_new_folder_is_created_with_its_parents(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "first")
    with folder.claim():
        folder.write_config("seed: 1\n")
    assert folder.read_config() == "seed: 1\n"


def test_an_empty_folder_may_be_used(tmp_path):
    with RunFolder(tmp_path).claim():
        assert RunFolder(tmp_path).read_config() is None


def test_a_run_may_be_claimed_again_even_if_it_was_killed_before_it_wrote_anything(tmp_path):
    for _ in range(2):
        with RunFolder(tmp_path / "run").claim():
            pass
    RunFolder(tmp_path / "run").write_config("seed: 1\n")
    with RunFolder(tmp_path / "run").claim():
        assert RunFolder(tmp_path / "run").read_config() == "seed: 1\n"


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty and not a run folder .*config\.yaml.*--out"):
        RunFolder(tmp_path).claim()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_not_a_run_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "run").claim()


def test_a_folder_that_cannot_be_created_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created"):
        RunFolder(tmp_path / "file" / "run").claim()


def test_the_folder_of_a_process_killed_right_after_its_start_may_be_used(tmp_path):
    (tmp_path / "lock").write_text("")
    (tmp_path / ".tmp-123-config.yaml").write_text("seed")
    with RunFolder(tmp_path).claim():
        assert [p.name for p in tmp_path.iterdir()] == ["lock"]


HOLDER = """
import sys, time
from pathlib import Path
from ltg_mdlm.storage.run_folder import RunFolder
lock = RunFolder(Path(sys.argv[1])).claim()
print("claimed", flush=True)
time.sleep(60)
"""


def test_only_one_process_trains_and_a_kill_releases_the_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "claimed\n"
        expected = rf"another process trains in this run folder \({socket.gethostname()} process {holder.pid}\)"
        with pytest.raises(UserError, match=expected):
            RunFolder(tmp_path).claim()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with RunFolder(tmp_path).claim():
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.fixture
def other_machine(tmp_path, monkeypatch):
    """A lock file of a process on another machine, on a file system whose locks work only within a machine."""
    monkeypatch.setattr(run_folder, "SILENT_SECONDS", 0.2)
    (tmp_path / "lock").write_text("other-host process 1")
    os.utime(tmp_path / "lock", (0, 0))


@pytest.mark.usefixtures("other_machine")
def test_a_process_on_another_machine_keeps_the_lock_while_it_touches_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: os.utime(tmp_path / "lock", (1, 1)))
    with (
        pytest.warns(UserWarning, match="other-host process 1 on another machine .* watching it"),
        pytest.raises(UserError, match=r"a process on another machine trains .*other-host process 1.*--out"),
    ):
        RunFolder(tmp_path).claim()
    assert (tmp_path / "lock").read_text() == "other-host process 1"


@pytest.mark.usefixtures("other_machine")
def test_a_process_on_another_machine_that_stays_silent_is_considered_dead(tmp_path):
    """Clocks are not compared, so that a requeued run need not wait for minutes, or fail."""
    with pytest.warns(UserWarning, match="watching it"), RunFolder(tmp_path).claim():
        assert socket.gethostname() in (tmp_path / "lock").read_text()


def test_a_released_folder_is_immediately_free_for_other_machines(tmp_path):
    with RunFolder(tmp_path).claim():
        assert socket.gethostname() in (tmp_path / "lock").read_text()
    assert (tmp_path / "lock").read_text() == ""


def test_the_owner_touches_the_lock_file(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "HEARTBEAT_SECONDS", 0.01)
    threads = threading.active_count()
    with RunFolder(tmp_path).claim():
        os.utime(tmp_path / "lock", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "lock").stat().st_mtime > 0
    assert threading.active_count() == threads


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_config("seed: 1\n")
    (tmp_path / ".tmp-123-metrics.jsonl").write_text("half a li")
    with folder.claim():
        assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "lock"]


def test_the_status_is_restored_and_has_the_format_that_job_scripts_read(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_status() is None
    folder.write_status(Status("preempted", step=12, reason="SIGTERM"))
    assert folder.read_status() == Status("preempted", step=12, reason="SIGTERM")
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "status": "preempted",
        "step": 12,
        "reason": "SIGTERM",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 1}', '{"status": "running", "step": 1, "mood": "good"}'])
def test_an_invalid_status_counts_as_none(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    assert RunFolder(tmp_path).read_status() is None


def test_metrics_beyond_the_resumed_step_and_incomplete_lines_are_dropped(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 0, "valid/loss": 9},
        {"step": 10, "loss": 8},
        {"step": 10, "valid/loss": 7},
        {"step": 11, "loss": 6},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    metrics.write_text(text + '{"torn\n' + '{"no step": 1}\n' + '{"step": 10, "loss": "half a li')
    truncate_metrics(metrics, 10)
    assert [json.loads(line) for line in metrics.read_text().splitlines()] == rows[:3]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_metrics_up_to_the_resumed_step_are_unchanged(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1}\n{"step": 2, "text": "å"}\n')
    before = metrics.read_bytes()
    truncate_metrics(metrics, 100)
    assert metrics.read_bytes() == before
    truncate_metrics(tmp_path / "missing.jsonl", 100)
    assert not (tmp_path / "missing.jsonl").exists()
