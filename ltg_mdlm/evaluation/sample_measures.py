"""Figures of samples without another model: diversity, repetition and token frequencies.

They are functions of token ids, so they can only be compared between texts of one tokenizer.

Shape suffixes: V vocabulary, R ranks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = Sequence[int]

LONGEST_NGRAM = 4

_LARGEST_EXPONENT = 20.0


def text_statistics(samples: Sequence[Ids], corpus_count_V: NDArray[np.int64]) -> dict[str, float]:
    """All figures of some samples; `corpus_count_V` counts the token types in the training corpus. NaN if undefined.

    entropy      mean over samples of `token_entropy`
    distinct_n   `distinct` of all samples together, n = 1 to 4
    rep_4        mean over samples of `repetition`
    zipf         `zipf_exponent` of all samples together
    js_distance  `jensen_shannon` between all samples together and the corpus
    """
    count_V = np.bincount(np.array([i for ids in samples for i in ids], np.int64), minlength=len(corpus_count_V))
    return {
        "entropy": _mean([token_entropy(ids) for ids in samples]),
        **{f"distinct_{n}": distinct(samples, n) for n in range(1, LONGEST_NGRAM + 1)},
        f"rep_{LONGEST_NGRAM}": _mean([repetition(ids, LONGEST_NGRAM) for ids in samples]),
        "zipf": zipf_exponent(count_V),
        "js_distance": jensen_shannon(count_V, corpus_count_V),
    }


def token_entropy(ids: Ids) -> float:
    """Entropy in nats of the unigram distribution of a sample: at most log(len(ids)), 0 for one repeated token.

    It falls with repetition, and in samples drawn at too low a precision (Zheng et al. 2024, arXiv 2409.02908).
    """
    counts = np.array(list(Counter(ids).values()), np.float64)
    return float(-(counts / len(ids) * np.log(counts / len(ids))).sum()) + 0.0 if len(ids) else math.nan


def distinct(samples: Sequence[Ids], n: int) -> float:
    """Distinct n-grams per n-gram, over all samples (Li et al. 2016, arXiv 1510.03055); falls with more text."""
    grams = [gram for ids in samples for gram in _ngrams(ids, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(ids: Ids, n: int) -> float:
    """rep-n: share of n-grams that occurred earlier in the sample (arXiv 1908.04319, section 6.1)."""
    return 1 - distinct([ids], n)


def zipf_exponent(count_V: NDArray[np.int64]) -> float:
    """Maximum-likelihood exponent s of p(rank) ~ rank ** -s, with ranks from 1 by decreasing count.

    The ranks are estimated from the same text, which biases the exponent (Piantadosi 2014), so compare it only at equal
    numbers of tokens. NaN for fewer than two types.
    """
    count_R = np.sort(count_V[count_V > 0])[::-1].astype(np.float64)
    if len(count_R) < 2:
        return math.nan
    log_rank_R = np.log(np.arange(1, len(count_R) + 1))
    mean_log_rank = float((count_R * log_rank_R).sum() / count_R.sum())
    low, high = 0.0, _LARGEST_EXPONENT
    for _ in range(60):  # bisection: the expected log rank decreases with the exponent
        middle = (low + high) / 2
        weight_R = np.exp(-middle * log_rank_R)
        expected = (weight_R * log_rank_R).sum() / weight_R.sum()
        low, high = (middle, high) if expected > mean_log_rank else (low, middle)
    return (low + high) / 2


def jensen_shannon(count_V: NDArray[Any], other_V: NDArray[Any]) -> float:
    """Jensen-Shannon distance of two unigram distributions: square root of the divergence to base 2, from 0 to 1.

    A short text is always far from a long one, so compare the distance with the distance of as much real text. NaN
    without tokens.
    """
    from scipy.special import rel_entr

    if not (count_V.sum() and other_V.sum()):
        return math.nan
    p_V, q_V = count_V / count_V.sum(), other_V / other_V.sum()
    mixture_V = (p_V + q_V) / 2
    nats = float((rel_entr(p_V, mixture_V).sum() + rel_entr(q_V, mixture_V).sum()) / 2)
    return math.sqrt(max(0.0, nats / math.log(2)))


def _ngrams(ids: Ids, n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(islice(ids, start, None) for start in range(n)), strict=False)


def _mean(values: Sequence[float]) -> float:
    """Mean over the samples for which the figure is defined."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
