"""A thread that notices the failure of another process while the main thread waits for it.

With gloo, an operation fails as soon as another process has ended.  With NCCL it does not: the GPU waits in a kernel,
the main thread waits for the GPU, and Python runs no signal handler meanwhile.  The sources are in
docs/fault_tolerance.md.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from ltg_mdlm.core.distributed import Ranks

POLL_SECONDS = 0.5

PATIENCE_SECONDS = 10.0
"""How long a process may take to end by itself after another one has failed."""

ANSWER_SECONDS = 20.0
"""How long the processes may take to note SIGTERM.  torchrun kills those that are left after 30 seconds."""


class PeerWatch:
    """A context manager for the time in which the processes of a run wait for each other; all of them must enter it.

    If a process has announced a failure (`Ranks.announce_failure`) and this one does not end within `PATIENCE_SECONDS`,
    this one records the reason and exits with code 1.

    If the first process receives SIGTERM and others do not note this signal within `ANSWER_SECONDS`, it records that
    they have ended.  torchrun sends SIGTERM to the remaining processes when one was killed, and then kills them.
    """

    def __init__(self, ranks: Ranks, record: Callable[[str], None]) -> None:
        """`record` is called with the reason, from the thread, on the first rank only."""
        self._ranks, self._record = ranks, record
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peer-watch", daemon=True)

    def __enter__(self) -> PeerWatch:
        # Python's handlers wait for the main thread, but the number of a signal is written here when it arrives.
        self._arrived, self._arriving = socket.socketpair()
        self._arrived.setblocking(False)
        self._arriving.setblocking(False)
        self._previous = signal.set_wakeup_fd(self._arriving.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        signal.set_wakeup_fd(self._previous)
        self._arrived.close()
        self._arriving.close()

    def _watch(self) -> None:
        failed_at = told_at = None
        while not self._ended.wait(POLL_SECONDS):
            now = time.monotonic()
            if (reason := self._ranks.announced_failure()) is not None:
                failed_at = failed_at or now
                if now - failed_at > PATIENCE_SECONDS:
                    self._end(reason)
            if told_at is None and self._was_told_to_stop():
                told_at = now
                self._ranks.note("told to stop")
            if told_at is not None and now - told_at > ANSWER_SECONDS and self._ranks.is_main:
                silent = self._ranks.without_note("told to stop")
                if silent and reason is None:
                    self._record(
                        f"SIGTERM, and {len(silent)} of {self._ranks.world_size} processes did not answer, the first of"
                        f" them process {silent[0]}: ended, or hangs"
                    )
                return  # either torchrun ends this process, or the main thread stops after its step

    def _was_told_to_stop(self) -> bool:
        with suppress(BlockingIOError):
            return signal.SIGTERM in self._arrived.recv(4096)
        return False

    def _end(self, reason: str) -> None:
        if self._ranks.is_main:
            self._record(reason)
        if self._ranks.local_rank == 0:
            print(f"process {self._ranks.rank} of {self._ranks.world_size} ends: {reason}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # an exit that cleans up would wait for the GPU
