"""Explained variance of least-squares regressions.  Suffixes: N rows, P predictors."""

from __future__ import annotations

import math

import numpy as np

from ltg_mdlm.evaluate.correlation import Floats


def explained_by_last(predictors_NP: Floats, target_N: Floats) -> float:
    """The share of the variance that all predictors but the last leave unexplained, which the last one explains.

    By ordinary least squares with an intercept: (R2 of all - R2 of all but the last) / (1 - R2 of all but the last).
    NaN if nothing is left to explain, or there are too few rows to tell.
    """
    if len(target_N) <= predictors_NP.shape[1] + 1:
        return math.nan
    before, after = unexplained(predictors_NP[:, :-1], target_N), unexplained(predictors_NP, target_N)
    nothing = 1e-12 * float(np.square(target_N - target_N.mean()).sum())
    return 1 - after / before if before > nothing else math.nan


def unexplained(predictors_NP: Floats, target_N: Floats) -> float:
    """Residual sum of squares of the least-squares fit with an intercept."""
    centred_NP = predictors_NP - predictors_NP.mean(0)
    scale_P = np.linalg.norm(centred_NP, axis=0)
    design_NP = centred_NP / np.where(scale_P > 0, scale_P, 1)
    centred_N = target_N - target_N.mean()
    weight_P = np.linalg.lstsq(design_NP, centred_N, rcond=None)[0]
    return float(np.square(centred_N - design_NP @ weight_P).sum())
