"""`ltg-mdlm watch`: the progress and the curves of runs in the terminal, read from their files."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import plotext  # type: ignore[import-untyped]
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import parse_yaml
from ltg_mdlm.core.terminal import clock, is_live
from ltg_mdlm.reporting.curves import run_line
from ltg_mdlm.reporting.run_table import find_runs, run_status, shows_life
from ltg_mdlm.storage.metrics_file import Curve, MetricsFile, damage
from ltg_mdlm.storage.run_folder import RunFolder, Status

METRICS = ("loss", "valid/bound")
"""Metrics that are drawn by default."""

_THROUGHPUT = "tokens_per_second"

FORMATS = (("loss", "objective {:.4f}"), ("valid/bound", "held-out bound {:.4f}"), ("lr", "lr {:.2e}"))
"""Metrics whose last values are printed above the plots."""

RECENT_ROWS = 20
"""Logged rows over which the throughput is averaged."""

TEXT_LINES = 3
"""Lines of every run in addition to its plots: two lines of text and an empty one."""

PLOT_WIDTH = 36
"""Minimum width of plots that are drawn side by side."""

MIN_WIDTH = 18
"""No plots are drawn in a narrower terminal."""

MIN_HEIGHT, MAX_HEIGHT = 5, 13
"""Lines of a plot, with its title."""

LABEL_WIDTH = 8

TOP_QUANTILE = 0.95
"""Values above this quantile are drawn at the upper edge, since the first steps would compress all others."""


def watch(paths: Sequence[Path], metrics: Sequence[str], every: float, *, once: bool) -> None:
    """Show the runs, updated `every` so many seconds, until all of them have ended.

    With `once`, or if the output is not a terminal, the current state is printed once. Raises `UserError` if a path
    contains no run.
    """
    console = Console()
    watched = Watch(paths, metrics)
    if once or not is_live(console):
        console.print(watched.screen(console.width, None))
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
        while True:
            live.update(watched.screen(console.width, console.height), refresh=True)
            if watched.ended:
                return
            time.sleep(every)
            watched.refresh()


class Watch:
    """Runs that are shown together, including runs that start later, as in a sweep."""

    def __init__(self, paths: Sequence[Path], metrics: Sequence[str] = METRICS) -> None:
        """Raises `UserError` if a path contains no run."""
        self._paths, self._metrics = paths, metrics
        self._runs = {path: WatchedRun(path, metrics) for path in find_runs(paths)}

    def refresh(self) -> None:
        """Read what is new and find new runs. A deleted run keeps its last state."""
        for run in self._runs.values():
            run.refresh()
        for folder in self._paths:
            with suppress(UserError):
                known = [path for path in self._runs if path.exists()]  # first, so that links to them are not new
                new = [path for path in find_runs([*known, folder]) if path not in self._runs]
                self._runs |= {path: WatchedRun(path, self._metrics) for path in new}

    @property
    def ended(self) -> bool:
        """Whether no process trains any of the runs."""
        return all(run.ended for run in self._runs.values())

    def screen(self, width: int, height: int | None) -> RenderableType:
        """Text of at most `width` columns. Plots are drawn only if they fit into `height` lines; None is no limit."""
        runs = list(self._runs.values())
        room = None if height is None else height // len(runs) - TEXT_LINES
        return Group(*(part for run in runs for part in self._parts(run, width, room)))

    def _parts(self, run: WatchedRun, width: int, room: int | None) -> Iterator[Text]:
        """The lines of one run, of which the plots take at most `room`."""
        progress, figures = run.lines()
        yield Text(progress, style="bold", overflow="ellipsis", no_wrap=True)
        yield Text(figures, overflow="ellipsis", no_wrap=True)
        curves = run.metrics.curves
        missing = [name for name in self._metrics if name not in curves and name not in METRICS]
        if missing and run.metrics.names:
            text = f"not logged: {', '.join(missing)}; logged metrics: {', '.join(run.metrics.names)}"
            yield Text(text, overflow="ellipsis", no_wrap=room is not None)
            room = room and room - 1

        shown = [(name, curves[name]) for name in self._metrics if name in curves]
        columns = max(1, width // PLOT_WIDTH)
        rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
        if room is not None:
            rows = rows[: max(0, room // MIN_HEIGHT)]
        if not rows or width < MIN_WIDTH:
            return
        height = MAX_HEIGHT if room is None else min(room // len(rows), MAX_HEIGHT)
        for row in rows:
            for line in plot(row, run.last_step, width, height):
                yield Text(line, overflow="crop", no_wrap=True)
        yield Text()


class WatchedRun:
    """The state of one run, read from its folder."""

    def __init__(self, path: Path, metrics: Sequence[str] = METRICS) -> None:
        """With the curves of these metrics."""
        self.path, self.folder = path, RunFolder(path)
        self.metrics = MetricsFile(self.folder.metrics_file, {*metrics, _THROUGHPUT})
        self._training: dict[str, float] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what the run has written since the last call."""
        if not self._training:
            # The settings are not written yet, or damaged.
            with suppress(Exception):
                training = parse_yaml(self.folder.read_config() or "", str(self.folder.config_file))["training"]
                numbers = {key: training[key] for key in ("max_steps", "epochs") if training[key] is not None}
                self._training = {key: float(value) for key, value in numbers.items() if 0 < value < math.inf}
        self._status: Status | None = self.folder.read_status()
        self.state = run_status(self.folder) if self.path.is_dir() else "gone"
        self.ended = not shows_life(self.folder)
        self.metrics.refresh()

    @property
    def step(self) -> int:
        """Last step that the run has recorded."""
        logged = self.metrics.last.get("step", 0.0)
        return max(int(logged), self._status.step if self._status else 0)

    @property
    def fraction_done(self) -> float | None:
        """Fraction of training that is done; None if it is unknown."""
        steps, epochs = self._training.get("max_steps"), self._training.get("epochs")
        if steps:
            return min(self.step / steps, 1.0)
        epoch = self.metrics.last.get("epoch", math.nan)
        return min(max(epoch, 0.0) / epochs, 1.0) if epochs and math.isfinite(epoch) else None

    @property
    def last_step(self) -> int:
        """Estimated last step of training; the current step if that is unknown."""
        estimate = self.step / self.fraction_done if self.fraction_done else math.inf
        return max(round(estimate) if math.isfinite(estimate) else self.step, 1)

    @property
    def throughput(self) -> float | None:
        """Tokens per second, averaged over the last logged rows; None if it is unknown."""
        curve = self.metrics.curves.get(_THROUGHPUT)
        known = [value for value in curve.values[-RECENT_ROWS:] if math.isfinite(value)] if curve else []
        return statistics.fmean(known) if known else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds of training that are left at this throughput, without validation."""
        seen = self.metrics.last.get("tokens_seen")
        if not (self.fraction_done and self.throughput and seen):
            return None
        left = seen * (1 / self.fraction_done - 1) / self.throughput
        return left if math.isfinite(left) else None

    def lines(self) -> tuple[str, str]:
        """Two lines: the progress of the run, and its last metrics."""
        done = f" of {self.last_step} ({self.fraction_done:.0%})" if self.fraction_done is not None else ""
        progress = f"{self.path.name}  {self.state}  step {self.step}{done}"
        if not self.ended and self.seconds_left is not None:
            progress += f"  ETA {clock(self.seconds_left)}"
        last = self.metrics.last
        figures = [form.format(last[key]) for key, form in FORMATS if key in last]
        if self.throughput is not None:
            figures.append(f"{self.throughput:,.0f} tokens/s")
        if self.metrics.unreadable:
            figures.append(damage(self.metrics.unreadable))
        if self.metrics.refused:
            figures.append(f"{self.metrics.refused} updates refused")
        if self._status is not None and self._status.reason:
            figures.append(self._status.reason)
        return progress, "  ".join(figures) or "nothing logged yet"


def plot(curves: Sequence[tuple[str, Curve]], last_step: int, width: int, height: int) -> list[str]:
    """Draw named curves side by side, as `height` lines of at most `width` characters.

    The steps reach from 0 to `last_step`. A `+` after the upper label says that some values are larger.
    """
    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, height)
    if len(curves) > 1:
        figure.subplots(1, len(curves))
    each = width // len(curves)
    for column, (name, curve) in enumerate(curves, start=1):
        panel = figure.subplot(1, column) if len(curves) > 1 else figure
        panel.theme("colorless")
        panel.title(name[:each])
        panel.axes(False, axis="x", side="upper").axes(False, axis="y", side="right")
        panel.ruler("x").lim(0, last_step).ticks([0, last_step], ["0", str(last_step)])
        line = run_line(curve, last_step, 2 * each)  # a character has two columns of dots
        finite = line.value_P[np.isfinite(line.value_P)]
        if not len(finite):
            panel.axes(False)
            panel.ruler().ticks([], [])
            panel.label("no finite value yet", axis="x")
            continue
        low, high = float(finite.min()), float(np.quantile(finite, TOP_QUANTILE, method="higher"))
        top = f"{label(high, LABEL_WIDTH - 1)}+" if finite.max() > high else label(high, LABEL_WIDTH)
        ticks = {0.0: label(low, LABEL_WIDTH), 1.0: top} if low < high else {0.5: label(low, LABEL_WIDTH)}
        panel.ruler("y").lim(0, 1).ticks(list(ticks), [f"{text:>{LABEL_WIDTH}}" for text in ticks.values()])
        # Values are scaled to the axis here: plotext aborts the process if one is not finite or overflows.
        edges = np.flatnonzero(np.diff(np.isfinite(line.value_P))) + 1
        # So are steps: for one far beyond the axis, as a damaged file has, it runs out of memory.
        shown_P = line.step_P.clip(0, last_step)
        for step_P, value_P in zip(np.split(shown_P, edges), np.split(line.value_P, edges), strict=True):
            if not np.isfinite(value_P[0]):
                continue
            half_P = value_P.clip(low, high) / 2
            height_P = (half_P - low / 2) / (high / 2 - low / 2) if low < high else np.full(len(half_P), 0.5)
            panel.draw(panel.signal(step_P.tolist(), height_P.tolist(), marker="braille").lines())
    text: str = figure.build().string(colorless=True)
    return [line.rstrip() for line in text.rstrip("\n").split("\n")]


def label(value: float, width: int) -> str:
    """The number with up to four significant digits, as many as fit into `width` characters."""
    texts = [f"{value:.{digits}g}" for digits in (4, 3, 2, 1)]
    return next((text for text in texts if len(text) <= width), texts[-1])
