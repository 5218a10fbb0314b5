"""Reduction of logged curves to lines that can be drawn, without losing extreme values.

The axis of steps is divided into `BINS` bins. The line of a run connects the means of the bins, and its band reaches
from their minimum to their maximum; if no bin has more than one value, the line is the curve itself.

Shapes: N logged values, P bins with a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.storage.metrics_file import Curve

BINS = 200
"""Bins of the axis of steps."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """The line and the band of a run."""

    step_P: Floats
    value_P: Floats
    """NaN if a bin has no finite value, which interrupts the line."""
    low_P: Floats
    high_P: Floats


def run_line(curve: Curve, last_step: int, bins: int = BINS) -> Line:
    """Means and extremes of a run in equal bins of the steps 0 to `last_step`."""
    step_N, value_N, low_N, high_N, weight_N = curve.columns()
    bin_N = np.clip(step_N * bins / max(last_step, 1), 0, bins - 1).astype(np.int64)
    parts, bin_N = np.unique(bin_N, return_inverse=True)
    known, p = weight_N > 0, len(parts)
    step_P = np.bincount(bin_N, step_N, p) / np.bincount(bin_N, minlength=p)
    weight_P = np.bincount(bin_N, weight_N, p)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        value_P = np.bincount(bin_N[known], value_N[known] * weight_N[known], p) / weight_P
    low_P, high_P = np.full(p, np.inf), np.full(p, -np.inf)
    np.minimum.at(low_P, bin_N[known], low_N[known])
    np.maximum.at(high_P, bin_N[known], high_N[known])
    low_P[weight_P == 0] = high_P[weight_P == 0] = np.nan
    return Line(step_P, value_P, low_P, high_P)
