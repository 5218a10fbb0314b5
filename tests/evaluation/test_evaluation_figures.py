"""Correlations, explained variance and sigmoid fits, against other formulas."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ltg_mdlm.evaluation.age_of_acquisition import Sigmoid, fit_sigmoid
from ltg_mdlm.evaluation.statistics import explained_by_last, pearson, spearman

numbers = st.lists(st.integers(-5, 5), min_size=2, max_size=30)


@given(numbers, st.randoms())
def test_the_square_of_pearsons_correlation_is_the_share_that_a_line_explains(x, random):
    y = [value + random.randint(-3, 3) for value in x]
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    slope, intercept = np.polyfit(x, y, 1)
    unexplained = np.var(np.array(y) - slope * np.array(x) - intercept) / np.var(y)
    assert pearson(x, y) ** 2 == pytest.approx(1 - unexplained, abs=1e-9)
    assert pearson(x, y) * slope >= 0


@given(st.permutations(range(8)))
def test_spearmans_correlation_of_two_orders_follows_from_the_differences_of_their_ranks(order):
    """1 - 6 sum(d^2) / (n (n^2 - 1)); any increasing transformation leaves it unchanged."""
    squares = sum((rank - i) ** 2 for i, rank in enumerate(order))
    expected = 1 - 6 * squares / (8 * 63)
    assert spearman(range(8), order) == pytest.approx(expected, abs=1e-12)
    assert spearman(np.exp(range(8)), order) == pytest.approx(expected, abs=1e-12)


def test_ties_share_their_mean_rank():
    """Ranks 1, 2.5, 2.5, 4 and 1.5, 1.5, 3, 4."""
    assert spearman([3, 5, 5, 9], [2, 2, 7, 8]) == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1.5, 1.5, 3, 4])[0, 1])


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


@pytest.mark.parametrize("asymptotes", [None, (-11.0, -4.0)])
@pytest.mark.parametrize("seed", range(8))
def test_no_other_sigmoid_near_the_fit_of_noisy_points_has_a_smaller_error(seed, asymptotes):
    """A gradient of 1e-3 is a millionth in the midpoint. No curve of a random search is better, either."""
    rng = np.random.default_rng(seed)
    truth = (-11.0, -4.0, rng.uniform(6.7, 7.4), rng.uniform(6, 15))
    y_N = curve(LOG_WORDS, *truth) + rng.normal(0, 0.3, len(LOG_WORDS))
    fit = np.array(fit_sigmoid(LOG_WORDS, y_N, asymptotes))
    free = range(4) if asymptotes is None else range(2, 4)

    def error(parameters):
        return np.square(curve(LOG_WORDS, *parameters) - y_N).sum()

    for i in free:
        step = 1e-6 * np.eye(4)[i]
        gradient = (error(fit + step) - error(fit - step)) / 2e-6
        assert abs(gradient) < 1e-3
    scale = np.array([1.0, 1.0, 0.3, 3.0]) * np.isin(range(4), free)
    assert all(error(fit) <= error(fit + scale * rng.normal(size=4)) for _ in range(500))


@pytest.mark.parametrize("y_N", [np.zeros(19), LOG_WORDS, np.arange(19) % 2, (np.arange(19) > 8).astype(float)])
def test_curves_that_are_no_sigmoids_have_finite_fits(y_N):
    assert np.isfinite(fit_sigmoid(LOG_WORDS, y_N.astype(float))).all()
