"""Progress bars on standard error, on terminals only.

Tables on the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def byte_progress(title: str, total: int | None, *, show: bool) -> Iterator[Advance]:
    """A bar that the yielded function moves on by a number of bytes; `total` None if it is not known."""
    with _bar(title, total, (DownloadColumn(), TransferSpeedColumn()), show) as advance:
        yield advance


@contextmanager
def count_progress(title: str, total: int, *, show: bool = True) -> Iterator[Advance]:
    """A bar that the yielded function moves on by a number of things done."""
    with _bar(title, total, (MofNCompleteColumn(),), show) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int | None, columns: tuple[ProgressColumn, ...], show: bool) -> Iterator[Advance]:
    layout = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*layout, console=console, disable=not (show and console.is_terminal)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
        progress.update(task, completed=total)  # blank lines in files are no text, so the sum may stay below


def print_table(table: Table) -> None:
    """Folded to a terminal's width; in a file or a pipe, every record is one line."""
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    console.print(table, highlight=False)


def clock(seconds: float) -> str:
    """H:MM:SS, or M:SS below an hour."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
