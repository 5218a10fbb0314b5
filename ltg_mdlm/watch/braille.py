"""A curve in characters: every one holds two by four dots, which a terminal over ssh shows without colours.

Drawn here since it is a few lines; a plotting library for terminals would bring a global figure and its own colours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.curves import Line, run_line
from ltg_mdlm.metrics_file import Curve

_BLANK = 0x2800
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""What each dot of a character adds to its number: four lines of two."""
_HIGHEST = 0.95
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
    low, high = float(finite.min()), float(np.quantile(finite, _HIGHEST, method="higher"))
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
