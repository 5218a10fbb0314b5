"""The folder of a run: its settings, status and metrics, and a lock so that only one process trains in it."""

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
from typing import Literal

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import TEMPORARY, remove_leftovers, write_text
from ltg_mdlm.data.tokenizer import Tokenizer

HEARTBEAT_SECONDS = 10.0


SILENT_SECONDS = 60.0
"""A process on another machine that gives no sign of life while it is watched for so long is dead."""


_GLANCE_SECONDS = 2.0


@dataclass(frozen=True)
class Status:
    """What status.json says; job scripts read it."""

    status: Literal["running", "preempted", "finished", "failed"]
    step: int
    reason: str = ""


class RunFolder:
    """Names and small files of a run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.tokenizer_file = path / "tokenizer.json"
        self.metrics_file = path / "metrics.jsonl"
        self.status_file = path / "status.json"
        self.checkpoints = path / "checkpoints"

    def claim(self) -> Lock:
        """Create the folder if need be, and keep other processes from training in it until the lock is released.

        Raises UserError, with nothing written, if the path is a file, a folder that is neither empty nor a run's, or
        another process trains there.
        """
        self.require_usable()
        lock = Lock(self.path)
        remove_leftovers(self.path)
        return lock

    def require_usable(self) -> None:
        """Raises UserError if the path is a file, or a folder that is neither empty nor a run's."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(
                f"{self.path} is a file; the run folder must be a new or empty folder, or that of a run (--out)"
            )
        names = {p.name for p in self.path.iterdir()} - {Lock.FILE} if self.path.is_dir() else set()
        # A process that is killed at its very beginning leaves a lock and a half-written config.yaml.
        names = {name for name in names if not name.startswith(TEMPORARY)}
        if names and self.config_file.name not in names:
            raise UserError(
                f"{self.path} is not empty and not a run folder (it has no config.yaml);"
                " choose another folder with --out"
            )

    def read_config(self) -> str | None:
        """The settings of the run, as YAML; None before they are written."""
        return self.config_file.read_text(encoding="utf-8") if self.config_file.is_file() else None

    def write_config(self, text: str) -> None:
        """Write config.yaml, complete or not at all."""
        write_text(self.config_file, text)

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Keep the tokenizer beside the weights: a trained model needs nothing else of its corpus."""
        write_text(self.tokenizer_file, tokenizer.to_json())

    def read_status(self) -> Status | None:
        """The last status; None if there is none that can be read."""
        try:
            return Status(**json.loads(self.status_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write_status(self, status: Status) -> None:
        """Write status.json, complete or not at all."""
        write_text(self.status_file, json.dumps(asdict(status)) + "\n")


class Lock:
    """Makes this process the only one that trains in a run folder; a context manager.

    On one machine, and on shared file systems that support it, the kernel holds the lock (flock) and lets go of it when
    the process ends, however it ends: no lock is ever stale.  Some shared file systems lock within one machine only.
    The file therefore names its owner and is touched every few seconds, and a process on another machine watches it
    for `SILENT_SECONDS` before it takes the owner for dead.  Clocks are not compared.
    """

    FILE = "lock"

    def __init__(self, folder: Path) -> None:
        """Raises UserError if another process has the lock, or the folder cannot be written."""
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
        self._heart = threading.Thread(target=self._beat, name="run-folder-heartbeat", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Let others in."""
        self._released.set()
        self._heart.join()
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
            # A file system without locks at all: the signs of life have to do.
            pass
        if owner and owner.partition(" ")[0] != socket.gethostname():
            self._require_silence(owner)
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{socket.gethostname()} process {os.getpid()}".encode(), 0)

    def _require_silence(self, owner: str) -> None:
        """Raises UserError as soon as a process on another machine gives a sign of life."""
        warnings.warn(
            f"{self._folder}: {owner} on another machine trained in this run folder and has not said that it ended;"
            f" watching it for {SILENT_SECONDS:.0f} s",
            stacklevel=2,
        )
        before, deadline = self._last_sign(), time.monotonic() + SILENT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(_GLANCE_SECONDS, SILENT_SECONDS / 10))
            if self._last_sign() != before:
                raise UserError(
                    f"{self._folder}: a process on another machine trains in this run folder ({owner});"
                    " end it, or choose another folder with --out"
                )

    def _last_sign(self) -> tuple[int, bytes]:
        """When the lock file was touched, and by whom; opened anew, for which network file systems ask their server."""
        with (self._folder / self.FILE).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns, file.read()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a file system that is away for a moment
                os.utime(self._descriptor)
