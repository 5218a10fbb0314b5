"""Correlations, explained variance and sigmoid fits, against scipy and other formulas."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from ltg_mdlm.evaluation.age_of_acquisition import Sigmoid, fit_sigmoid
from ltg_mdlm.evaluation.statistics import explained_by_last, pearson, ranks, spearman

numbers = st.lists(st.integers(-5, 5), min_size=2, max_size=30)


@given(numbers)
def test_ranks_are_those_of_scipy(values):
    assert ranks(values).tolist() == scipy.stats.rankdata(values).tolist()


@given(numbers, st.randoms())
def test_correlations_are_those_of_scipy(x, random):
    y = [value + random.randint(-3, 3) for value in x]
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-12)
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-12)


@pytest.mark.parametrize("x", [[], [1.0], [2.0, 2.0, 2.0]])
def test_there_is_no_correlation_with_what_does_not_vary(x):
    assert math.isnan(pearson(x, range(len(x))))
    assert math.isnan(spearman(range(len(x)), x))


def residual(target_N, predictors_NP):
    """By the normal equations, with an explicit intercept."""
    design = np.column_stack([np.ones(len(target_N)), predictors_NP])
    return target_N - design @ np.linalg.solve(design.T @ design, design.T @ target_N)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_what_the_last_predictor_explains_is_its_squared_partial_correlation(seed, predictors):
    rng = np.random.default_rng(seed)
    x_NP = rng.normal(size=(40, predictors)) * 10.0 ** rng.integers(-3, 4, predictors) + 5
    y_N = rng.normal(size=40) + (x_NP / x_NP.std(0)).sum(1)
    expected = pearson(residual(y_N, x_NP[:, :-1]), residual(x_NP[:, -1], x_NP[:, :-1])) ** 2
    assert explained_by_last(x_NP, y_N) == pytest.approx(expected, abs=1e-8)


def test_a_predictor_that_says_nothing_new_explains_nothing():
    rng = np.random.default_rng(0)
    x_N, y_N = rng.normal(size=(2, 30))
    assert explained_by_last(np.stack([x_N, 3 * x_N - 1], 1), y_N) == pytest.approx(0, abs=1e-12)
    assert explained_by_last(np.stack([x_N, np.ones(30)], 1), y_N) == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_told_is_not_a_number():
    x_NP = np.arange(12.0).reshape(6, 2) ** 2
    assert math.isnan(explained_by_last(x_NP, np.ones(6)))
    assert math.isnan(explained_by_last(x_NP[:3], np.array([1.0, 2.0, 4.0])))


LOG_WORDS = np.log10([*range(1, 10), *range(10, 101, 10)]) + 6


def curve(x, low, high, middle, slope):
    return low + (high - low) / (1 + np.exp(-slope * (x - middle)))


def test_a_sigmoid_without_noise_is_recovered():
    for truth in (Sigmoid(-11, -4, 7.1, 5.0), Sigmoid(-4, -11, 6.5, 12.0)):
        fitted = fit_sigmoid(LOG_WORDS, curve(LOG_WORDS, *truth))
        assert fitted == pytest.approx(truth, rel=1e-4)
    shares = curve(np.arange(16.0, 31), 0, 1, 22.4, 0.5)
    assert fit_sigmoid(np.arange(16.0, 31), shares, (0, 1)) == pytest.approx((0, 1, 22.4, 0.5), rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_a_noisy_sigmoid_is_fitted_no_worse_than_by_scipy(seed):
    rng = np.random.default_rng(seed)
    truth = (rng.uniform(-14, -8), rng.uniform(-7, -2), rng.uniform(6.7, 7.4), rng.uniform(6, 15))
    y_N = curve(LOG_WORDS, *truth) + rng.normal(0, 0.3, len(LOG_WORDS))
    theirs, _ = scipy.optimize.curve_fit(curve, LOG_WORDS, y_N, p0=truth, maxfev=10_000)
    error, error_of_theirs = (
        np.square(curve(LOG_WORDS, *fit) - y_N).sum() for fit in (fit_sigmoid(LOG_WORDS, y_N), theirs)
    )
    assert error <= error_of_theirs * (1 + 1e-6)


@pytest.mark.parametrize("y_N", [np.zeros(19), LOG_WORDS, np.arange(19) % 2, (np.arange(19) > 8).astype(float)])
def test_curves_that_are_no_sigmoids_have_finite_fits(y_N):
    assert np.isfinite(fit_sigmoid(LOG_WORDS, y_N.astype(float))).all()
