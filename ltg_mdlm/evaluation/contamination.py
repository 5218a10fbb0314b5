"""Contamination: which evaluation texts occur in the training corpus, as a whole or in part.

A text shares an n-gram with the corpus if n consecutive words of it occur consecutively in one document of the corpus.
It occurs verbatim if all its words do. The words that are compared are normalised terms (`words.terms_of`): punctuation
and line breaks are ignored, and "Don't" is the two terms "don" and "t". The size of the corpus is given in words as
everywhere else: runs of characters without white space.

The search is exact and takes one pass over the corpus.

Shape suffixes: T distinct texts, G n-grams of all texts, S searched sequences.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.terminal import byte_progress
from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.data.readers import Piece, read_pieces
from ltg_mdlm.data.sources import find_sources
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.data.word_sequences import WordSequences
from ltg_mdlm.data.words import terms_of
from ltg_mdlm.evaluation.task_texts import TaskTexts

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
    words = [terms_of(text) for text in texts]
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
    if not search.terms_read:
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


@contextmanager
def training_text(corpus: Path | None, files: Sequence[Path]) -> Iterator[Iterator[Piece]]:
    """The documents of the training split of a corpus folder and of text files, with progress.

    Raises UserError if neither is given, or one of them cannot be read.
    """
    if corpus is None and not files:
        raise UserError("no training text: give the corpus folder with --corpus, or text files with --text")
    opened = Corpus.open(corpus) if corpus is not None else None
    sources = find_sources(files) if files else []
    total = (opened.train.text_bytes if opened else 0) + sum(source.path.stat().st_size for source in sources)
    with byte_progress("searching", total, show=True) as advance:

        def pieces() -> Iterator[Piece]:
            if opened is not None:
                for piece in decoded_pieces(opened.train, opened.tokenizer):
                    yield piece
                    advance(len(piece.text.encode()))
            for source in sources:
                yield from read_pieces(source, advance=advance)

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
