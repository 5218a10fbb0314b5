"""Output on a terminal: tables on standard output, progress bars on standard error, and durations."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

Advance = Callable[[int], None]

LOG_SECONDS = 30.0
"""Seconds between two lines about the progress where standard error is not a terminal."""


def print_table(table: Table) -> None:
    """Print a table folded to the width of the terminal; in a file or a pipe, every record is one line."""
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    console.print(table, highlight=False)


def byte_progress(title: str, total: int, *, show: bool) -> AbstractContextManager[Advance]:
    """A progress bar, or lines in a log; the context yields a function that adds a number of bytes."""
    if show and not sys.stderr.isatty():
        return _logged_progress(title, total)
    return _progress(title, total, (DownloadColumn(), TransferSpeedColumn()), show)


def count_progress(title: str, total: int, *, show: bool = True) -> AbstractContextManager[Advance]:
    """A progress bar; the context yields a function that adds a number of finished items."""
    return _progress(title, total, (MofNCompleteColumn(),), show)


@contextmanager
def _logged_progress(title: str, total: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= LOG_SECONDS:
            last = now
            left = (total - done) / done * (now - start) if done else 0.0
            print(
                f"{title}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {done / 1e6 / (now - start):.1f} MB/s,"
                f" {clock(left)} left",
                file=sys.stderr,
                flush=True,
            )

    yield advance


@contextmanager
def _progress(title: str, total: int | None, columns: tuple[ProgressColumn, ...], show: bool) -> Iterator[Advance]:
    layout = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*layout, console=console, disable=not (show and console.is_terminal)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
        progress.update(task, completed=total)  # blank lines of a file are not counted, so the sum may be smaller


def clock(seconds: float) -> str:
    """A duration as H:MM:SS, or M:SS below an hour."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
