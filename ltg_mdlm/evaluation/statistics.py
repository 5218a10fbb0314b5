"""Statistics of evaluation: paired tests between two models, corrections for many tests, correlation, regression.

scipy is imported where it is used, because importing it takes longer than most commands.

Shape suffixes: I questions, U groups of questions (uids), N points or rows, P predictors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ROUNDING = 1e-12
"""Differences smaller than this are rounding errors."""


class Interval(NamedTuple):
    """A confidence interval of a difference in accuracy."""

    low: float
    high: float


class PairedDifferences:
    """Differences between two models on the same questions, averaged over the uids.

    Attributes:
        mean: weighted mean over the uids of the mean difference over their questions.
        variance: variance of `mean` over new questions drawn for every uid; NaN if a uid has only one question.
        degrees_of_freedom: degrees of freedom of `variance`.
    """

    def __init__(self, difference_I: Floats, uid_I: NDArray[np.int64], weight_U: Floats):
        """`uid_I` numbers the uids from 0; the weights sum to 1."""
        count_U = np.bincount(uid_I)
        mean_U = np.bincount(uid_I, difference_I) / count_U
        self.mean = float(weight_U @ mean_U)
        squares_U = np.bincount(uid_I, (difference_I - mean_U[uid_I]) ** 2)
        with np.errstate(invalid="ignore"):
            self.variance = float(weight_U**2 @ (squares_U / (count_U - 1) / count_U))
        self.degrees_of_freedom = len(uid_I) - len(count_U)
        # Differences take few distinct values, so resampling needs only the count of each value within each uid.
        self._uids = []
        for uid, (weight, count) in enumerate(zip(weight_U.tolist(), count_U.tolist(), strict=True)):
            values, times = np.unique(difference_I[uid_I == uid], return_counts=True)
            self._uids.append((weight / count, values, times))

    def bootstrap_interval(self, draws: int, rng: np.random.Generator, level: float = 0.95) -> Interval:
        """Percentile bootstrap interval of `mean`; questions are resampled within each uid (Efron 1979)."""
        total = np.zeros(draws)
        for weight, values, times in self._uids:
            total += weight * (rng.multinomial(times.sum(), times / times.sum(), draws) @ values)
        tail = (1 - level) / 2
        return Interval(*np.quantile(total, (tail, 1 - tail)).tolist())

    def permutation_p(self, draws: int, rng: np.random.Generator) -> float:
        """Two-sided p of `mean` under random exchange of the two models on each question.

        The identity counts as one of the permutations: p is never 0, and the test keeps its level.
        """
        total = np.zeros(draws)
        for weight, values, times in self._uids:
            swapped = rng.binomial(times, 0.5, (draws, len(times)))
            total += weight * ((times - 2 * swapped) @ values)
        extreme = int(np.count_nonzero(np.abs(total) >= abs(self.mean) - _ROUNDING))
        return (1 + extreme) / (1 + draws)


def mcnemar_p(wins: int, losses: int) -> float:
    """Two-sided p of the exact McNemar test (McNemar 1947, Psychometrika 12).

    Among the questions that only one of the two models answers correctly, the wins are Binomial(1/2).
    """
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def seeds_and_questions_p(questions: PairedDifferences, accuracies: Sequence[Sequence[float]]) -> float | None:
    """Two-sided p over new seeds and new questions: min F' (Clark 1973, JVLVB 12).

    The variance of the difference is the variance over seeds (Welch) plus the variance over questions. Both contain
    the interaction of seeds and questions, so the test is conservative.

    Args:
        accuracies: accuracy of every seed, for each of the two models.

    Returns:
        None if a model has only one seed, or a uid only one question.
    """
    if min(map(len, accuracies)) < 2 or math.isnan(questions.variance):
        return None
    parts = [(float(np.var(seeds, ddof=1)) / len(seeds), len(seeds) - 1) for seeds in accuracies]
    parts.append((questions.variance, questions.degrees_of_freedom))
    variance = math.fsum(part for part, _ in parts)
    if not variance:
        return float(abs(questions.mean) < _ROUNDING)
    from scipy.stats import t

    degrees_of_freedom = variance**2 / math.fsum(part**2 / degrees for part, degrees in parts)
    return float(2 * t.sf(abs(questions.mean) / math.sqrt(variance), degrees_of_freedom))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number, which controls the family-wise error rate (Holm 1979).

    None stands for a test that was not made; it is not counted.
    """
    made = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(made):
        largest = max(largest, min(1.0, (len(made) - rank) * p))
        corrected[i] = largest
    return corrected


def correlation(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> tuple[float, float]:
    """Linear correlation (Pearson) and its two-sided p; NaN for constant values or fewer than two points."""
    from scipy.stats import pearsonr

    if not _both_vary(x, y):
        return math.nan, math.nan
    found = pearsonr(x, y)
    return float(found.statistic), float(found.pvalue)


def spearman(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> float:
    """Rank correlation; ties get their mean rank. NaN if one of the two is constant, or there are too few points."""
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic) if _both_vary(x, y) else math.nan


def _both_vary(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> bool:
    return len(x) > 1 and bool(np.ptp(x) > 0 and np.ptp(y) > 0)


def explained_by_last(predictors_NP: Floats, target_N: Floats) -> float:
    """Share of the variance left unexplained by all predictors but the last that the last one explains.

    By ordinary least squares with an intercept: (R2 of all - R2 of all but the last) / (1 - R2 of all but the last).
    NaN if nothing is left to explain, or there are too few rows.
    """
    if len(target_N) <= predictors_NP.shape[1] + 1:
        return math.nan
    before, after = residual_squares(predictors_NP[:, :-1], target_N), residual_squares(predictors_NP, target_N)
    nothing = 1e-12 * float(np.square(target_N - target_N.mean()).sum())
    return 1 - after / before if before > nothing else math.nan


def residual_squares(predictors_NP: Floats, target_N: Floats) -> float:
    """Residual sum of squares of the least-squares fit with an intercept."""
    centred_NP = predictors_NP - predictors_NP.mean(0)
    scale_P = np.linalg.norm(centred_NP, axis=0)
    design_NP = centred_NP / np.where(scale_P > 0, scale_P, 1)
    centred_N = target_N - target_N.mean()
    weight_P = np.linalg.lstsq(design_NP, centred_N, rcond=None)[0]
    return float(np.square(centred_N - design_NP @ weight_P).sum())


class Fit(NamedTuple):
    """Least squares with an intercept; the figures are those of the last predictor and of the whole model."""

    coefficient: float
    t: float
    p: float
    r2: float
    aic: float
    """-2 log L + 2 (P + 1), L with the most likely variance"""


def fit(predictors_NP: Floats, target_N: Floats) -> Fit:
    """Regression on predictors that may depend on each other; NaN where a figure is undefined."""
    from scipy import stats

    rows = len(target_N)
    design_NP = np.column_stack([np.ones(rows), predictors_NP])
    inverse_PN = np.linalg.pinv(design_NP, rcond=1e-15)
    coefficient_P = inverse_PN @ target_N
    residual = float(np.sum((target_N - design_NP @ coefficient_P) ** 2))
    rank = int(np.linalg.matrix_rank(design_NP))
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.float64(residual) / (rows - rank)
        t = coefficient_P[-1] / np.sqrt(variance * np.sum(inverse_PN[-1] ** 2))
        r2 = 1 - np.float64(residual) / np.sum((target_N - target_N.mean()) ** 2)
        aic = rows * (np.log(2 * np.pi * np.float64(residual) / rows) + 1) + 2 * rank
    p = 2 * stats.t.sf(abs(t), rows - rank)
    return Fit(*(float(value) for value in (coefficient_P[-1], t, p, r2, aic)))
