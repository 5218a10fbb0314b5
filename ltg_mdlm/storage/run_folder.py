"""The folder of a run: its small files, and a lock that lets only one process train in it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import (
    TEMPORARY,
    is_running,
    reason_of,
    remove_leftovers,
    temporary_name,
    write_errors,
    write_text,
)
from ltg_mdlm.core.json_files import read_object
from ltg_mdlm.core.settings import read_text
from ltg_mdlm.data.tokenizer import Tokenizer

HEARTBEAT_SECONDS = 10.0
"""Interval at which the owner of a lock touches the lock file."""

SILENT_SECONDS = 60.0
"""An owner on another machine that does not touch the lock file for so long is considered dead."""

_POLL_SECONDS = 2.0


_Status = Literal["running", "preempted", "finished", "failed"]


@dataclass(frozen=True)
class Status:
    """The content of status.json, which job scripts read."""

    status: _Status
    step: int
    reason: str = ""


class RunFolder:
    """Paths and small files of a run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.tokenizer_file = path / "tokenizer.json"
        self.metrics_file = path / "metrics.jsonl"
        self.status_file = path / "status.json"
        self.environment_file = path / "environment.json"
        self.checkpoints = path / "checkpoints"
        self._lock: Lock | None = None
        self._starts: list[dict[str, Any]] | None = None

    def claim(self) -> Lock:
        """Create the folder if necessary, and lock it for training in this process.

        Raises UserError, before anything is written, if `require_usable` does, or if another process trains there.
        """
        self.require_usable()
        self._lock = Lock(self.path)
        remove_leftovers(self.path)
        return self._lock

    def require_usable(self) -> None:
        """Raises UserError if the path is a file, or a folder that is neither empty nor the folder of a run."""
        try:
            names = {path.name for path in self.path.iterdir()}
        except FileNotFoundError:
            return
        except NotADirectoryError:
            if not self.path.exists():  # below a file, so that it cannot be created
                return
            raise UserError(
                f"{self.path} is a file; the run folder must be a new or empty folder, or that of a run (--out)"
            ) from None
        except OSError as error:
            raise UserError(f"the run folder {self.path} cannot be read: {reason_of(error)}") from None
        # A process that is killed right after its start leaves a lock and an unfinished config.yaml.
        names = {name for name in names if not (name.startswith(TEMPORARY) or Lock.is_file_of_lock(name))}
        if names and self.config_file.name not in names:
            raise UserError(
                f"{self.path} is not empty and not a run folder (it has no config.yaml);"
                " choose another folder with --out"
            )

    def holds(self, path: Path) -> bool:
        """Whether a path is inside the run folder, also behind links to its checkpoints."""
        parent = Path(os.path.abspath(path)).parent
        return parent.resolve() == self.checkpoints.resolve() or path.resolve().is_relative_to(self.path.resolve())

    def require_claimed(self) -> None:
        """Raises UserError if this process claimed the folder, and it is no longer at its path, or no longer its own.

        Otherwise a run would write some files to the renamed folder and others to the old path.
        """
        if self._lock is not None:
            self._lock.require_held()

    def read_config(self) -> str | None:
        """The settings of the run, as YAML; None before they are written."""
        return read_text(self.config_file) if self.config_file.is_file() else None

    def write_config(self, text: str) -> None:
        """Write config.yaml atomically.  Raises UserError, as the other writers do."""
        self._write(self.config_file, text)

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Write the tokenizer, so that the trained model can be used without its corpus."""
        self._write(self.tokenizer_file, tokenizer.to_json())

    def read_status(self) -> Status | None:
        """The last status; None if there is none, or if it cannot be read."""
        try:
            status = Status(**read_object(self.status_file))
        except (UserError, TypeError):
            return None
        is_sound = status.status in get_args(_Status) and isinstance(status.reason, str)
        return status if is_sound and type(status.step) is int and status.step >= 0 else None

    def write_status(self, status: Status) -> None:
        """Write status.json atomically."""
        self._write(self.status_file, json.dumps(asdict(status)) + "\n")

    def read_environment(self) -> list[dict[str, Any]]:
        """What environment.json says about every start of the run, the oldest first; empty if there is no such file.

        The file is read once, since only this process writes it.  A damaged one gives a warning, and counts as absent.
        """
        if self._starts is None:
            self._starts = []
            if self.environment_file.exists():
                try:
                    starts = read_object(self.environment_file).get("starts")
                    if not (isinstance(starts, list) and all(isinstance(start, dict) for start in starts)):
                        raise UserError(f"{self.environment_file}: 'starts' is not a list of objects")
                    self._starts = starts
                except UserError as error:
                    warnings.warn(f"{error}; what it said about earlier starts is lost", stacklevel=2)
        return self._starts

    def add_to_environment(self, facts: Mapping[str, Any], *, new_start: bool = False) -> None:
        """Write facts about the newest start of the run to environment.json atomically; equal names are replaced.

        With `new_start`, the facts belong to a start that is listed after the others.
        """
        starts = self.read_environment()
        starts = [*starts, dict(facts)] if new_start or not starts else [*starts[:-1], starts[-1] | dict(facts)]
        self._starts = starts  # also if they cannot be written now, but later
        self._write(self.environment_file, json.dumps({"starts": starts}, indent=2) + "\n")

    def _write(self, file: Path, text: str) -> None:
        self.require_claimed()
        with write_errors(file, "\n  nothing saved is lost; correct this, then run the same command"):
            write_text(file, text)


@dataclass(frozen=True)
class Owner:
    """The process that a lock file names: `HOST process PID started TICKS on MACHINE`; old versions stop after PID."""

    host: str
    process: int
    started: str = ""
    """Time since the machine started, which tells a process from a later one of the same number."""
    machine: str = ""
    """Differs between machines of the same name, between starts of a machine, and between containers."""

    def __str__(self) -> str:
        return f"{self.host} process {self.process}"

    def to_text(self) -> str:
        """The content of the lock file."""
        return f"{self} started {self.started} on {self.machine}"

    @classmethod
    def this_process(cls) -> Owner:
        """Owner of the locks of this process."""
        return cls(socket.gethostname(), os.getpid(), _start_time(os.getpid()), _this_machine())

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """The owner that a lock file names; None if it names none."""
        match = re.fullmatch(r"(\S+) process ([0-9]{1,18})(?: started ([0-9]*) on (\S*))?", text.strip("\0\n "))
        return cls(match[1], int(match[2]), match[3] or "", match[4] or "") if match else None

    @property
    def is_here(self) -> bool:
        """Whether its machine is this one, so that its process can be looked up."""
        return self.host == socket.gethostname() and self.machine in ("", _this_machine())

    @property
    def is_alive(self) -> bool:
        """Whether its process is running on this machine."""
        now = _start_time(self.process)
        return is_running(self.process) and now != _ENDED and self.started in ("", now)


@cache
def _this_machine() -> str:
    boot = container = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        container = str(os.stat("/proc/self/ns/pid").st_ino)
    return f"{boot}/{container}"


_ENDED = "ended"


def _start_time(process: int) -> str:
    """Time in ticks since the machine started; `_ENDED` if only its parent has not noticed yet; empty if unknown."""
    with suppress(OSError, IndexError):
        # The name of the program, in brackets, may contain anything.
        state, *others = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return _ENDED if state in (b"Z", b"X") else others[18].decode()
    return ""


class Lock:
    """Makes this process the only one that trains in a run folder; a context manager.

    On one machine, and on shared file systems that support it, the kernel holds the lock (flock) and releases it when
    the process ends for any reason, so that no lock is ever stale.  Some shared file systems lock only within a
    machine, and some do not lock.  Therefore the file names its owner, who touches it every few seconds.  A process of
    the same machine is looked up.  A process on another machine is watched for `SILENT_SECONDS` before it is considered
    dead.  Clocks are not compared.

    Where flock does not work, the owner is who created the file `lock.N` with the highest number N.  A process may
    create the next one if the owner of the highest has released it, or is dead.  Only one process can give a file a
    name (`link`), and the highest is never deleted, so a process that was slow to decide does not become the owner.
    """

    FILE = "lock"

    _RELEASED = "released\n"

    def __init__(self, folder: Path) -> None:
        """Raises UserError if another process has the lock, or if the folder cannot be written."""
        self._folder = folder
        self._owner = Owner.this_process()
        self._numbered: int | None = None  # descriptor of `lock.N`
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(folder / self.FILE, flags, 0o644)
        except OSError as error:
            raise UserError(f"the run folder {folder} cannot be created or written: {reason_of(error)}") from None
        try:
            self._acquire()
        except OSError as error:
            self._close()
            raise UserError(f"the run folder {folder} cannot be locked: {reason_of(error)}") from None
        except BaseException:
            self._close()
            raise
        self._released = threading.Event()
        self._heartbeat = threading.Thread(target=self._touch_regularly, name="run-folder-heartbeat", daemon=True)
        self._heartbeat.start()

    @classmethod
    def is_file_of_lock(cls, name: str) -> bool:
        """Whether a lock makes files of this name in a run folder."""
        return re.fullmatch(rf"{cls.FILE}(\.[0-9]+)?", name) is not None

    def release(self) -> None:
        """Let other processes train in the folder."""
        self._released.set()
        self._heartbeat.join()
        with suppress(OSError):  # the next process finds a dead owner
            if os.pread(self._descriptor, 1000, 0).decode(errors="replace") == self._owner.to_text():
                os.truncate(self._descriptor, 0)
            if self._numbered is not None:
                os.pwrite(self._numbered, self._RELEASED.encode(), 0)
        self._close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def require_held(self) -> None:
        """Raises UserError if the folder was renamed, deleted or replaced, or another process has taken the lock.

        A file system that is unavailable for a moment is asked again, for `SILENT_SECONDS`.
        """
        same, owner = False, ""
        deadline = time.monotonic() + SILENT_SECONDS
        while True:
            try:
                with (self._folder / self.FILE).open("rb") as file:
                    same = os.path.samestat(os.fstat(file.fileno()), os.fstat(self._descriptor))
                    owner = file.read(1000).decode(errors="replace")
                break
            except (FileNotFoundError, NotADirectoryError):
                break
            except OSError as error:
                if time.monotonic() >= deadline:
                    text = f"the run folder {self._folder} cannot be read any more: {reason_of(error)}"
                    raise UserError(text) from None
                time.sleep(min(_POLL_SECONDS, SILENT_SECONDS / 10))
        if not same:
            raise UserError(
                f"{self._folder} is no longer the folder in which this run was started: the folder, or the file"
                f" {self.FILE} in it, was renamed, deleted or replaced"
                "\n  nothing saved is lost; run the command again with the present name of the folder as --out"
            )
        if owner != self._owner.to_text():
            raise UserError(f"{self._folder}: another process has started to train in this run folder ({owner})")

    def _close(self) -> None:
        for descriptor in (self._descriptor, self._numbered):
            if descriptor is not None:
                os.close(descriptor)

    def _acquire(self) -> None:
        flock_works = True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._taken_by(self._read(self._folder / self.FILE)[1]) from None
        except OSError:
            flock_works = False
        if flock_works:
            self._require_dead(self._folder / self.FILE, flock_works)
        else:
            try:
                self._numbered = self._take_next_number()
            except FileNotFoundError:  # the new owner has deleted a file of the previous one meanwhile
                raise self._taken_by("") from None
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, self._owner.to_text().encode(), 0)
        os.fsync(self._descriptor)
        self.require_held()

    def _take_next_number(self) -> int:
        """Create the next `lock.N`; its descriptor.  Raises UserError if its owner, or that of `lock`, may be alive."""
        # The numbers are read first: if another process takes the lock from here on, it takes the next number.
        numbers = self._numbers()
        last, number = (self._folder / f"{self.FILE}.{max(numbers, default=0) + i}" for i in (0, 1))
        named = self._require_dead(self._folder / self.FILE, flock_works=False)
        if numbers and self._read(last)[1] != (named or None):
            self._require_dead(last, flock_works=False)
        aside = temporary_name(number)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(aside, flags, 0o644)
        try:
            os.pwrite(descriptor, self._owner.to_text().encode(), 0)
            os.fsync(descriptor)
            os.link(aside, number)
            newest = max(self._numbers())
            if newest > max(numbers, default=0) + 1:
                number.unlink()
                raise self._taken_by(self._read(self._folder / f"{self.FILE}.{newest}")[1])
        except FileExistsError:
            os.close(descriptor)
            raise self._taken_by(self._read(number)[1]) from None
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            aside.unlink(missing_ok=True)
        for outdated in numbers:
            (self._folder / f"{self.FILE}.{outdated}").unlink(missing_ok=True)
        return descriptor

    def _numbers(self) -> list[int]:
        names = [path.name.rpartition(".")[2] for path in self._folder.glob(f"{self.FILE}.*")]
        return [int(name) for name in names if re.fullmatch("[0-9]{1,18}", name)]

    def _taken_by(self, owner: str) -> UserError:
        who = Owner.parse(owner) or "it has just started"
        return UserError(
            f"{self._folder}: another process trains in this run folder ({who});"
            " end it, or choose another folder with --out"
        )

    @staticmethod
    def _read(file: Path) -> tuple[int, str]:
        """Time of the last sign of life, and content.  Network file systems ask their server when a file is opened."""
        with file.open("rb") as opened:
            return os.fstat(opened.fileno()).st_mtime_ns, opened.read(1000).decode(errors="replace")

    def _require_dead(self, file: Path, flock_works: bool) -> str:
        """Raises UserError if the owner that a lock file names may be alive; else returns the content of the file.

        An owner on another machine is watched for `SILENT_SECONDS`, and so is one that has not written its name.
        """
        before = self._read(file)
        owner = Owner.parse(before[1])
        if before[1].startswith(self._RELEASED) or (not before[1] and file.name == self.FILE):
            return before[1]
        if owner is not None and owner.is_here:
            # Where flock works, it is believed more than a process number without a start time.
            if owner.is_alive and (owner.started or not flock_works):
                raise self._taken_by(before[1])
            return before[1]
        warnings.warn(
            f"{self._folder}: {owner or 'an unknown process'} on another machine trained in this run folder and has"
            f" not released it (or on this one before it was restarted); watching it for {SILENT_SECONDS:.0f} s",
            stacklevel=2,
        )
        deadline = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(_POLL_SECONDS, SILENT_SECONDS / 10))
            if self._read(file) != before:
                raise UserError(
                    f"{self._folder}: a process on another machine trains in this run folder ({owner or before[1]});"
                    " end it, or choose another folder with --out"
                )
        return before[1]

    def _touch_regularly(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # the file system is unavailable for a moment
                os.utime(self._descriptor)
                if self._numbered is not None:
                    os.utime(self._numbered)


def run_of_checkpoint(checkpoint: Path) -> RunFolder:
    """The run folder of a checkpoint, which is `<run>/checkpoints/<name>`.

    The path as given comes first: the checkpoints of a run may be links to another disk.
    """
    given = Path(os.path.abspath(checkpoint))
    for path in (given, checkpoint.resolve()):
        if path.parent.name == "checkpoints":
            return RunFolder(path.parent.parent)
    return RunFolder(given.parent.parent)
