"""Paired tests, corrections, correlations and regressions, against enumerations, formulas and simulations."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from ltg_mdlm.evaluation.statistics import (
    PairedDifferences,
    correlation,
    explained_by_last,
    fit,
    holm,
    mcnemar_p,
    seeds_and_questions_p,
    spearman,
)

EQUAL_3 = np.full(3, 1 / 3)


def random_differences(questions=60, uids=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice([-1, -0.5, 0, 0.5, 1], questions), np.arange(questions) % uids


def draws_from(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (0, 5), (7, 7), (12, 3), (3, 12), (40, 50)])
def test_mcnemar_counts_the_outcomes_that_are_at_least_as_uneven(wins, losses):
    """By enumeration with exact fractions."""
    total = wins + losses
    at_least = sum(math.comb(total, k) for k in range(total + 1) if abs(2 * k - total) >= abs(wins - losses))
    assert mcnemar_p(wins, losses) == pytest.approx(at_least / 2**total, rel=1e-9)


def test_holm_by_hand():
    """0.01 x 3, then 0.03 x 2, then 0.04 x 1, which must not fall below the one before; tests not made do not count."""
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06], abs=1e-15)
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_mean_weighs_uids_and_not_questions():
    differences = PairedDifferences(np.array([1.0, 0, 0, 0, -1]), np.array([0, 0, 0, 0, 1]), np.array([0.5, 0.5]))
    assert differences.mean == pytest.approx((0.25 - 1) / 2)
    assert math.isnan(differences.variance)


def test_the_variance_is_that_of_a_stratified_mean():
    values, uids = random_differences()
    by_uid = [values[uids == uid] for uid in range(3)]
    expected = sum(stats.sem(own) ** 2 for own in by_uid) / 9
    differences = PairedDifferences(values, uids, EQUAL_3)
    assert differences.variance == pytest.approx(expected)
    assert differences.degrees_of_freedom == 57


def test_permutations_give_the_p_of_their_enumeration():
    """All 2^10 exchanges of the two models on ten questions in two uids."""
    values, uids = np.array([1, 1, -1, 0.5, 0, 1, 1, 1, -0.5, 1]), np.array([0] * 4 + [1] * 6)
    differences = PairedDifferences(values, uids, np.array([0.5, 0.5]))
    weights = np.where(uids == 0, 1 / 8, 1 / 12)
    means = np.array([weights * values @ np.array(signs) for signs in product((1, -1), repeat=10)])
    exact = np.mean(np.abs(means) >= abs(differences.mean) - 1e-12)
    draws = 40_000
    assert differences.permutation_p(draws, draws_from()) == pytest.approx(exact, abs=4 * (exact / draws) ** 0.5)


def test_permutation_of_a_single_uid_is_mcnemars_test():
    values = np.array([1.0] * 14 + [-1.0] * 5 + [0.0] * 40)
    differences = PairedDifferences(values, np.zeros(59, int), np.ones(1))
    assert differences.permutation_p(40_000, draws_from()) == pytest.approx(mcnemar_p(14, 5), abs=0.004)


def test_permutation_p_is_never_zero_and_one_without_any_difference():
    assert PairedDifferences(np.ones(50), np.zeros(50, int), np.ones(1)).permutation_p(999, draws_from()) == 0.001
    assert PairedDifferences(np.zeros(50), np.zeros(50, int), np.ones(1)).permutation_p(999, draws_from()) == 1


def test_the_interval_is_that_of_a_bootstrap_of_the_questions_themselves():
    values, uids = random_differences(90)
    rng = np.random.default_rng(1)
    drawn = [rng.choice(values[uids == uid], (20_000, 30)).mean(1) for uid in range(3)]
    expected = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    found = PairedDifferences(values, uids, EQUAL_3).bootstrap_interval(20_000, draws_from())
    assert list(found) == pytest.approx(expected.tolist(), abs=0.01)


def test_the_same_seed_gives_the_same_figures():
    differences = PairedDifferences(*random_differences(), EQUAL_3)
    for figure in (differences.permutation_p, differences.bootstrap_interval):
        assert figure(500, draws_from(3)) == figure(500, draws_from(3))


def test_without_variance_over_seeds_min_f_is_a_t_test_of_the_questions():
    values, uids = random_differences(40, uids=1)
    questions = PairedDifferences(values, uids, np.ones(1))
    found = seeds_and_questions_p(questions, [[0.5, 0.5], [0.4, 0.4]])
    assert found == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_without_variance_over_questions_min_f_is_welchs_test_of_the_seeds():
    seeds = [[0.62, 0.65, 0.61, 0.66], [0.60, 0.58, 0.57]]
    difference = np.mean(seeds[0]) - np.mean(seeds[1])
    questions = PairedDifferences(np.full(30, difference), np.zeros(30, int), np.ones(1))
    assert seeds_and_questions_p(questions, seeds) == pytest.approx(stats.ttest_ind(*seeds, equal_var=False).pvalue)


def test_min_f_by_clarks_formula():
    """1 / min F' = 1 / F1 + 1 / F2, with (F1 + F2)^2 / (F1^2 / df2 + F2^2 / df1) degrees of freedom."""
    seeds = [[0.62, 0.65, 0.61], [0.60, 0.58, 0.57]]
    difference = np.mean(seeds[0]) - np.mean(seeds[1])
    values = difference + np.random.default_rng(0).permutation(np.linspace(-0.2, 0.2, 30))
    questions = PairedDifferences(values, np.zeros(30, int), np.ones(1))
    by_seeds = stats.ttest_ind(*seeds, equal_var=False)
    f1, f2 = by_seeds.statistic**2, stats.ttest_1samp(values, 0).statistic ** 2
    freedom = (f1 + f2) ** 2 / (f1**2 / 29 + f2**2 / by_seeds.df)
    expected = stats.f.sf(f1 * f2 / (f1 + f2), 1, freedom)
    assert seeds_and_questions_p(questions, seeds) == pytest.approx(expected)


def test_one_seed_says_nothing_of_others():
    questions = PairedDifferences(*random_differences(), EQUAL_3)
    assert seeds_and_questions_p(questions, [[0.5], [0.4, 0.6]]) is None


def test_models_without_any_variance_differ_or_do_not():
    same, better = (PairedDifferences(np.full(9, d), np.zeros(9, int), np.ones(1)) for d in (0.0, 0.25))
    assert seeds_and_questions_p(same, [[0.5, 0.5], [0.5, 0.5]]) == 1
    assert seeds_and_questions_p(better, [[0.75, 0.75], [0.5, 0.5]]) == 0


UID_I = np.repeat(np.arange(4), (23, 37, 51, 64))
WEIGHT_U = np.full(4, 0.25)
WEIGHT_I = (WEIGHT_U / np.bincount(UID_I))[UID_I]
SIMULATIONS = 300


def answers(rng, seeds, *, ability=0.0, spread=0.0):
    """Two groups that differ in ability; seeds of a group in theirs by `spread`, questions in how hard they are."""
    hard_I = rng.normal(size=len(UID_I))
    ability_GR = spread * rng.normal(size=(2, seeds)) + [[0.0], [ability]]
    return (ability_GR[..., None] + hard_I + rng.normal(size=(2, seeds, len(UID_I))) > 0).astype(float)


def p_values(seeds, **effects):
    """{test: its p in every simulation}"""
    found = {"permutation": [], "mcnemar": [], "seeds": []}
    for simulation in range(SIMULATIONS):
        correct_GRI = answers(np.random.default_rng([7, simulation]), seeds, **effects)
        difference_I = correct_GRI[1].mean(0) - correct_GRI[0].mean(0)
        differences = PairedDifferences(difference_I.round(12), UID_I, WEIGHT_U)
        found["permutation"].append(differences.permutation_p(199, np.random.default_rng(simulation)))
        if seeds == 1:
            found["mcnemar"].append(mcnemar_p(int(sum(difference_I > 0)), int(sum(difference_I < 0))))
        else:
            found["seeds"].append(seeds_and_questions_p(differences, correct_GRI @ WEIGHT_I))
    return {name: np.array(values) for name, values in found.items()}


def allowed(level):
    """How often a test of this level may reject in all simulations, but for one chance in 10,000."""
    return stats.binom.isf(1e-4, SIMULATIONS, level)


@pytest.mark.parametrize("seeds", [1, 3])
def test_permutation_p_is_uniform_for_models_that_do_not_differ(seeds):
    assert stats.kstest(p_values(seeds)["permutation"], "uniform").pvalue > 1e-3


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_mcnemar_keeps_its_level(level):
    assert np.sum(p_values(1)["mcnemar"] <= level) <= allowed(level)


def test_only_min_f_covers_seeds_that_differ_by_chance():
    """Recipes are equal, but every trained model is a bit better or worse: these very models do differ."""
    found = p_values(3, spread=0.3)
    assert np.sum(found["seeds"] <= 0.05) <= allowed(0.05)
    assert np.sum(found["permutation"] <= 0.05) > 2 * allowed(0.05)


def test_a_real_difference_is_found():
    found = p_values(3, ability=0.5, spread=0.1)
    assert all(np.mean(found[name] <= 0.05) > 0.6 for name in ("permutation", "seeds"))


def test_the_interval_covers_the_true_difference():
    """The difference in probability, averaged over questions, which are drawn anew in every simulation."""
    true = stats.norm.cdf(0.3 / 2**0.5) - 0.5
    covered = 0
    for simulation in range(SIMULATIONS):
        rng = np.random.default_rng([8, simulation])
        ((first_I,), (second_I,)) = answers(rng, 1, ability=0.3)
        low, high = PairedDifferences(second_I - first_I, UID_I, WEIGHT_U).bootstrap_interval(300, rng)
        covered += low <= true <= high
    assert SIMULATIONS - covered <= allowed(0.05) + 0.015 * SIMULATIONS  # a percentile interval is a little narrow


numbers = st.lists(st.integers(-5, 5), min_size=2, max_size=30)


@given(numbers, st.randoms())
def test_the_square_of_pearsons_correlation_is_the_share_that_a_line_explains(x, random):
    y = [value + random.randint(-3, 3) for value in x]
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    slope, intercept = np.polyfit(x, y, 1)
    unexplained = np.var(np.array(y) - slope * np.array(x) - intercept) / np.var(y)
    assert correlation(x, y)[0] ** 2 == pytest.approx(1 - unexplained, abs=1e-9)
    assert correlation(x, y)[0] * slope >= -1e-9


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
    assert all(map(math.isnan, correlation(x, range(len(x)))))
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
    expected = correlation(residual(y_N, x_NP[:, :-1]), residual(x_NP[:, -1], x_NP[:, :-1]))[0] ** 2
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


def test_a_regression_has_the_figures_of_the_partial_correlation():
    """Of the residuals of target and last predictor, after regression on the others."""
    rng = np.random.default_rng(0)
    rows = 40
    predictors_NP = rng.normal(size=(rows, 4))
    target_N = predictors_NP @ [1.0, -2.0, 0.5, 0.3] + rng.normal(size=rows)
    others_NP = np.column_stack([np.ones(rows), predictors_NP[:, :-1]])
    q_NP = np.linalg.qr(others_NP)[0]
    own_N, last_N = (x_N - q_NP @ (q_NP.T @ x_N) for x_N in (target_N, predictors_NP[:, -1]))
    line = stats.linregress(last_N, own_N)
    r, df = line.rvalue, rows - 5
    whole, without = fit(predictors_NP, target_N), fit(predictors_NP[:, :-1], target_N)
    assert whole.coefficient == pytest.approx(line.slope)
    assert whole.t == pytest.approx(r * math.sqrt(df / (1 - r**2)))
    assert whole.p == pytest.approx(2 * stats.t.sf(abs(whole.t), df))
    assert whole.r2 - without.r2 == pytest.approx(r**2 * (1 - without.r2))
    assert whole.aic - without.aic == pytest.approx(rows * math.log(1 - r**2) + 2)
    normal = stats.norm(0, np.sqrt(np.mean(own_N**2)))
    assert without.aic == pytest.approx(2 * 4 - 2 * normal.logpdf(own_N).sum())
