"""Correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def pearson(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> float:
    """Linear correlation; NaN if either does not vary, or there are fewer than two points."""
    x_N, y_N = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x_N) < 2 or np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return math.nan
    dx_N, dy_N = x_N - x_N.mean(), y_N - y_N.mean()
    return float(dx_N @ dy_N / math.sqrt((dx_N @ dx_N) * (dy_N @ dy_N)))


def spearman(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> float:
    """Rank correlation, ties sharing their mean rank; NaN as for `pearson`."""
    return pearson(ranks(x), ranks(y))


def ranks(values: Sequence[float] | Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, group_N, count_G = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last_G = np.cumsum(count_G)
    mean_G: Floats = last_G - (count_G - 1) / 2
    return mean_G[group_N]
