"""Tables on standard output, progress on standard error, and durations.

Progress is a bar on a terminal. In a log, it is a line after `FIRST_SECONDS` and then every `LOG_SECONDS`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

Advance = Callable[[int], None]

FIRST_SECONDS = 5.0
"""Time until the first line of progress in a log; shorter work is silent."""

LOG_SECONDS = 30.0
"""Least time between two further lines."""


def print_table(table: Table) -> None:
    """Print a table folded to the width of the terminal; in a file or a pipe, every record is one line."""
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    console.print(table, highlight=False)


def byte_progress(title: str, total: int | None, *, show: bool) -> AbstractContextManager[Advance]:
    """Progress; the context yields a function that adds a number of bytes.  `total` is None if unknown."""
    return _progress(title, total, (DownloadColumn(), TransferSpeedColumn()), show)


def count_progress(title: str, total: int, *, show: bool = True) -> AbstractContextManager[Advance]:
    """Progress; the context yields a function that adds a number of finished items."""
    return _progress(title, total, (MofNCompleteColumn(),), show)


def share_progress(title: str, total: int, *, show: bool = True) -> AbstractContextManager[Advance]:
    """Progress in per cent; the context yields a function that adds an amount of finished work."""
    return _progress(title, total, (TaskProgressColumn(),), show)


def is_live(console: Console) -> bool:
    """Whether lines can be redrawn: not in a log, on a dumb terminal, or where FORCE_COLOR asks for colours only."""
    return console.is_interactive and not (os.environ.get("FORCE_COLOR") and not console.file.isatty())


class _LosableStream:
    """A text stream that drops what is printed once a write has failed: a pipe was closed, or the disk is full."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._is_lost = stream, name, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._is_lost:
            return
        try:
            action()
        except OSError as error:
            self._is_lost = True
            with suppress(OSError):  # not a file
                # Python writes what is left in its buffer when it exits, and would fail again.
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            print(f"note: {self._name} is lost ({error}); the run continues without it", file=sys.stderr, flush=True)


@contextmanager
def losable_output() -> Iterator[None]:
    """Work that continues if standard output or standard error can no longer be written, and prints nothing then."""
    before = sys.stdout, sys.stderr
    # Without a file descriptor at the start of Python, a stream is None.
    sys.stdout, sys.stderr = (
        cast("TextIO", stream and _LosableStream(stream, name))
        for stream, name in zip(before, ("stdout", "stderr"), strict=True)
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def busy(title: str, *, show: bool = True) -> Iterator[None]:
    """Progress of work that cannot be counted: a spinner on a terminal; in a log, lines with the time so far.

    Not inside of other progress: a terminal shows one at a time.
    """
    console = Console(stderr=True)
    if not show:
        yield
    elif is_live(console):
        with console.status(title):
            yield
    else:
        started, done = time.monotonic(), threading.Event()

        def report() -> None:
            wait = FIRST_SECONDS
            while not done.wait(wait):
                print(f"{title}: {clock(time.monotonic() - started)} so far", file=sys.stderr, flush=True)
                wait = LOG_SECONDS

        reporter = threading.Thread(target=report, name="progress", daemon=True)
        reporter.start()
        try:
            yield
        finally:
            done.set()
            reporter.join()


@contextmanager
def _progress(title: str, total: int | None, columns: tuple[ProgressColumn, ...], show: bool) -> Iterator[Advance]:
    layout = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    console = Console(stderr=True)
    if show and not is_live(console):
        yield _log_progress(title, total)
        return
    with Progress(*layout, console=console, disable=not show) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
        progress.update(task, completed=total)  # blank lines of a file are not counted, so the sum may be smaller


def _log_progress(title: str, total: int | None) -> Advance:
    """A function that adds to what is done, and sometimes prints a line with the share and the remaining time."""
    started = time.monotonic()
    due = started + FIRST_SECONDS
    done = 0
    # What is done, and the time, after the first part, which is slow: it warms up.
    first: tuple[int, float] | None = None

    def advance(count: int) -> None:
        nonlocal done, due, first
        done += count
        now = time.monotonic()
        first = first or (done, now)
        if now < due or not total or not 0 < done < total:
            return
        due = now + LOG_SECONDS
        when = f"{clock(now - started)} so far"
        if done > first[0]:
            when = f"about {clock((now - first[1]) / (done - first[0]) * (total - done))} left"
        print(f"{title}: {100 * done / total:.0f} %, {when}", file=sys.stderr, flush=True)

    return advance


def clock(seconds: float) -> str:
    """A duration as H:MM:SS, or M:SS below an hour."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
