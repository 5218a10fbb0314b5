"""The screen of `ltg-mdlm watch`, and the loop that renews it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ltg_mdlm.report import find_runs
from ltg_mdlm.watch.braille import plot
from ltg_mdlm.watch.progress import WatchedRun

METRICS = ("loss", "valid/bound")
_NARROWEST, _LOWEST, _HIGHEST = 36, 4, 12
_GAP = 2


class Watch:
    """Runs that are looked at together; sweeps may grow meanwhile."""

    def __init__(self, paths: Sequence[Path], metrics: Sequence[str] = METRICS) -> None:
        """Raises UserError for a path that holds no run."""
        self._paths, self._metrics = paths, metrics
        self._runs: dict[Path, WatchedRun] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what is new, runs that have begun since included."""
        for run in self._runs.values():
            run.refresh()
        for path in find_runs(self._paths):
            if path not in self._runs:
                self._runs[path] = WatchedRun(path)

    @property
    def ended(self) -> bool:
        """Whether no process trains in any of them."""
        return all(run.ended for run in self._runs.values())

    def screen(self, width: int, height: int | None) -> RenderableType:
        """Text of at most `width` columns; plots only as far as `height` has room (None: as much as is wanted)."""
        runs = list(self._runs.values())
        each = _HIGHEST if height is None else min(height // len(runs) - 4, _HIGHEST)
        return Group(*(part for run in runs for part in self._parts(run, width, each)))

    def _parts(self, run: WatchedRun, width: int, height: int) -> Iterable[Text]:
        place, figures = run.lines()
        yield Text(place, style="bold", overflow="ellipsis", no_wrap=True)
        yield Text(figures, overflow="ellipsis", no_wrap=True)
        if height >= _LOWEST:
            for line in self._plots(run, width, height):
                yield Text(line, overflow="crop", no_wrap=True)
            yield Text()

    def _plots(self, run: WatchedRun, width: int, height: int) -> Iterable[str]:
        """The plots beside each other, as many as find room; of metrics that the run has logged."""
        shown = [(name, run.metrics.curves[name]) for name in self._metrics if name in run.metrics.curves]
        shown = shown[: max(1, (width + _GAP) // (_NARROWEST + _GAP))]
        if not shown:
            return []
        each = (width - _GAP * (len(shown) - 1)) // len(shown)
        blocks = [[name.center(each), *plot(curve, run.last_step, each, height)] for name, curve in shown]
        return (
            (" " * _GAP).join(part.ljust(each) for part in parts).rstrip()
            for parts in zip_longest(*blocks, fillvalue="")
        )


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
