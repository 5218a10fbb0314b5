"""The folder of a run: its small files, and a lock that lets only one process train in it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import TEMPORARY, remove_leftovers, write_text
from ltg_mdlm.core.json_files import read_object
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
        self.checkpoints = path / "checkpoints"

    def claim(self) -> Lock:
        """Create the folder if necessary, and lock it for training in this process.

        Raises UserError, before anything is written, if `require_usable` does, or if another process trains there.
        """
        self.require_usable()
        lock = Lock(self.path)
        remove_leftovers(self.path)
        return lock

    def require_usable(self) -> None:
        """Raises UserError if the path is a file, or a folder that is neither empty nor the folder of a run."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(
                f"{self.path} is a file; the run folder must be a new or empty folder, or that of a run (--out)"
            )
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        # A process that is killed right after its start leaves a lock and an unfinished config.yaml.
        names = {name for name in names if name != Lock.FILE and not name.startswith(TEMPORARY)}
        if names and self.config_file.name not in names:
            raise UserError(
                f"{self.path} is not empty and not a run folder (it has no config.yaml);"
                " choose another folder with --out"
            )

    def read_config(self) -> str | None:
        """The settings of the run, as YAML; None before they are written."""
        return self.config_file.read_text(encoding="utf-8") if self.config_file.is_file() else None

    def write_config(self, text: str) -> None:
        """Write config.yaml atomically."""
        write_text(self.config_file, text)

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Write the tokenizer, so that the trained model can be used without its corpus."""
        write_text(self.tokenizer_file, tokenizer.to_json())

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
        write_text(self.status_file, json.dumps(asdict(status)) + "\n")


class Lock:
    """Makes this process the only one that trains in a run folder; a context manager.

    On one machine, and on shared file systems that support it, the kernel holds the lock (flock) and releases it when
    the process ends for any reason, so that no lock is ever stale.  Some shared file systems lock only within a
    machine.  Therefore the file names its owner, who touches it every few seconds, and a process on another machine
    watches it for `SILENT_SECONDS` before it considers the owner dead.  Clocks are not compared.
    """

    FILE = "lock"

    def __init__(self, folder: Path) -> None:
        """Raises UserError if another process has the lock, or if the folder cannot be written."""
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(folder / self.FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"the run folder {folder} cannot be created: {error.strerror}") from None
        try:
            self._acquire()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._released = threading.Event()
        self._heartbeat = threading.Thread(target=self._touch_regularly, name="run-folder-heartbeat", daemon=True)
        self._heartbeat.start()

    def release(self) -> None:
        """Let other processes train in the folder."""
        self._released.set()
        self._heartbeat.join()
        os.truncate(self._descriptor, 0)
        os.close(self._descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _acquire(self) -> None:
        owner = os.pread(self._descriptor, 1000, 0).decode(errors="replace")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self._folder}: another process trains in this run folder ({owner})") from None
        except OSError:
            pass  # a file system without locks: only the owner's heartbeat is left
        if owner and owner.partition(" ")[0] != socket.gethostname():
            self._require_silence(owner)
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{socket.gethostname()} process {os.getpid()}".encode(), 0)

    def _require_silence(self, owner: str) -> None:
        """Raises UserError if an owner on another machine touches the lock file within `SILENT_SECONDS`."""
        warnings.warn(
            f"{self._folder}: {owner} on another machine trained in this run folder and has not released it;"
            f" watching it for {SILENT_SECONDS:.0f} s",
            stacklevel=2,
        )

        def last_sign() -> tuple[int, bytes]:
            # Network file systems ask their server when a file is opened.
            with (self._folder / self.FILE).open("rb") as file:
                return os.fstat(file.fileno()).st_mtime_ns, file.read()

        before, deadline = last_sign(), time.monotonic() + SILENT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(_POLL_SECONDS, SILENT_SECONDS / 10))
            if last_sign() != before:
                raise UserError(
                    f"{self._folder}: a process on another machine trains in this run folder ({owner});"
                    " end it, or choose another folder with --out"
                )

    def _touch_regularly(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # the file system is unavailable for a moment
                os.utime(self._descriptor)
