"""Tests of the difference between two models that answered the same questions.

Suffixes: I questions, U groups of questions (uids), C cells: the different values of the difference within each uid.

Correlations.

Explained variance of least-squares regressions.  Suffixes: N rows, P predictors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-12


class Interval(NamedTuple):
    """Of a difference in accuracy."""

    low: float
    high: float


class PairedDifferences:
    """Differences between two models, question by question, of which the macro average matters.

    Attributes:
        mean: over the uids, each by its weight, of the mean over its questions.
        variance: of `mean`, if other questions were drawn for every uid; NaN if a uid has one question only.
        degrees_of_freedom: of `variance`.
    """

    def __init__(self, difference_I: NDArray[np.float64], uid_I: NDArray[np.int64], weight_U: NDArray[np.float64]):
        """`uid_I` numbers the uids from 0; the weights sum to 1."""
        count_U = np.bincount(uid_I)
        mean_U = np.bincount(uid_I, difference_I) / count_U
        self.mean = float(weight_U @ mean_U)
        squares_U = np.bincount(uid_I, (difference_I - mean_U[uid_I]) ** 2)
        with np.errstate(invalid="ignore"):
            self.variance = float(weight_U**2 @ (squares_U / (count_U - 1) / count_U))
        self.degrees_of_freedom = len(uid_I) - len(count_U)
        # All that resampling needs to know of a uid is how often each value stands there, and values are few.
        self._uids = []
        for uid, (weight, count) in enumerate(zip(weight_U.tolist(), count_U.tolist(), strict=True)):
            values, times = np.unique(difference_I[uid_I == uid], return_counts=True)
            self._uids.append((weight / count, values, times))

    def bootstrap_interval(self, draws: int, rng: np.random.Generator, level: float = 0.95) -> Interval:
        """Percentile interval of `mean` when questions are drawn anew within each uid (Efron 1979)."""
        total = np.zeros(draws)
        for weight, values, times in self._uids:
            total += weight * (rng.multinomial(times.sum(), times / times.sum(), draws) @ values)
        tail = (1 - level) / 2
        return Interval(*np.quantile(total, (tail, 1 - tail)).tolist())

    def permutation_p(self, draws: int, rng: np.random.Generator) -> float:
        """Two-sided p of `mean` if, for every question alike, the two models may as well be exchanged.

        The identity counts as one of the permutations, so that p is never 0 and the level is kept.
        """
        total = np.zeros(draws)
        for weight, values, times in self._uids:
            swapped = rng.binomial(times, 0.5, (draws, len(times)))
            total += weight * ((times - 2 * swapped) @ values)
        extreme = int(np.count_nonzero(np.abs(total) >= abs(self.mean) - _ROUNDING))
        return (1 + extreme) / (1 + draws)


def mcnemar_p(wins: int, losses: int) -> float:
    """Two-sided exact p of McNemar's test: wins among the questions of which only one model is right are Binomial(1/2).

    McNemar (1947), Psychometrika 12.
    """
    total, fewer = wins + losses, min(wins, losses)
    log_total = math.lgamma(total + 1) - total * math.log(2)
    tail = math.fsum(
        math.exp(log_total - math.lgamma(k + 1) - math.lgamma(total - k + 1)) for k in range(fewer, -1, -1)
    )
    return min(1.0, 2 * tail)


def seeds_and_questions_p(questions: PairedDifferences, accuracies: Sequence[Sequence[float]]) -> float | None:
    """Two-sided p if other seeds were trained and other questions asked: min F' (Clark 1973, JVLVB 12).

    `accuracies` are those of the seeds of either model.  The variance of the difference is that over the seeds (Welch)
    plus that over the questions; what seeds and questions do to each other is in both, so p errs on the large side.
    None if a model has one seed only, or a uid one question.
    """
    if min(map(len, accuracies)) < 2 or math.isnan(questions.variance):
        return None
    parts = [(float(np.var(seeds, ddof=1)) / len(seeds), len(seeds) - 1) for seeds in accuracies]
    parts.append((questions.variance, questions.degrees_of_freedom))
    variance = math.fsum(part for part, _ in parts)
    if not variance:
        return float(abs(questions.mean) < _ROUNDING)
    freedom = variance**2 / math.fsum(part**2 / degrees for part, degrees in parts)
    return student_t_p(questions.mean / math.sqrt(variance), freedom)


def student_t_p(t: float, degrees_of_freedom: float) -> float:
    """Two-sided p of Student's t."""
    return regularised_beta(degrees_of_freedom / (degrees_of_freedom + t * t), degrees_of_freedom / 2, 0.5)


def regularised_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # beyond, the fraction converges slowly
        return 1 - regularised_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)) from the inside, with many more terms than the arguments met here need."""
    value = 1.0
    for m in range(_TERMS, -1, -1):
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        even = (m + 1) * (b - m - 1) * x / ((a + 2 * m + 1) * (a + 2 * m + 2))
        value = 1 + odd / (1 + even / value)
    return value


_TERMS = 500


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number (Holm 1979): below alpha, the chance of any false rejection is below alpha.

    None stands for a test that was not made, and is not counted.
    """
    made = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(made):
        largest = max(largest, min(1.0, (len(made) - rank) * p))
        corrected[i] = largest
    return corrected


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
