"""Run folders: which paths are accepted, locking, and files that are written atomically."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ltg_mdlm.core.config import Provider, RunConfig
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.storage import run_folder
from ltg_mdlm.storage.checkpoint import Checkpoints, TrainingState, run_settings
from ltg_mdlm.storage.metrics_file import truncate_metrics
from ltg_mdlm.storage.run_folder import Lock, Owner, RunFolder, Status
from ltg_mdlm.testing.ranks import run_on_ranks
from ltg_mdlm.training.metric_sinks import JSONLines


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


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without locks."""
    monkeypatch.setattr(fcntl, "flock", refuse_locks)


def refuse_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


def claim_often(rank, folder, times):
    """Claim and release a folder without flock until this process had it so often, then leave it locked."""
    fcntl.flock = refuse_locks
    os.fsync = lambda descriptor: None
    claimed, run, marker = 0, RunFolder(Path(folder)), Path(folder).with_name("training")
    while claimed < times:
        try:
            lock = run.claim()
        except UserError as error:
            assert "another process trains" in str(error), error  # noqa: PT017
            time.sleep(0.001)
            continue
        marker.touch(exist_ok=False)
        time.sleep(0.001)
        marker.unlink()
        lock.release()
        claimed += 1
    with suppress(UserError):
        run.claim()
    return claimed


def test_without_flock_two_processes_never_train_at_once(tmp_path):
    """And the locks that are not released when their owners end are taken over at once."""
    claims = run_on_ranks(claim_often, 3, str(tmp_path / "run"), 10, joined=False)
    assert claims == [10, 10, 10]
    with RunFolder(tmp_path / "run").claim():
        pass


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_living_owner_keeps_the_folder_and_a_dead_one_does_not(tmp_path):
    with RunFolder(tmp_path).claim():
        expected = rf"another process trains in this run folder \({socket.gethostname()} process {os.getpid()}\)"
        with pytest.raises(UserError, match=expected):
            RunFolder(tmp_path).claim()
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    here = Owner.this_process()
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        for dead in (
            Owner(here.host, process.pid),  # not waited for: a zombie
            Owner(here.host, os.getppid(), "1", here.machine),  # another process has the number now
            Owner(here.host, 10**17, "1", here.machine),
        ):
            (tmp_path / "lock").write_text(dead.to_text() if dead.started else str(dead))
            with RunFolder(tmp_path).claim():
                assert (tmp_path / "lock").read_text() == here.to_text()
    finally:
        process.stdout.close()
        process.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "lock.4"]


def test_a_process_without_flock_is_respected_by_one_with_it(tmp_path, monkeypatch):
    """Two machines may mount one file system in different ways; here both are this one."""
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse_locks)
        first = RunFolder(tmp_path).claim()
    with first, pytest.raises(UserError, match="another process trains"):
        RunFolder(tmp_path).claim()
    with RunFolder(tmp_path).claim():
        pass


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_slow_process_does_not_take_the_lock_from_one_that_was_faster(tmp_path, monkeypatch):
    """It found a dead owner; until it acts, another process claims the folder, or claims and releases it twice."""
    for claims in (1, 2):
        folder = tmp_path / str(claims)
        folder.mkdir()
        (folder / "lock").write_text(f"{socket.gethostname()} process {10**17}")
        require_dead, others = Lock._require_dead, []

        def slow(lock, file, flock_works, folder=folder, claims=claims, require_dead=require_dead, others=others):
            found = require_dead(lock, file, flock_works)
            monkeypatch.setattr(Lock, "_require_dead", require_dead)
            for _ in range(claims):
                if others:
                    others[-1].release()
                others.append(RunFolder(folder).claim())
            return found

        monkeypatch.setattr(Lock, "_require_dead", slow)
        with pytest.raises(UserError, match="another process trains"):
            RunFolder(folder).claim()
        others[-1].require_held()
        others[-1].release()


@pytest.mark.parametrize("content", [b"", b"\xff\0 process", b"x process " + b"9" * 900])
def test_an_unreadable_owner_of_a_numbered_lock_is_watched(content, tmp_path, no_flock, monkeypatch):
    """It may have been killed between the creation of the file and the writing of its name."""
    monkeypatch.setattr(run_folder, "SILENT_SECONDS", 0.05)
    (tmp_path / "lock.1").write_bytes(content)
    with pytest.warns(UserWarning, match="an unknown process"), RunFolder(tmp_path).claim():
        pass


def rename_it(folder):
    folder.rename(folder.with_name("renamed"))


def replace_it(folder):
    rename_it(folder)
    folder.mkdir()
    RunFolder(folder).claim().release()


def delete_it(folder):
    shutil.rmtree(folder)


def delete_the_lock(folder):
    (folder / "lock").unlink()


def take_the_lock(folder):
    (folder / "lock").write_text("other-host process 1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_it, "renamed, deleted or replaced"),
        (replace_it, "renamed, deleted or replaced"),
        (delete_it, "renamed, deleted or replaced"),
        (delete_the_lock, "renamed, deleted or replaced"),
        (take_the_lock, r"another process has started to train .*\(other-host process 1\)"),
    ],
)
def test_nothing_is_written_to_a_folder_that_is_not_the_one_that_was_claimed(change, message, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.claim():
        folder.write_status(Status("running", 1))
        metrics = JSONLines(folder.metrics_file, folder.require_claimed)
        metrics.write({"step": 1})
        change(folder.path)
        before = sorted(tmp_path.rglob("*"))
        for write in (
            lambda: folder.write_status(Status("running", 2)),
            lambda: folder.write_config("seed: 1"),
            lambda: metrics.write({"step": 2}),
        ):
            with pytest.raises(UserError, match=message):
                write()
        metrics.close()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_system_that_is_unavailable_for_a_moment_ends_no_run(tmp_path, monkeypatch):
    folder, opened = RunFolder(tmp_path / "run"), Path.open
    monkeypatch.setattr(run_folder, "SILENT_SECONDS", 0.2)
    failures = []

    def stale(path, *arguments, **options):
        if path.name == "lock" and failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return opened(path, *arguments, **options)

    with folder.claim():
        metrics = JSONLines(folder.metrics_file, folder.require_claimed)
        monkeypatch.setattr(Path, "open", stale)
        failures += [errno.EIO, errno.ESTALE]
        metrics.write({"step": 1})
        assert not failures
        failures += [errno.ESTALE] * 1000
        with pytest.raises(UserError, match="cannot be read any more"):
            metrics.write({"step": 2})
        failures.clear()
        metrics.close()
    assert folder.metrics_file.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("change", [os.unlink, lambda path: path.rename(path.with_name("old")) and path.write_text("")])
def test_metrics_that_are_deleted_or_replaced_are_noticed(change, tmp_path):
    metrics = JSONLines(tmp_path / "metrics.jsonl")
    change(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl was deleted or replaced while the run wrote to it"):
        metrics.write({"step": 1})
    metrics.close()


@pytest.mark.parametrize("call", ["open", "pwrite", "truncate", "fsync", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_is_full_or_read_only_is_one_message_wherever_it_is_noticed(call, number, tmp_path, monkeypatch):
    """Either the folder is not claimed, or a file is not written; no descriptor stays open."""
    existing = RunFolder(tmp_path / "existing")
    existing.claim().release()
    original, opened = getattr(os, call), len(os.listdir("/proc/self/fd"))

    def fail(*arguments, **options):
        flags = arguments[1] if call == "open" else os.O_WRONLY
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number))
        return original(*arguments, **options)

    def use(folder):
        with folder.claim():
            folder.write_config("seed: 1")
            raise UserError("the disk is full: but this call is not used")

    for folder in (existing, RunFolder(tmp_path / "new")):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(UserError, match=r"disk is full|read-only|no permission"):
                use(folder)
    assert len(os.listdir("/proc/self/fd")) == opened


def test_files_that_cannot_be_read_are_one_message(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_config("seed: 1\n")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(UserError, match=r"config\.yaml cannot be read: no permission"):
        run_settings(folder)
    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(UserError, match="cannot be read: no permission"):
        folder.claim()


@pytest.mark.parametrize("content", [b"seed: [", b"\xff\xfe", b"\0\0", b"", b"3", b"sedd: 1\n", b"seed: 2001-99-99"])
def test_a_damaged_config_is_replaced_by_the_copy_in_the_newest_checkpoint(content, tmp_path):
    folder = RunFolder(tmp_path)
    config = RunConfig(seed=5)
    folder.config_file.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml (.|\n)*\n  no checkpoint has a copy of the settings"):
        run_settings(folder)
    about = {"config": config.model_dump(mode="json", exclude={"run", "plugin_versions", "provenance"})}
    checkpoints = Checkpoints(folder.checkpoints, every=1, keep=1, about=about)
    checkpoints.save(TrainingState(step=3, words_seen=1, model={}))
    checkpoints.finish()
    with pytest.warns(UserWarning, match=r"config\.yaml(.|\n)*the settings in .*step_0000003 are used instead") as said:
        assert run_settings(folder) == config
    assert len(said) == 1


def test_a_config_that_ends_too_early_is_replaced_by_the_copy_in_the_newest_checkpoint(tmp_path):
    """At the end of a line it is sound YAML, and the settings that are missing would get their defaults."""
    folder = RunFolder(tmp_path)
    origin = Provider(plugin="uniform_mdlm", distribution="ltg_mdlm", version="3.0", file="plugin.py")
    config = RunConfig(seed=5, training={"precision": "fp32", "max_steps": 7}, provenance={"masking": origin})
    whole = config.to_yaml()
    cut = whole[: whole.index("  precision: fp32")]
    folder.write_config(cut)
    of_old_version = run_settings(folder)
    assert (of_old_version.seed, of_old_version.training.precision) == (5, "auto")
    copy = config.model_dump(mode="json", exclude={"run", "plugin_versions", "provenance"})
    for step, about in (
        (3, {"config": copy}),
        (4, {"config": copy, "provenance": {"masking": origin.model_dump(mode="json")}}),
    ):
        checkpoints = Checkpoints(folder.checkpoints, every=1, keep=1, about=about)
        checkpoints.save(TrainingState(step=step, words_seen=1, model={}))
        checkpoints.finish()
        if step == 3:
            assert run_settings(folder) == of_old_version
    with pytest.warns(UserWarning, match=r"config\.yaml has no provenance(.|\n)*settings in .*step_0000004 are used"):
        assert run_settings(folder) == config.model_copy(update={"provenance": {}})
    folder.write_config(whole)
    assert run_settings(folder) == config
