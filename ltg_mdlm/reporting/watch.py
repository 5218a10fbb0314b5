"""The screen of `ltg-mdlm watch`, and the loop that renews it.

How far a run is, from its files.

A curve in characters: every one holds two by four dots, which a terminal over ssh shows without colours.

Drawn here since it is a few lines; a plotting library for terminals would bring a global figure and its own colours.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import parse_yaml
from ltg_mdlm.core.terminal import clock
from ltg_mdlm.reporting.curves import Line, run_line
from ltg_mdlm.reporting.run_table import find_runs, run_status, shows_life
from ltg_mdlm.storage.metrics_file import Curve, MetricsFile
from ltg_mdlm.storage.run_folder import RunFolder, Status

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


_RECENT = 20
"""Logged rows over which the throughput is averaged."""


_SHOWN = (("loss", "objective {:.4f}"), ("valid/bound", "held-out bound {:.4f}"), ("lr", "lr {:.2e}"))


class WatchedRun:
    """A run folder that is looked at again and again."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, RunFolder(path)
        self.metrics = MetricsFile(self.folder.metrics_file)
        self._training: dict[str, Any] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what is new."""
        self._training = self._training or self._read_training()
        self._status: Status | None = self.folder.read_status()
        self.state = run_status(self.folder) if self.path.is_dir() else "gone"
        self.ended = not shows_life(self.folder)
        self.metrics.refresh()

    def _read_training(self) -> dict[str, Any]:
        """The section `training` of its settings; empty before they are written, and if they are damaged."""
        try:
            return dict(parse_yaml(self.folder.read_config() or "")["training"])
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            return {}

    @property
    def step(self) -> int:
        """The last one that is known."""
        logged = self.metrics.last.get("step", 0.0)
        return max(int(logged), self._status.step if self._status else 0)

    @property
    def share(self) -> float | None:
        """Of training that is done; None if it is not known."""
        steps, epochs = self._training.get("max_steps"), self._training.get("epochs")
        if steps:
            return min(self.step / float(steps), 1.0)
        if epochs and "epoch" in self.metrics.last:
            return min(self.metrics.last["epoch"] / float(epochs), 1.0)
        return None

    @property
    def last_step(self) -> int:
        """Where training will end, as far as that can be told; else where it is."""
        return round(self.step / self.share) if self.share else max(self.step, 1)

    @property
    def throughput(self) -> float | None:
        """Tokens per second, lately."""
        curve = self.metrics.curves.get("tokens_per_second")
        known = [value for value in curve.values[-_RECENT:] if math.isfinite(value)] if curve else []
        return statistics.fmean(known) if known else None

    @property
    def seconds_left(self) -> float | None:
        """Of training alone, at the recent throughput."""
        seen = self.metrics.last.get("tokens_seen")
        if not (self.share and self.throughput and seen):
            return None
        return seen * (1 / self.share - 1) / self.throughput

    def lines(self) -> tuple[str, str]:
        """Where it is, and how it does."""
        done = f" of {self.last_step} ({self.share:.0%})" if self.share is not None else ""
        place = f"{self.path.name}  {self.state}  step {self.step}{done}"
        if not self.ended and self.seconds_left is not None:
            place += f"  ETA {clock(self.seconds_left)}"
        last = self.metrics.last
        figures = [form.format(last[key]) for key, form in _SHOWN if key in last]
        if self.throughput is not None:
            figures.append(f"{self.throughput:,.0f} tokens/s")
        if self.metrics.refused:
            figures.append(f"{self.metrics.refused} updates refused")
        if self._status is not None and self._status.reason:
            figures.append(self._status.reason)
        return place, "  ".join(figures) or "nothing logged yet"


_BLANK = 0x2800


_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""What each dot of a character adds to its number: four lines of two."""


_HIGHEST_PLOT = 0.95
"""Values above this quantile are drawn at the upper edge: the first steps would press all others together."""


_LABEL = 8


LEAST_WIDTH = _LABEL + 10
"""Narrower plots say nothing."""


def plot(curve: Curve, last_step: int, width: int, height: int) -> list[str]:
    """Lines of text: the curve between the labels of its axes.

    `height` lines of at most `width` characters, which are `LEAST_WIDTH` or more.
    """
    columns = width - _LABEL - 1
    line = run_line(curve, last_step, 2 * columns)
    low, high, is_cut = _range(line)
    if not low <= high:
        return ["no finite value yet".center(width).rstrip()]
    canvas = characters(_dots(line, low, high, 2 * columns, 4 * (height - 1), last_step))
    top = f"{label(high, _LABEL - 1)}+" if is_cut else label(high, _LABEL)
    labels = [top, *[""] * (height - 3), label(low, _LABEL)]
    drawn = [f"{value:>{_LABEL}}│{text}".rstrip() for value, text in zip(labels, canvas, strict=True)]
    return [*drawn, f"{'0':>{_LABEL}}└{str(last_step).rjust(columns, '─')}"]


def label(value: float, width: int) -> str:
    """The number with as many digits as there is room for, four at most."""
    texts = [f"{value:.{digits}g}" for digits in (4, 3, 2, 1)]
    return next((text for text in texts if len(text) <= width), texts[-1])


def characters(dots: NDArray[np.bool_]) -> list[str]:
    """bool[4 H, 2 W] as H lines of W characters."""
    high, wide = dots.shape[0] // 4, dots.shape[1] // 2
    codes = (dots.reshape(high, 4, wide, 2) * _DOTS[None, :, None, :]).sum(axis=(1, 3))
    return ["".join(chr(_BLANK + code) if code else " " for code in line) for line in codes.tolist()]


def _range(line: Line) -> tuple[float, float, bool]:
    """Lower and upper end of the axis, and whether values lie above it; NaN without a finite value."""
    finite = line.value_P[np.isfinite(line.value_P)]
    if not len(finite):
        return np.nan, np.nan, False
    low, high = float(finite.min()), float(np.quantile(finite, _HIGHEST_PLOT, method="higher"))
    return low, high, bool(finite.max() > high)


def _dots(line: Line, low: float, high: float, wide: int, tall: int, last_step: int) -> NDArray[np.bool_]:
    dots = np.zeros((tall, wide), dtype=np.bool_)
    before: tuple[int, int] | None = None
    for step, value in zip(line.step_P.tolist(), line.value_P.tolist(), strict=True):
        if not np.isfinite(value):
            before = None
            continue
        share = (min(max(value, low), high) - low) / (high - low) if high > low else 0.5
        at = round(step / max(last_step, 1) * (wide - 1)), round((1 - share) * (tall - 1))
        for x, y in _between(before or at, at):
            dots[y, x] = True
        before = at
    return dots


def _between(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Dots of a straight line."""
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for i in range(length + 1):
        yield (
            round(start[0] + (end[0] - start[0]) * i / length),
            round(start[1] + (end[1] - start[1]) * i / length),
        )
