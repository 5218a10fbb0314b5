"""Paired tests against enumerations, formulas of the papers, and special cases that are classical tests."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from ltg_mdlm.evaluation.statistics import PairedDifferences, holm, mcnemar_p, seeds_and_questions_p

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
