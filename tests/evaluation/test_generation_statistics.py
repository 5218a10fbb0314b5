"""Figures of samples against computations by hand."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from support.corpora import split_of_lengths

from ltg_mdlm.evaluation.judge import perplexities
from ltg_mdlm.evaluation.sample_measures import (
    distinct,
    jensen_shannon,
    repetition,
    text_statistics,
    token_entropy,
    zipf_exponent,
)
from ltg_mdlm.evaluation.sample_quality import reference_draws
from ltg_mdlm.inference.texts import TextScore

RANDOM = np.random.default_rng(0).zipf(1.5, 300).clip(max=40).tolist()


def test_entropy_is_that_of_a_samples_own_tokens():
    assert token_entropy([7, 7, 8, 9]) == pytest.approx(-(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)))
    assert token_entropy(RANDOM) == pytest.approx(entropy(np.bincount(RANDOM)))
    assert token_entropy([3] * 9) == 0
    assert math.isnan(token_entropy([]))


@pytest.mark.parametrize(("n", "share"), [(1, 4 / 8), (2, 5 / 6), (3, 4 / 4), (4, 2 / 2), (5, math.nan)])
def test_distinct_counts_ngrams_within_samples_and_over_all(n, share):
    """a b a b and a c d a: bigrams ab ba ab ac cd da."""
    assert distinct(["abab", "acda"], n) == pytest.approx(share, nan_ok=True)


def test_repetition_is_the_share_of_ngrams_that_came_before():
    assert repetition([1, 2, 3, 4] * 3, 4) == pytest.approx(1 - 4 / 9)
    assert repetition([1] * 10, 4) == pytest.approx(6 / 7)
    assert repetition(range(10), 4) == 0
    assert math.isnan(repetition([1, 2, 3], 4))


def test_the_zipf_exponent_is_the_likeliest():
    counts = np.sort(np.bincount(RANDOM))[::-1]
    counts = counts[counts > 0]
    log_rank = np.log(np.arange(1, len(counts) + 1))
    nll = lambda s: (counts * (s * log_rank + np.log(np.exp(-s * log_rank).sum()))).sum()  # noqa: E731
    best = minimize_scalar(nll, bounds=(0, 5), method="bounded", options={"xatol": 1e-10}).x
    assert zipf_exponent(np.bincount(RANDOM)) == pytest.approx(best, abs=1e-6)
    assert zipf_exponent(np.full(50, 3)) == pytest.approx(0, abs=1e-6)
    assert math.isnan(zipf_exponent(np.array([0, 5])))


def test_the_distance_of_frequencies_is_that_of_jensen_and_shannon():
    one, other = np.bincount(RANDOM, minlength=50), np.arange(50)
    assert jensen_shannon(one, other) == pytest.approx(jensenshannon(one, other, base=2))
    assert jensen_shannon(one, 3 * one) == pytest.approx(0, abs=1e-7)
    assert jensen_shannon(np.array([1, 0]), np.array([0, 1])) == pytest.approx(1)
    assert math.isnan(jensen_shannon(np.zeros(3), np.ones(3)))


def test_figures_of_samples_are_means_over_samples_or_of_all_their_tokens():
    samples, corpus = [(1, 1, 2, 3, 1, 1, 2, 3), (4, 5)], np.arange(1, 7)
    figures = text_statistics(samples, corpus)
    assert figures["entropy"] == pytest.approx((token_entropy(samples[0]) + math.log(2)) / 2)
    assert figures["rep_4"] == pytest.approx(1 / 5), "the second sample has no 4-grams"
    assert figures["distinct_1"] == pytest.approx(5 / 10)
    assert figures["js_distance"] == pytest.approx(jensenshannon([0, 4, 2, 2, 1, 1], corpus, base=2))


def test_a_text_that_repeats_itself_is_told_by_every_figure():
    varied, repeated = text_statistics([RANDOM], np.ones(41)), text_statistics([[1, 2, 3] * 100], np.ones(41))
    assert repeated["entropy"] < varied["entropy"]
    assert repeated["rep_4"] > varied["rep_4"]
    assert repeated["distinct_2"] < varied["distinct_2"]


def test_perplexity_is_of_all_texts_together_by_word_and_by_token():
    figures = perplexities(["one two", "three"], [TextScore(-6.0, 4), TextScore(-3.0, 2)])
    assert figures["perplexity_per_word"] == pytest.approx(math.exp(9 / 3))
    assert figures["perplexity_per_token"] == pytest.approx(math.exp(9 / 6))
    assert perplexities(["one"], [TextScore(-1e6, 1)])["perplexity_per_word"] == math.inf
    assert math.isnan(perplexities([], [])["perplexity_per_word"])


def test_real_text_is_beginnings_of_different_documents_that_are_long_enough():
    split = split_of_lengths([3, 9, 5, 8, 2, 7, 6, 5])
    draws = reference_draws(split, 2, 5, seed=0)
    assert [len(draw) for draw in draws] == [2, 2, 2]
    starts = {tuple(split.tokens[start : start + 5].tolist()) for start in split.offsets[:-1].tolist()}
    drawn = [ids for draw in draws for ids in draw]
    assert len(set(drawn)) == 6
    assert set(drawn) <= starts
    assert draws == reference_draws(split, 2, 5, seed=0)
    assert draws != reference_draws(split, 2, 5, seed=1)


def test_where_too_few_documents_are_long_enough_the_longest_are_taken_once():
    split = split_of_lengths([3, 9, 5, 2])
    (draw,) = reference_draws(split, 3, 6, seed=0)
    assert sorted(map(len, draw)) == [3, 5, 6]
    assert len(reference_draws(split, 10, 6, seed=0)[0]) == 4
