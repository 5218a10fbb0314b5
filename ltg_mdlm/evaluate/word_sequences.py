"""Which of many word sequences stand in a large text: exactly, in one pass over the text.

The sequences form a trie, the levels of which are sorted arrays. All positions of a part of the text descend it
together, one array operation per level; very few are left after the first levels.

Words are runs of letters and digits, after NFKC normalisation and lower-casing: what stands between them, punctuation
or a line break, does not count, and "Don't" is the two words "don" and "t".

Suffixes: S sequences, N words of a part of the text, A those positions of it that are still alive.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.data.sources import Piece

_WORD = re.compile(r"[^\W_]+")
_OTHER = 0  # number of every word that is in no sequence, and of the border between documents
_WORDS_AT_ONCE = 1 << 19


def words_of(text: str) -> list[str]:
    """The words of a text, as they are compared."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


class WordSequences:
    """Sequences of words, each of which a text holds or does not.

    Attributes:
        words_read: words of the text that was searched last.
    """

    def __init__(self, words: Sequence[str], start_S: NDArray[np.int64], length_S: NDArray[np.int64]) -> None:
        """Sequence s is `words[start_S[s] : start_S[s] + length_S[s]]`, at least one word."""
        assert len(start_S), "no sequences"
        assert length_S.min() > 0, "a sequence without words"
        self._number: dict[str, int] = {}
        numbers = np.array([self._number.setdefault(word, len(self._number) + 1) for word in words], np.int64)
        self._trie = _Trie(numbers, start_S, length_S, base=len(self._number) + 1)
        self.words_read = 0

    def found_in(self, pieces: Iterable[Piece]) -> NDArray[np.bool_]:
        """bool[S]: the sequence stands in one of the documents, its words directly one after another."""
        self.words_read = 0
        seen = self._trie.nothing_seen()
        overlap = self._trie.depth - 1
        rest_N = np.empty(0, np.int64)
        for part_N in self._parts(pieces):
            words_N = np.concatenate([rest_N, part_N])
            self._trie.mark(words_N, seen)
            rest_N = words_N[max(0, len(words_N) - overlap) :]
        return self._trie.ends_seen(seen)

    def _parts(self, pieces: Iterable[Piece]) -> Iterator[NDArray[np.int64]]:
        """Numbers of the words of a text, in parts of about equal size, `_OTHER` before each document."""
        numbers: list[int] = []
        for piece in pieces:
            if piece.opens_document:
                numbers.append(_OTHER)
            words = words_of(piece.text)
            self.words_read += len(words)
            numbers.extend(map(self._number.get, words, repeat(_OTHER)))
            if len(numbers) >= _WORDS_AT_ONCE:
                yield np.array(numbers, np.int64)
                numbers = []
        yield np.array(numbers, np.int64)


class _Trie:
    """Beginnings of sequences of numbers: level d has one node for every different beginning of d + 1 numbers."""

    def __init__(
        self, numbers: NDArray[np.int64], start_S: NDArray[np.int64], length_S: NDArray[np.int64], *, base: int
    ) -> None:
        """The sequences stand in `numbers`, which are from 1 to below `base`."""
        self._base = base
        self._length_S = length_S
        self._node_S = numbers[start_S]  # on the first level, the number of a word is that of its node
        self._keys: list[NDArray[np.int64]] = []
        for done in range(1, int(length_S.max())):
            longer = length_S > done
            key = self._node_S[longer] * base + numbers[start_S[longer] + done]
            keys, self._node_S[longer] = np.unique(key, return_inverse=True)
            self._keys.append(keys)

    @property
    def depth(self) -> int:
        """Length of the longest sequence."""
        return 1 + len(self._keys)

    def nothing_seen(self) -> list[NDArray[np.bool_]]:
        """A mark for every node of every level."""
        return [np.zeros(self._base, bool), *(np.zeros(len(keys), bool) for keys in self._keys)]

    def mark(self, words_N: NDArray[np.int64], seen: Sequence[NDArray[np.bool_]]) -> None:
        """Mark the nodes that a text reaches, from every position down."""
        (at_A,) = np.nonzero(words_N != _OTHER)
        node_A = words_N[at_A]
        seen[0][node_A] = True
        for done, keys in enumerate(self._keys, 1):
            inside_A = at_A + done < len(words_N)
            at_A, node_A = at_A[inside_A], node_A[inside_A]
            if not len(at_A):
                return
            key_A = node_A * self._base + words_N[at_A + done]
            place_A = np.minimum(np.searchsorted(keys, key_A), len(keys) - 1)
            known_A = keys[place_A] == key_A
            at_A, node_A = at_A[known_A], place_A[known_A]
            seen[done][node_A] = True

    def ends_seen(self, seen: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """bool[S]: the last node of the sequence is marked."""
        found_S = np.zeros(len(self._length_S), bool)
        for level, marks in enumerate(seen):
            ends_here = self._length_S == level + 1
            found_S[ends_here] = marks[self._node_S[ends_here]]
        return found_S
