"""Reduction of logged curves to lines that can be drawn, without losing extreme values.

The axis of steps is divided into `BINS` bins. The line of a run connects the means of the bins, and its band reaches
from their minimum to their maximum; if no bin has more than one value, the line is the curve itself. The line of
several seeds connects the means over the runs, with a band of one standard deviation on both sides.

Shapes: N logged values, P bins with a value, R runs, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.storage.metrics_file import Curve

BINS = 200
"""Bins of the axis of steps."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """The line and the band of a group of runs."""

    step_P: Floats
    value_P: Floats
    """NaN if a bin has no finite value, which interrupts the line."""
    low_P: Floats
    high_P: Floats
    seeds: int
    """Number of runs."""


def run_line(curve: Curve, last_step: int, bins: int = BINS) -> Line:
    """Means and extremes of a run in equal bins of the steps 0 to `last_step`."""
    step_N, value_N, low_N, high_N, weight_N = curve.columns()
    parts, bin_N = np.unique(_bin_of(step_N, last_step, bins), return_inverse=True)
    known, p = weight_N > 0, len(parts)
    step_P = np.bincount(bin_N, step_N, p) / np.bincount(bin_N, minlength=p)
    weight_P = np.bincount(bin_N, weight_N, p)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        value_P = np.bincount(bin_N[known], value_N[known] * weight_N[known], p) / weight_P
    low_P, high_P = np.full(p, np.inf), np.full(p, -np.inf)
    np.minimum.at(low_P, bin_N[known], low_N[known])
    np.maximum.at(high_P, bin_N[known], high_N[known])
    low_P[weight_P == 0] = high_P[weight_P == 0] = np.nan
    return Line(step_P, value_P, low_P, high_P, seeds=1)


def group_line(curves: Sequence[Curve], last_step: int, bins: int = BINS) -> Line:
    """The line of one run, or of several runs that differ in their seed; `curves` is not empty."""
    lines = [run_line(curve, last_step, bins) for curve in curves]
    if len(lines) == 1:
        return lines[0]
    step_RB, value_RB = (np.full((len(lines), bins), np.nan) for _ in range(2))
    for r, line in enumerate(lines):
        place = _bin_of(line.step_P, last_step, bins)
        step_RB[r, place], value_RB[r, place] = line.step_P, line.value_P
    kept = ~np.isnan(step_RB).all(axis=0)
    step_P, (value_P, deviation_P) = _mean(step_RB[:, kept])[0], _mean(value_RB[:, kept])
    return Line(step_P, value_P, value_P - deviation_P, value_P + deviation_P, seeds=len(lines))


def _bin_of(step_N: Floats, last_step: int, bins: int) -> NDArray[np.int64]:
    place_N: NDArray[np.int64] = np.clip(step_N * bins / max(last_step, 1), 0, bins - 1).astype(np.int64)
    return place_N


def _mean(value_RP: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation over the runs that have a value; NaN and 0 if none has."""
    n_P = (~np.isnan(value_RP)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean_P = np.nansum(value_RP, axis=0) / np.where(n_P == 0, np.nan, n_P)
    square_P = np.nansum((value_RP - mean_P) ** 2, axis=0)
    return mean_P, np.sqrt(square_P / np.maximum(n_P - 1, 1))
