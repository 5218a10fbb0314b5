"""Signals that ask a run to stop: it saves after the current step and says so in its status."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


INSISTING_SECONDS = 1.0
"""A Ctrl-C that comes so long after the first is a second one; torchrun repeats the terminal's within milliseconds."""


class StopRequest:
    """Remembers that a stop signal came, however often; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        """The first signal."""
        self._came = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        self._previous = {s: signal.signal(s, self._handle) for s in STOP_SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal_name is None:
            self.signal_name, self._came = signal.Signals(number).name, now
            if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
                # The console may be in the middle of a line of its own, which a handler must not disturb.
                os.write(2, b"\nstopping after this step; Ctrl-C again to stop at once, without saving\n")
        elif number == signal.SIGINT and now - self._came > INSISTING_SECONDS:
            raise KeyboardInterrupt

    @property
    def requested(self) -> bool:
        """A signal has come."""
        return self.signal_name is not None
