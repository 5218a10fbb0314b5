"""An exact search for many sequences of words in a large text, in one pass.

Shape suffixes: S searched sequences, N terms of a part of the text, A active positions in that part, D documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.data.readers import Piece
from ltg_mdlm.data.words import terms_of

OTHER = 0
"""Number of the terms that are in no sequence, and of the border between documents."""

_WORDS_PER_PART = 1 << 19


class WordSequences:
    """An exact search for many sequences of words in a large text.

    The sequences form a trie whose levels are sorted arrays: level d has one node for every distinct prefix of d + 1
    words. All positions of a part of the text descend the trie together, with a few array operations per level. Very
    few positions remain active after the first levels.

    Attributes:
        words_read: words of the text that was searched last, by white space
        terms_read: its terms
    """

    def __init__(self, words: Sequence[str], start_S: NDArray[np.int64], length_S: NDArray[np.int64]) -> None:
        """Sequence s is `words[start_S[s] : start_S[s] + length_S[s]]`, at least one word."""
        assert len(start_S), "no sequences"
        assert length_S.min() > 0, "a sequence without words"
        self._number: dict[str, int] = {}
        numbers = np.array([self._number.setdefault(word, len(self._number) + 1) for word in words], np.int64)
        self._length_S = length_S
        self.node_S = numbers[start_S]  # on the first level, the node of a word is its number
        self._keys: list[NDArray[np.int64]] = []
        for depth in range(1, int(length_S.max())):
            longer = length_S > depth
            key = self.node_S[longer] * self._base + numbers[start_S[longer] + depth]
            keys, self.node_S[longer] = np.unique(key, return_inverse=True)
            self._keys.append(keys)
        self.words_read = self.terms_read = 0

    @property
    def _base(self) -> int:
        """Larger than the number of any word; the key of a node is its parent node * base + the number of its word."""
        return len(self._number) + 1

    def found_in(self, pieces: Iterable[Piece]) -> NDArray[np.bool_]:
        """bool[S]: whether the words of the sequence occur consecutively in one of the documents."""
        self.words_read = self.terms_read = 0
        seen = [np.zeros(self._base, bool), *(np.zeros(len(keys), bool) for keys in self._keys)]
        rest_N = np.empty(0, np.int64)
        for part_N in self._parts(pieces):
            words_N = np.concatenate([rest_N, part_N])
            for marks, (_, node_A) in zip(seen, self.levels(words_N), strict=False):
                marks[node_A] = True
            rest_N = words_N[max(0, len(words_N) - len(self._keys)) :]  # a sequence may continue in the next part
        found_S = np.zeros(len(self._length_S), bool)
        for depth, marks in enumerate(seen):
            ends_here = self._length_S == depth + 1
            found_S[ends_here] = marks[self.node_S[ends_here]]
        return found_S

    def _parts(self, pieces: Iterable[Piece]) -> Iterator[NDArray[np.int64]]:
        """Numbers of the words of a text, in parts of about equal size, with `OTHER` before each document."""
        numbers: list[int] = []
        for piece in pieces:
            if piece.opens_document:
                numbers.append(OTHER)
            self.words_read += len(piece.text.split())
            own = self.numbers_of(piece.text)
            self.terms_read += len(own)
            numbers.extend(own)
            if len(numbers) >= _WORDS_PER_PART:
                yield np.array(numbers, np.int64)
                numbers = []
        yield np.array(numbers, np.int64)

    def numbers_of(self, text: str) -> list[int]:
        """The number of each term of a text; `OTHER` for terms that are in no sequence."""
        return list(map(self._number.get, terms_of(text), repeat(OTHER)))

    def levels(self, words_N: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """For each level: the positions of the text from which the trie is descended so far, and the node reached."""
        (at_A,) = np.nonzero(words_N != OTHER)
        node_A = words_N[at_A]
        yield at_A, node_A
        for depth, keys in enumerate(self._keys, 1):
            inside_A = at_A + depth < len(words_N)
            at_A, node_A = at_A[inside_A], node_A[inside_A]
            key_A = node_A * self._base + words_N[at_A + depth]
            index_A = np.minimum(np.searchsorted(keys, key_A), len(keys) - 1)
            known_A = keys[index_A] == key_A
            at_A, node_A = at_A[known_A], index_A[known_A]
            yield at_A, node_A
            if not len(at_A):
                return


class SharedNgrams:
    """Documents that share an n-gram of terms with given texts; a text of fewer terms is not searched.

    Attributes:
        n: terms of an n-gram
        found: by the number of each such document, the first n-gram that it shares
    """

    def __init__(self, texts: Iterable[str], n: int) -> None:
        self.n = n
        self.found: dict[int, str] = {}
        terms: list[str] = []
        starts: list[int] = []
        for text in dict.fromkeys(texts):
            own = terms_of(text)
            starts.extend(range(len(terms), len(terms) + len(own) - n + 1))
            terms.extend(own)
        self._terms = terms
        self._search = WordSequences(terms, np.array(starts), np.full(len(starts), n)) if starts else None
        self._start_of_node = dict(zip(self._search.node_S.tolist(), starts, strict=True)) if self._search else {}
        self._numbers: list[int] = []
        self._open_D: list[int] = []
        self._documents = 0

    def describe(self) -> dict[str, Any]:
        """What determines the documents that are found, for corpus.json."""
        return {"ngram": self.n, "sha256": hashlib.sha256(" ".join(self._terms).encode()).hexdigest()}

    def add(self, piece: Piece) -> None:
        """Search the next piece of the text."""
        if self._search is None:
            return
        if piece.opens_document:
            if len(self._numbers) >= _WORDS_PER_PART:
                self.finish()
            self._numbers.append(OTHER)
            self._open_D.append(len(self._numbers))
        elif len(self._numbers) >= 4 * _WORDS_PER_PART:  # a very long document
            self._search_part()
            self._numbers = [OTHER, *self._numbers[-(self.n - 1) :]] if self.n > 1 else [OTHER]
            self._documents += len(self._open_D) - 1
            self._open_D = [1]
        self._numbers.extend(self._search.numbers_of(piece.text))

    def finish(self) -> None:
        """Search what was added and not searched yet; the next piece opens a document."""
        self._search_part()
        self._documents += len(self._open_D)
        self._numbers, self._open_D = [], []

    def _search_part(self) -> None:
        if self._search is None or not self._open_D:
            return
        levels = list(self._search.levels(np.array(self._numbers, np.int64)))
        if len(levels) < self.n:
            return
        at_A, node_A = levels[self.n - 1]
        document_A = np.searchsorted(self._open_D, at_A, side="right") - 1 + self._documents
        for document, node in zip(document_A.tolist(), node_A.tolist(), strict=True):
            if document not in self.found:
                start = self._start_of_node[node]
                self.found[document] = " ".join(self._terms[start : start + self.n])
