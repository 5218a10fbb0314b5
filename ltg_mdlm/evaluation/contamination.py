"""Which evaluation texts stand in the training corpus, wholly or in part.

A text shares an n-gram with the corpus if n of its words stand there directly one after another, within one document;
it stands there verbatim if all its words do.  Words are those of `word_sequences`.

Suffixes: T distinct texts, G n-grams of them all.

Which of many word sequences stand in a large text: exactly, in one pass over the text.

The sequences form a trie, the levels of which are sorted arrays. All positions of a part of the text descend it
together, one array operation per level; very few are left after the first levels.

Words are runs of letters and digits, after NFKC normalisation and lower-casing: what stands between them, punctuation
or a line break, does not count, and "Don't" is the two words "don" and "t".

Suffixes: S sequences, N words of a part of the text, A those positions of it that are still alive.

The text that a model was trained on, to be read once.

The text of a tokenised corpus.
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


@contextmanager
def training_text(corpus: Path | None, files: Sequence[Path]) -> Iterator[Iterator[Piece]]:
    """The documents of a corpus folder's training split and of text files, with a progress bar on a terminal.

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
            if opened is not None:
                yield from decoded_pieces(opened.train, opened.tokenizer)
            for source in sources:
                yield from read_pieces(source)

        def counted() -> Iterator[Piece]:
            for piece in pieces():
                yield piece
                advance(len(piece.text.encode()))

        yield counted()


_TOKENS_AT_ONCE = 1 << 18


def decoded_pieces(split: Split, tokenizer: Tokenizer) -> Iterator[Piece]:
    """The documents of a split, long ones in pieces that end with a blank.

    The text is as the tokenizer has normalised it, with the blank that it puts before texts and lines; bytes that are
    no UTF-8 come as U+FFFD.
    """
    for start, stop in pairwise(split.offsets.tolist()):
        rest, opens = b"", True
        for first in range(start, stop, _TOKENS_AT_ONCE):
            last = min(first + _TOKENS_AT_ONCE, stop)
            text = rest + b"".join(map(tokenizer.token_text.bytes_V.__getitem__, split.tokens[first:last].tolist()))
            cut = len(text) if last == stop else max(text.rfind(b" "), text.rfind(b"\n")) + 1
            if cut:
                yield Piece(text[:cut].decode("utf-8", errors="replace"), opens)
                opens = False
            rest = text[cut:]
