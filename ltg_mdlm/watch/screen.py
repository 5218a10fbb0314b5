"""The screen of `ltg-mdlm watch`, and the loop that renews it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ltg_mdlm.errors import UserError
from ltg_mdlm.metrics_file import Curve
from ltg_mdlm.report import find_runs
from ltg_mdlm.watch.braille import LEAST_WIDTH, plot
from ltg_mdlm.watch.progress import WatchedRun

METRICS = ("loss", "valid/bound")
_NARROWEST, _LOWEST, _HIGHEST = 36, 4, 12
_GAP = 2
_LINES = 3
"""Of every run, beside its plots: two of text and a blank one."""


class Watch:
    """Runs that are looked at together; sweeps may grow meanwhile."""

    def __init__(self, paths: Sequence[Path], metrics: Sequence[str] = METRICS) -> None:
        """Raises UserError for a path that holds no run."""
        self._paths, self._metrics = paths, metrics
        self._runs = {path: WatchedRun(path) for path in find_runs(paths)}

    def refresh(self) -> None:
        """Read what is new, runs that have begun since included; those that are gone stay as they were last seen."""
        for run in self._runs.values():
            run.refresh()
        for folder in self._paths:
            with suppress(UserError):
                new = [path for path in find_runs([folder]) if path not in self._runs]
                self._runs |= {path: WatchedRun(path) for path in new}

    @property
    def ended(self) -> bool:
        """Whether no process trains in any of them."""
        return all(run.ended for run in self._runs.values())

    def screen(self, width: int, height: int | None) -> RenderableType:
        """Text of at most `width` columns; plots only as far as `height` has room (None: as much as is wanted)."""
        runs = list(self._runs.values())
        room = None if height is None else height // len(runs) - _LINES
        return Group(*(part for run in runs for part in self._parts(run, width, room)))

    def _parts(self, run: WatchedRun, width: int, room: int | None) -> Iterable[Text]:
        place, figures = run.lines()
        yield Text(place, style="bold", overflow="ellipsis", no_wrap=True)
        yield Text(figures, overflow="ellipsis", no_wrap=True)
        if missing := self._missing(run):
            yield Text(missing, overflow="ellipsis", no_wrap=room is not None)
            room = room and room - 1
        for line in self._plots(run, width, room):
            yield Text(line, overflow="crop", no_wrap=True)

    def _missing(self, run: WatchedRun) -> str:
        """Which metrics were asked for that the run has not logged, and which there are."""
        known = run.metrics.curves
        missing = [name for name in self._metrics if name not in known and name not in METRICS]
        return f"not logged: {', '.join(missing)}; there are {', '.join(known)}" if missing and known else ""

    def _plots(self, run: WatchedRun, width: int, room: int | None) -> Iterator[str]:
        """Lines with plots of what the run has logged, beside and below each other, as many as find room."""
        shown = [(name, run.metrics.curves[name]) for name in self._metrics if name in run.metrics.curves]
        beside = max(1, (width + _GAP) // (_NARROWEST + _GAP))
        rows = [shown[start : start + beside] for start in range(0, len(shown), beside)]
        if room is not None:
            rows = rows[: max(0, room // (_LOWEST + 1))]
        if not rows or width < LEAST_WIDTH:
            return
        height = _HIGHEST if room is None else min(room // len(rows) - 1, _HIGHEST)
        for row in rows:
            yield from _beside_each_other(row, run.last_step, width, height)
        yield ""


def _beside_each_other(curves: Sequence[tuple[str, Curve]], last_step: int, width: int, height: int) -> Iterator[str]:
    """The lines of plots of equal width, each below its name."""
    each = (width - _GAP * (len(curves) - 1)) // len(curves)
    blocks = [[name[:each].center(each), *plot(curve, last_step, each, height)] for name, curve in curves]
    for parts in zip_longest(*blocks, fillvalue=""):
        yield (" " * _GAP).join(part.ljust(each) for part in parts).rstrip()


def watch(paths: Sequence[Path], metrics: Sequence[str], every: float, *, once: bool) -> None:
    """Show the runs until all have ended; what was last seen stays on the screen.

    Where the output is no terminal, and with `once`, it is printed once.  Raises UserError for a path without runs.
    """
    console = Console()
    watched = Watch(paths, metrics)
    if once or not console.is_terminal:
        console.print(watched.screen(console.width, None))
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
        while True:
            live.update(watched.screen(console.width, console.height), refresh=True)
            if watched.ended:
                return
            time.sleep(every)
            watched.refresh()
