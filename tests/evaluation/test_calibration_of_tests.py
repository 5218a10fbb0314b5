"""Tests reject a true null hypothesis as often as they say, and a false one if there is enough to see."""

import numpy as np
import pytest
from scipy import stats

from ltg_mdlm.evaluation.statistics import PairedDifferences, mcnemar_p, seeds_and_questions_p

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
