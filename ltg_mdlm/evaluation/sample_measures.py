"""Figures of samples that need no model: how varied they are, how often they repeat themselves, which words they use.

All are functions of token ids, so that only texts of one tokenizer can be compared.  Suffixes: V vocabulary, R ranks.

Which sentences of samples the grammar of the built-in corpus can produce: ground truth that no other corpus has.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.terminal import count_progress
from ltg_mdlm.data.synthetic.grammar_recogniser import Recogniser, sentences
from ltg_mdlm.data.synthetic.grammar_talk import SPEAKERS

Ids: TypeAlias = Sequence[int]


LONGEST_NGRAM = 4


_LARGEST_EXPONENT = 20.0


def text_statistics(samples: Sequence[Ids], corpus_count_V: NDArray[np.int64]) -> dict[str, float]:
    """All figures of some samples, which `corpus_count_V` says how often each token type occurs for; NaN if undefined.

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
    """Nats: the entropy of a sample's own unigram distribution; at most log(len(ids)), 0 for one token all along.

    It falls with repetition, and in samples drawn at too low a precision (Zheng et al. 2024, arXiv 2409.02908).
    """
    counts = np.array(list(Counter(ids).values()), np.float64)
    return float(-(counts / len(ids) * np.log(counts / len(ids))).sum()) + 0.0 if len(ids) else math.nan


def distinct(samples: Sequence[Ids], n: int) -> float:
    """Distinct n-grams per n-gram, over all samples (Li et al. 2016, arXiv 1510.03055); falls with more text."""
    grams = [gram for ids in samples for gram in _ngrams(ids, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(ids: Ids, n: int) -> float:
    """rep-n, the share of a sample's n-grams that are not the first of their kind (arXiv 1908.04319, section 6.1)."""
    return 1 - distinct([ids], n)


def zipf_exponent(count_V: NDArray[np.int64]) -> float:
    """The exponent s of p(rank) ~ rank ** -s that makes the counts the likeliest, ranks from 1 by falling count.

    Ranks come from the same text, which biases it (Piantadosi 2014): compare it at equal numbers of tokens only.  NaN
    for fewer than two types.
    """
    count_R = np.sort(count_V[count_V > 0])[::-1].astype(np.float64)
    if len(count_R) < 2:
        return math.nan
    log_rank_R = np.log(np.arange(1, len(count_R) + 1))
    wanted = float((count_R * log_rank_R).sum() / count_R.sum())
    low, high = 0.0, _LARGEST_EXPONENT
    for _ in range(60):  # the expected log rank falls with the exponent
        middle = (low + high) / 2
        weight_R = np.exp(-middle * log_rank_R)
        low, high = (middle, high) if (weight_R * log_rank_R).sum() / weight_R.sum() > wanted else (low, middle)
    return (low + high) / 2


def jensen_shannon(count_V: NDArray[Any], other_V: NDArray[Any]) -> float:
    """Jensen-Shannon distance of two unigram distributions: the root of the divergence to base 2, from 0 to 1.

    Little text is always far from much: compare it with the distance of as much real text.  NaN without tokens.
    """
    if not (count_V.sum() and other_V.sum()):
        return math.nan
    p_V, q_V = count_V / count_V.sum(), other_V / other_V.sum()
    middle_V = (p_V + q_V) / 2
    return math.sqrt(max(0.0, (_divergence(p_V, middle_V) + _divergence(q_V, middle_V)) / 2))


def _divergence(p_V: NDArray[np.float64], q_V: NDArray[np.float64]) -> float:
    there = p_V > 0
    return float((p_V[there] * np.log2(p_V[there] / q_V[there])).sum())


def _ngrams(ids: Ids, n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(islice(ids, start, None) for start in range(n)), strict=False)


def _mean(values: Sequence[float]) -> float:
    """Over the samples that have the figure."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


_SPEAKER = re.compile(rf"\*(?:{'|'.join(sorted(SPEAKERS))}):\t")


_ENDS = (".", "?", "!")


class Verdict(NamedTuple):
    """What the grammar says of a sample."""

    sentences: tuple[str, ...]
    """Those that are complete"""
    accepted: tuple[bool, ...]
    """Of each"""
    fragment: str
    """What the length cut off at the end: not judged"""

    def to_json(self) -> dict[str, Any]:
        """As samples.jsonl has it."""
        return {"sentences": len(self.sentences), "rejected": self.rejected, "fragment": self.fragment}

    @property
    def rejected(self) -> list[str]:
        """The sentences that the grammar cannot produce."""
        return [said for said, accepted in zip(self.sentences, self.accepted, strict=True) if not accepted]


class Grammar:
    """Judges samples, sentence by sentence; how sentences follow each other is not judged."""

    def __init__(self) -> None:
        """Takes some seconds."""
        self._recogniser = Recogniser()

    def judge(self, samples: Sequence[str], ended: Sequence[bool], *, progress: bool = False) -> list[Verdict]:
        """A verdict for every sample; `ended` says which were ended by the model, so that nothing was cut off."""
        verdicts = []
        with count_progress("asking the grammar", len(samples), show=progress) as advance:
            for text, complete in zip(samples, ended, strict=True):
                verdicts.append(self._verdict(text, complete))
                advance(1)
        return verdicts

    def _verdict(self, text: str, complete: bool) -> Verdict:
        said, fragment = split_sample(text, complete)
        return Verdict(tuple(said), tuple(map(self._recogniser.accepts, said)), fragment)


def split_sample(text: str, complete: bool = False) -> tuple[list[str], str]:
    """The sentences of a sample, and what is left at its end.

    The first sentence counts, since samples begin where documents do.  A speaker of the corpus before the tab of a line
    of talk is left out; anything else before a tab is part of the sentence, which the grammar then rejects.  The text
    behind the last full stop, question mark or exclamation mark is a fragment, unless the sample is `complete`.
    """
    lines = [_SPEAKER.sub("", line, count=1) if _SPEAKER.match(line) else line for line in text.split("\n")]
    said = [sentence for line in lines if line for sentence in sentences(line)]
    if said and not complete and not said[-1].endswith(_ENDS):
        return said[:-1], said[-1]
    return said, ""


def acceptance(verdicts: Sequence[Verdict]) -> Mapping[str, float]:
    """Shares of sentences, and of samples with at least one sentence, of which none is rejected; NaN of nothing."""
    judged = [verdict.accepted for verdict in verdicts if verdict.accepted]
    return {
        "grammatical_sentences": _share([accepted for sample in judged for accepted in sample]),
        "grammatical_samples": _share([all(sample) for sample in judged]),
        "sentences": sum(map(len, judged)),
    }


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks) if marks else math.nan
