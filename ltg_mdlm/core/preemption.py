"""Signals that ask a process to stop.

A run saves a checkpoint after the current step and ends as preempted.  Before that, and in other commands, Ctrl-C ends
the process with one line.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""SIGHUP arrives when the terminal is closed, and is left alone if it is ignored, as with nohup."""

REPEAT_SECONDS = 1.0
"""A later SIGINT is a second Ctrl-C.  An earlier one repeats the first: torchrun forwards the terminal's signal."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect it."""


class Stopped(Exception):
    """A stop signal arrived before training and may have ended a compiler, whose failure is therefore ignored."""


class StopRequest:
    """A context manager that records stop signals.  A second Ctrl-C raises KeyboardInterrupt.

    While `can_save` is False, the first Ctrl-C does: before training begins there is nothing to save.
    """

    def __init__(self, *, can_save: bool = True) -> None:
        self.can_save = can_save
        self.signal_name: str | None = None
        """Name of the first signal; None if there was none."""
        self._received_at = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        ignores_hangup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        handled = [s for s in STOP_SIGNALS if not (s is signal.SIGHUP and ignores_hangup)]
        self._previous = {s: signal.signal(s, self._handle) for s in handled}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and not self.can_save:
            raise KeyboardInterrupt
        now = time.monotonic()
        if self.signal_name is None:
            self.signal_name, self._received_at = signal.Signals(number).name, now
            if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
                # A handler must not use the console: it may have interrupted it in the middle of a line.
                with suppress(OSError):  # Ctrl-C has also ended the program that read the output
                    os.write(2, b"\nstopping after this step; Ctrl-C again to stop at once, without saving\n")
        elif number == signal.SIGINT and now - self._received_at > REPEAT_SECONDS:
            raise KeyboardInterrupt

    @property
    def requested(self) -> bool:
        """Whether a stop signal was received."""
        return self.signal_name is not None


def end_on_ctrl_c() -> None:
    """From now on, a Ctrl-C that nothing catches, such as one during imports, ends the process with one line."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            previous(kind, error, trace)
            return
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(EXIT_INTERRUPTED)  # Python would end the process by the signal, without an exit code

    sys.excepthook = hook
