"""Which evaluation texts stand in the training corpus, wholly or in part.

A text shares an n-gram with the corpus if n of its words stand there directly one after another, within one document;
it stands there verbatim if all its words do.  Words are those of `word_sequences`.

Suffixes: T distinct texts, G n-grams of them all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.data.sources import Piece
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.task_texts import TaskTexts
from ltg_mdlm.evaluate.word_sequences import WordSequences, words_of


@dataclass(frozen=True, slots=True)
class Overlap:
    """What of a text stands in the corpus."""

    words: int
    ngrams: int
    shared: int
    """n-grams that stand in the corpus, too"""
    example: str
    """the first of them; empty without"""
    verbatim: bool

    @property
    def contaminated(self) -> bool:
        """Whether anything is shared; a text of fewer than n words can only stand there as a whole."""
        return self.shared > 0 or self.verbatim


@dataclass(frozen=True)
class Contamination:
    """Evaluation texts, and what of each stands in a corpus."""

    found: TaskTexts
    n: int
    overlaps: Mapping[str, Overlap]
    """by text"""
    corpus_words: int

    def contaminated(self, data: str) -> set[int]:
        """Numbers of the questions of a data set of which any text is contaminated."""
        return {question for question, some in self.by_question(data).items() if any(o.contaminated for o in some)}

    def by_question(self, data: str) -> dict[int, list[Overlap]]:
        """What stands in the corpus of every text of every question of a data set."""
        questions: dict[int, list[Overlap]] = defaultdict(list)
        for text in self.found.texts:
            if text.data == data:
                questions[text.question].append(self.overlaps[text.text])
        return questions


def find_contamination(found: TaskTexts, corpus: Iterable[Piece], n: int) -> Contamination:
    """Search a corpus, once, for all n-grams of the texts and for the whole texts.

    Raises UserError if the texts have no words, or the corpus has none.
    """
    texts = list(dict.fromkeys(text.text for text in found.texts))
    words = [words_of(text) for text in texts]
    length_T = np.array([len(parts) for parts in words])
    if not length_T.any():
        raise UserError("the evaluation texts have no words")
    flat = list(chain.from_iterable(words))
    first_T = np.cumsum(length_T) - length_T
    text_G, start_G = _ngrams(first_T, np.maximum(length_T - n + 1, 0))
    (worded_T,) = np.nonzero(length_T)
    starts = np.concatenate([start_G, first_T[worded_T]])
    search = WordSequences(flat, starts, np.concatenate([np.full(len(start_G), n), length_T[worded_T]]))
    found_S = search.found_in(corpus)
    if not search.words_read:
        raise UserError("the training corpus has no words")
    shared_G, verbatim_T = found_S[: len(start_G)], np.zeros(len(texts), bool)
    verbatim_T[worded_T] = found_S[len(start_G) :]
    examples = {text: " ".join(flat[i : i + n]) for text, i in _first(text_G[shared_G], start_G[shared_G])}
    columns = zip(
        length_T.tolist(),
        np.bincount(text_G, minlength=len(texts)).tolist(),
        np.bincount(text_G[shared_G], minlength=len(texts)).tolist(),
        (examples.get(i, "") for i in range(len(texts))),
        verbatim_T.tolist(),
        strict=True,
    )
    overlaps = {text: Overlap(*column) for text, column in zip(texts, columns, strict=True)}
    return Contamination(found, n, overlaps, search.words_read)


def _ngrams(first_T: NDArray[np.int64], count_T: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64[G] each: the text of every n-gram, and where it begins, if those of text t begin at `first_T[t]`."""
    text_G = np.repeat(np.arange(len(count_T)), count_T)
    before_T = np.cumsum(count_T) - count_T
    return text_G, np.arange(len(text_G)) - before_T[text_G] + first_T[text_G]


def _first(text_G: NDArray[np.int64], start_G: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(text, beginning of its first n-gram)"""
    texts, first = np.unique(text_G, return_index=True)
    return zip(texts.tolist(), start_G[first].tolist(), strict=True)
