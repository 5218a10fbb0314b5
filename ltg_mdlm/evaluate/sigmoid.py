"""Sigmoid curves fitted to points.  Suffixes: N points, P free parameters, G curves of a grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ltg_mdlm.evaluate.correlation import Floats

_GRID = 81
"""Middles and slopes that are tried first."""
_STEEPEST = 200.0
"""Of them, times the range of x; a steeper curve is a step between two points."""
_STEPS = 200


class Sigmoid(NamedTuple):
    """low + (high - low) / (1 + exp(-slope (x - middle))), with a positive slope; it falls if high < low."""

    low: float
    high: float
    middle: float
    """x of the value halfway between the asymptotes"""
    slope: float


def fit_sigmoid(x_N: Floats, y_N: Floats, asymptotes: tuple[float, float] | None = None) -> Sigmoid:
    """The sigmoid with the smallest sum of squared errors, with free or with given asymptotes.

    The best curve of a grid over middles within the range of x and slopes (in each, free asymptotes are a linear
    regression) is refined by the method of Levenberg and Marquardt.
    """
    start, span = float(x_N.min()), float(np.ptp(x_N))
    assert span > 0, "all x are equal"
    unit_N = (x_N - start) / span
    parameters_4 = _refine(_best_of_grid(unit_N, y_N, asymptotes), unit_N, y_N, free=asymptotes is None)
    low, high, middle, log_slope = parameters_4.tolist()
    return Sigmoid(low, high, start + span * middle, float(np.exp(log_slope)) / span)


def _best_of_grid(x_N: Floats, y_N: Floats, asymptotes: tuple[float, float] | None) -> Floats:
    """[low, high, middle, log slope] for x in 0..1."""
    middle_G = np.linspace(0, 1, _GRID).repeat(_GRID)
    log_slope_G = np.tile(np.linspace(0, np.log(_STEEPEST), _GRID), _GRID)
    shape_GN = _logistic(np.exp(log_slope_G)[:, None] * (x_N - middle_G[:, None]))
    if asymptotes is None:
        varying_GN = shape_GN - shape_GN.mean(1, keepdims=True)
        rise_G = varying_GN @ y_N / np.maximum(np.square(varying_GN).sum(1), np.finfo(np.float64).tiny)
        low_G = y_N.mean() - rise_G * shape_GN.mean(1)
    else:
        low_G, rise_G = np.full(_GRID**2, asymptotes[0]), np.full(_GRID**2, asymptotes[1] - asymptotes[0])
    error_G = np.square(low_G[:, None] + rise_G[:, None] * shape_GN - y_N).sum(1)
    best = int(error_G.argmin())
    return np.array([low_G[best], low_G[best] + rise_G[best], middle_G[best], log_slope_G[best]])


def _refine(parameters_4: Floats, x_N: Floats, y_N: Floats, free: bool) -> Floats:
    """Damped Gauss-Newton steps, of which only those that lower the error are made; the asymptotes move if `free`."""
    first = 0 if free else 2
    error_N, slope_N4 = _error_and_slope(parameters_4, x_N, y_N)
    damping = 1e-3
    for _ in range(_STEPS):
        slope_NP = slope_N4[:, first:]
        curvature_PP = slope_NP.T @ slope_NP
        damped_PP = curvature_PP + damping * np.diag(curvature_PP.diagonal() + 1e-12)
        tried_4 = parameters_4.copy()
        tried_4[first:] -= np.linalg.solve(damped_PP, slope_NP.T @ error_N)
        tried_error_N, tried_slope_N4 = _error_and_slope(tried_4, x_N, y_N)
        if tried_error_N @ tried_error_N < error_N @ error_N:
            parameters_4, error_N, slope_N4 = tried_4, tried_error_N, tried_slope_N4
            damping = max(damping / 5, 1e-12)
        else:
            damping *= 5
            if damping > 1e9:  # steps no longer change a float
                break
    return parameters_4


def _error_and_slope(parameters_4: Floats, x_N: Floats, y_N: Floats) -> tuple[Floats, Floats]:
    """float[N], and its derivatives float[N, 4]."""
    low, high, middle, log_slope = parameters_4
    slope = np.exp(np.clip(log_slope, -20, 20))
    shape_N = _logistic(slope * (x_N - middle))
    bend_N = (high - low) * shape_N * (1 - shape_N) * slope
    derivatives_N4 = np.stack([1 - shape_N, shape_N, -bend_N, bend_N * (x_N - middle)], axis=1)
    return low + (high - low) * shape_N - y_N, derivatives_N4


def _logistic(x: Floats) -> Floats:
    value: Floats = 0.5 * (1 + np.tanh(x / 2))
    return value
