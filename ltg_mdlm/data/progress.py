"""Progress bars over bytes of text, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def byte_progress(title: str, total: int | None, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar that the yielded function moves on by a number of bytes; `total` None if it is not known."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
        progress.update(task, completed=total)  # blank lines in files are no text, so the sum may stay below
