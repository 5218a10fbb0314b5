"""Atomic writes: a name is given only to what is on disk, so that no half file is ever found.

The tests of `storage/` kill processes at every file system call of a checkpoint.
"""

import errno
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import (
    TEMPORARY,
    remove_leftovers,
    require_writable,
    temporary_name,
    write_errors,
    write_text,
    written_file,
    written_folder,
)
from ltg_mdlm.storage.checkpoint import Checkpoints, TrainingState


def test_what_is_no_file_is_written_to_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit((tmp_path / "pipe").read_text)
        write_text(tmp_path / "pipe", "text")
        assert received.result(10) == "text"
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", [".", ""])
def test_a_folder_without_a_name_is_no_file(name):
    with pytest.raises(UserError, match="is a folder, not a file"), write_errors(Path(name)):
        write_text(Path(name), "text")


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def order(monkeypatch):
    """The inodes that were forced to disk so far, and the final names that were given."""
    on_disk, named = set(), []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def record_fsync(descriptor):
        on_disk.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(move):
        def record_move(source, target):
            if Path(source).name.startswith(TEMPORARY):
                files = [Path(source), *Path(source).rglob("*")]
                late = [path for path in files if path.stat().st_ino not in on_disk]
                assert not late, f"{target} is named before {late} is on disk"
                named.append(Path(target).name)
            move(source, target)

        return record_move

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", checked(rename))
    monkeypatch.setattr(os, "replace", checked(replace))
    return on_disk, named


def test_nothing_gets_its_name_before_it_is_on_disk(order, tmp_path):
    on_disk, named = order
    tensors = {"a": torch.ones(3)}
    state = TrainingState(step=3, words_seen=1_000_000, model=tensors, ema=tensors, optimizer=tensors)
    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    checkpoints.save(state)
    checkpoints.finish()
    assert named == ["chck_1M", "step_0000003", "latest"]
    assert tmp_path.stat().st_ino in on_disk


def test_a_small_file_is_replaced_as_a_whole(order, tmp_path):
    on_disk, _ = order
    write_text(tmp_path / "status.json", "one")
    write_text(tmp_path / "status.json", "two, å")
    assert (tmp_path / "status.json").read_text(encoding="utf-8") == "two, å"
    assert contents(tmp_path) == ["status.json"]
    assert tmp_path.stat().st_ino in on_disk


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_after_an_exception_the_old_content_is_there_and_nothing_else(error, tmp_path):
    write_text(tmp_path / "file", "old")
    (tmp_path / "folder").mkdir()
    write_text(tmp_path / "folder" / "old", "")

    def write_half(path):
        path.write_text("new")
        raise error

    with pytest.raises(type(error)), written_file(tmp_path / "file") as path:
        write_half(path)
    with pytest.raises(type(error)), written_folder(tmp_path / "folder", replace=True) as folder:
        write_half(folder / "new")
    assert contents(tmp_path) == ["file", "folder", "folder/old"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_replaces_an_older_one_only_if_asked(tmp_path):
    for content in ("old", "new"):
        with written_folder(tmp_path / "final", replace=True) as folder:
            (folder / content).write_text(content)
    assert contents(tmp_path) == ["final", "final/new"]
    message = r"final: another process made this folder meanwhile; nothing was written"
    with (
        pytest.raises(UserError, match=message),
        write_errors(tmp_path / "final"),
        written_folder(tmp_path / "final") as folder,
    ):
        (folder / "newer").write_text("")
    assert contents(tmp_path) == ["final", "final/new"]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    """The middle name is that of an older version."""
    for name in (temporary_name(tmp_path / "a").name, f"{TEMPORARY}1-folder", "finished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    (tmp_path / f"{TEMPORARY}1-file").write_text("")
    remove_leftovers(tmp_path)
    assert contents(tmp_path) == ["finished", "finished/file"]


def names_of_processes(folder):
    """Temporary names of a process that has ended and of one that is running, beside this process's own."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, mine = ended.stdout.strip(), temporary_name(folder / "final").name
    return dead, mine, *(mine.replace(f"-{os.getpid()}-", f"-{number}-") for number in (dead, os.getppid()))


@pytest.mark.parametrize("write", ["file", "folder"])
def test_the_next_write_deletes_what_killed_processes_left(write, tmp_path):
    """Also under the names of old versions; what may belong to a running process of another machine stays."""
    dead, mine, of_dead, of_parent = names_of_processes(tmp_path)
    host, day_ago = socket.gethostname(), time.time() - 25 * 3600
    deleted = [mine, of_dead, f"{of_dead}-outdated", of_dead.replace("final", "other")]
    deleted += [f".final.{host}-{dead}", f".builtin-0123abc.{host}-{dead}", f"{TEMPORARY}{dead}-old"]
    kept = [of_parent, f"{TEMPORARY}othermachine-{dead}-final", f"{TEMPORARY}{dead}-new", f".x.{host}-{dead}", ".git"]
    kept += [f".final.{host}-{os.getppid()}", f"{TEMPORARY}{host}-²-final"]
    for name in (*deleted, *kept):
        (tmp_path / name).mkdir()
    (tmp_path / f"{TEMPORARY}{host}-{10**30}-final").write_text("no process has this number")
    os.utime(tmp_path / f"{TEMPORARY}{dead}-old", (day_ago, day_ago))
    if write == "file":
        write_text(tmp_path / "final", "")
    else:
        with written_folder(tmp_path / "final"):
            pass
    assert contents(tmp_path) == sorted(["final", *kept])


@pytest.mark.parametrize("name", ["{mine}", "{dead}"])
def test_a_planted_link_is_neither_followed_nor_published(name, tmp_path):
    """Somebody else can guess the name of a temporary file in a folder that both may write to."""
    victim = tmp_path / "victim"
    (victim / "inside").mkdir(parents=True)
    (victim / "file").write_text("precious")
    _, mine, of_dead, _ = names_of_processes(tmp_path)
    link = tmp_path / name.format(mine=mine, dead=of_dead)
    link.symlink_to(victim / "file")
    write_text(tmp_path / "final", "text")
    link.symlink_to(victim)
    with written_folder(tmp_path / "final-folder") as folder:
        (folder / "file").write_text("text")
    remove_leftovers(tmp_path)
    assert not any(path.is_symlink() for path in tmp_path.iterdir())
    assert (victim / "file").read_text() == "precious"
    assert contents(victim) == ["file", "inside"]


def test_a_link_that_replaces_the_temporary_file_meanwhile_is_not_published(tmp_path):
    def write_and_be_robbed():
        with write_errors(tmp_path / "final"), written_file(tmp_path / "final") as path:
            path.unlink()
            path.symlink_to(tmp_path / "victim")

    with pytest.raises(UserError, match=r"symbolic link .* placed where a new file belongs; nothing was written"):
        write_and_be_robbed()
    assert contents(tmp_path) == []


def test_a_file_may_have_the_longest_name_that_the_file_system_allows(tmp_path):
    name = "å" * 127
    write_text(tmp_path / name, "text")
    with pytest.raises(UserError, match="the name is too long"), write_errors(tmp_path / name):
        write_text(tmp_path / (name + "åå"), "text")
    assert contents(tmp_path) == [name]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EIO, "Input/output error", "tokens.bin"), r"\[Errno 5\] Input/output error: 'tokens.bin'"),
    ],
)
def test_an_error_names_the_place_and_the_reason(error, reason):
    message = f"^corpus: {reason}; nothing was written; try another folder$"
    with pytest.raises(UserError, match=message), write_errors(Path("corpus"), "; try another folder"):
        raise error


def test_a_place_below_a_file_is_not_writable(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder that may be written to"):
        require_writable(tmp_path / "file" / "folder")
