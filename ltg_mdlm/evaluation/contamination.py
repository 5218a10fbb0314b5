"""Contamination: which evaluation texts occur in the training corpus, as a whole or in part.

A text shares an n-gram with the corpus if n consecutive words of it occur consecutively in one document of the corpus.
It occurs verbatim if all its words do. Words are runs of letters and digits after NFKC normalisation and lower-casing:
punctuation and line breaks are ignored, and "Don't" is the two words "don" and "t".

The search is exact and takes one pass over the corpus.

Shape suffixes: T distinct texts, G n-grams of all texts, S searched sequences, N words of a part of the corpus,
A active positions in that part.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.terminal import byte_progress
from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.data.sources import COMPRESSED_SUFFIXES, Piece, find_sources, read_pieces
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.evaluation.task_texts import TaskTexts

_WORD = re.compile(r"[^\W_]+")

_OTHER = 0
"""Number of the words that are in no sequence, and of the border between documents."""

_WORDS_PER_PART = 1 << 19

_TOKENS_PER_PART = 1 << 18


@dataclass(frozen=True, slots=True)
class Overlap:
    """The overlap of a text with the corpus."""

    words: int
    ngrams: int
    shared: int
    """Number of n-grams that occur in the corpus"""
    example: str
    """The first of them; empty if there is none"""
    verbatim: bool

    @property
    def contaminated(self) -> bool:
        """Whether the text shares anything; a text of fewer than n words can only occur verbatim."""
        return self.shared > 0 or self.verbatim


@dataclass(frozen=True)
class Contamination:
    """Evaluation texts, and the overlap of each with a corpus."""

    found: TaskTexts
    n: int
    overlaps: Mapping[str, Overlap]
    """By text"""
    corpus_words: int

    def contaminated(self, data: str) -> set[int]:
        """Numbers of the questions of a data set with a contaminated text."""
        return {question for question, some in self.by_question(data).items() if any(o.contaminated for o in some)}

    def by_question(self, data: str) -> dict[int, list[Overlap]]:
        """The overlaps of the texts of every question of a data set."""
        questions: dict[int, list[Overlap]] = defaultdict(list)
        for text in self.found.texts:
            if text.data == data:
                questions[text.question].append(self.overlaps[text.text])
        return questions


def find_contamination(found: TaskTexts, corpus: Iterable[Piece], n: int) -> Contamination:
    """Search a corpus for all n-grams of the texts and for the whole texts, in one pass.

    Raises UserError if the texts have no words, or the corpus has none.
    """
    texts = list(dict.fromkeys(text.text for text in found.texts))
    words = [words_of(text) for text in texts]
    length_T = np.array([len(parts) for parts in words])
    if not length_T.any():
        raise UserError("the evaluation texts have no words")
    flat = list(chain.from_iterable(words))
    first_T = np.cumsum(length_T) - length_T
    count_T = np.maximum(length_T - n + 1, 0)
    text_G = np.repeat(np.arange(len(texts)), count_T)
    start_G = np.arange(len(text_G)) + (first_T - (np.cumsum(count_T) - count_T))[text_G]
    (worded_T,) = np.nonzero(length_T)
    starts = np.concatenate([start_G, first_T[worded_T]])
    search = WordSequences(flat, starts, np.concatenate([np.full(len(start_G), n), length_T[worded_T]]))
    found_S = search.found_in(corpus)
    if not search.words_read:
        raise UserError("the training corpus has no words")
    shared_G, verbatim_T = found_S[: len(start_G)], np.zeros(len(texts), bool)
    verbatim_T[worded_T] = found_S[len(start_G) :]
    with_example, first_G = np.unique(text_G[shared_G], return_index=True)
    example_start = start_G[shared_G][first_G].tolist()
    examples = {t: " ".join(flat[i : i + n]) for t, i in zip(with_example.tolist(), example_start, strict=True)}
    columns = zip(
        length_T.tolist(),
        np.bincount(text_G, minlength=len(texts)).tolist(),
        np.bincount(text_G[shared_G], minlength=len(texts)).tolist(),
        (examples.get(t, "") for t in range(len(texts))),
        verbatim_T.tolist(),
        strict=True,
    )
    overlaps = {text: Overlap(*column) for text, column in zip(texts, columns, strict=True)}
    return Contamination(found, n, overlaps, search.words_read)


def words_of(text: str) -> list[str]:
    """The normalised words of a text."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


class WordSequences:
    """An exact search for many sequences of words in a large text.

    The sequences form a trie whose levels are sorted arrays: level d has one node for every distinct prefix of d + 1
    words. All positions of a part of the text descend the trie together, with a few array operations per level. Very
    few positions remain active after the first levels.

    Attributes:
        words_read: number of words of the text that was searched last.
    """

    def __init__(self, words: Sequence[str], start_S: NDArray[np.int64], length_S: NDArray[np.int64]) -> None:
        """Sequence s is `words[start_S[s] : start_S[s] + length_S[s]]`, at least one word."""
        assert len(start_S), "no sequences"
        assert length_S.min() > 0, "a sequence without words"
        self._number: dict[str, int] = {}
        numbers = np.array([self._number.setdefault(word, len(self._number) + 1) for word in words], np.int64)
        self._length_S = length_S
        self._node_S = numbers[start_S]  # on the first level, the node of a word is its number
        self._keys: list[NDArray[np.int64]] = []
        for depth in range(1, int(length_S.max())):
            longer = length_S > depth
            key = self._node_S[longer] * self._base + numbers[start_S[longer] + depth]
            keys, self._node_S[longer] = np.unique(key, return_inverse=True)
            self._keys.append(keys)
        self.words_read = 0

    @property
    def _base(self) -> int:
        """Larger than the number of any word; the key of a node is its parent node * base + the number of its word."""
        return len(self._number) + 1

    def found_in(self, pieces: Iterable[Piece]) -> NDArray[np.bool_]:
        """bool[S]: whether the words of the sequence occur consecutively in one of the documents."""
        self.words_read = 0
        seen = [np.zeros(self._base, bool), *(np.zeros(len(keys), bool) for keys in self._keys)]
        rest_N = np.empty(0, np.int64)
        for part_N in self._parts(pieces):
            words_N = np.concatenate([rest_N, part_N])
            self._mark(words_N, seen)
            rest_N = words_N[max(0, len(words_N) - len(self._keys)) :]  # a sequence may continue in the next part
        found_S = np.zeros(len(self._length_S), bool)
        for depth, marks in enumerate(seen):
            ends_here = self._length_S == depth + 1
            found_S[ends_here] = marks[self._node_S[ends_here]]
        return found_S

    def _parts(self, pieces: Iterable[Piece]) -> Iterator[NDArray[np.int64]]:
        """Numbers of the words of a text, in parts of about equal size, with `_OTHER` before each document."""
        numbers: list[int] = []
        for piece in pieces:
            if piece.opens_document:
                numbers.append(_OTHER)
            words = words_of(piece.text)
            self.words_read += len(words)
            numbers.extend(map(self._number.get, words, repeat(_OTHER)))
            if len(numbers) >= _WORDS_PER_PART:
                yield np.array(numbers, np.int64)
                numbers = []
        yield np.array(numbers, np.int64)

    def _mark(self, words_N: NDArray[np.int64], seen: Sequence[NDArray[np.bool_]]) -> None:
        """Mark all nodes that the text reaches from any of its positions."""
        (at_A,) = np.nonzero(words_N != _OTHER)
        node_A = words_N[at_A]
        seen[0][node_A] = True
        for depth, keys in enumerate(self._keys, 1):
            inside_A = at_A + depth < len(words_N)
            at_A, node_A = at_A[inside_A], node_A[inside_A]
            if not len(at_A):
                return
            key_A = node_A * self._base + words_N[at_A + depth]
            index_A = np.minimum(np.searchsorted(keys, key_A), len(keys) - 1)
            known_A = keys[index_A] == key_A
            at_A, node_A = at_A[known_A], index_A[known_A]
            seen[depth][node_A] = True


@contextmanager
def training_text(corpus: Path | None, files: Sequence[Path]) -> Iterator[Iterator[Piece]]:
    """The documents of the training split of a corpus folder and of text files, with a progress bar on a terminal.

    Raises UserError if neither is given, or one of them cannot be read.
    """
    if corpus is None and not files:
        raise UserError("no training text: give the corpus folder with --corpus, or text files with --text")
    opened = Corpus.open(corpus) if corpus is not None else None
    sources = find_sources(files) if files else []
    total = (opened.train.text_bytes if opened else 0) + sum(source.stat().st_size for source in sources)
    known = not any(source.suffix in COMPRESSED_SUFFIXES for source in sources)
    with byte_progress("searching", total if known else None, show=sys.stderr.isatty()) as advance:

        def pieces() -> Iterator[Piece]:
            read = [decoded_pieces(opened.train, opened.tokenizer)] if opened is not None else []
            for piece in chain(*read, chain.from_iterable(map(read_pieces, sources))):
                yield piece
                advance(len(piece.text.encode()))

        yield pieces()


def decoded_pieces(split: Split, tokenizer: Tokenizer) -> Iterator[Piece]:
    """The documents of a split, long ones in pieces that end with a blank.

    The text is normalised by the tokenizer, and has the blank that the tokenizer adds before texts and lines. Bytes
    that are not UTF-8 become U+FFFD.
    """
    for start, stop in pairwise(split.offsets.tolist()):
        rest, opens = b"", True
        for first in range(start, stop, _TOKENS_PER_PART):
            last = min(first + _TOKENS_PER_PART, stop)
            text = rest + b"".join(map(tokenizer.token_text.bytes_V.__getitem__, split.tokens[first:last].tolist()))
            cut = len(text) if last == stop else max(text.rfind(b" "), text.rfind(b"\n")) + 1
            if cut:
                yield Piece(text[:cut].decode("utf-8", errors="replace"), opens)
                opens = False
            rest = text[cut:]
