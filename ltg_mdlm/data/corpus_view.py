"""The training split as components see it (`RunContext.corpus`), and its n-grams, counted once and kept on disk.

Suffixes: K different n-grams, D documents, N tokens, P positions; a trailing 1 means one more, as in bounds.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.components import CorpusView
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import reason_of, written_folder
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.synthetic.builtin import default_cache_dir

NGRAMS_AT_ONCE = 1 << 23
"""Occurrences of n-grams that are sorted in main memory at once, which takes about 400 MB."""


class TrainingText(CorpusView):
    """The documents of the training split, mapped from disk."""

    def __init__(self, corpus: Corpus) -> None:
        self.tokens = corpus.train.tokens
        self.offset_D1 = corpus.train.offsets
        self.source_D = corpus.train.source_D
        self.source_names = corpus.train.source_names
        self._folder = corpus.path
        self._opened: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def ngram_counts(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(ids[K, n], count[K]): the different n-grams within documents, sorted by their ids, and their occurrences.

        Counted once for the text of a corpus, in bounded memory. The result is kept beside the corpus, or else in the
        user's cache or in the folder for temporary files, and mapped from there.

        Raises:
            ValueError: n is less than 1.
            UserError: none of these folders can be written, or the disk is full.
        """
        if n < 1:
            raise ValueError(f"n-grams have at least one token, not {n}")
        if n not in self._opened:
            self._opened[n] = self._read_or_count(n)
        return self._opened[n]

    def fingerprint(self) -> str:
        """SHA-256 of tokens and documents."""
        digest = hashlib.sha256(f"{self.tokens.dtype.str} {len(self.tokens)}".encode())
        for array in (self.tokens, self.offset_D1):
            for start in range(0, len(array), NGRAMS_AT_ONCE):
                digest.update(np.ascontiguousarray(array[start : start + NGRAMS_AT_ONCE]).data)
        return digest.hexdigest()

    def _read_or_count(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        name = f"ngrams-{n}-{self.fingerprint()[:16]}"
        folders = [self._folder, Path(tempfile.gettempdir()) / f"ltg_mdlm-{os.getuid()}"]
        with suppress(UserError):  # there is no home folder
            folders.insert(1, default_cache_dir())
        for folder in folders:
            if (found := self._read(folder / name, n)) is not None:
                return found
        problems = []
        for folder in folders:
            try:
                with (
                    written_folder(folder / name, replace=True) as aside,
                    (aside / "ids.bin").open("wb") as ids,
                    (aside / "count.bin").open("wb") as count,
                ):
                    for ids_Kn, count_K in count_ngrams(self.tokens, self.offset_D1, n):
                        ids.write(ids_Kn.astype(np.int64).tobytes())
                        count.write(count_K.tobytes())
            except OSError as error:
                problems.append(f"{folder}: {reason_of(error)}")
            # Another process may have published the same counts meanwhile.
            if (found := self._read(folder / name, n)) is not None:
                return found
        raise UserError(f"the counts of {n}-grams cannot be written anywhere\n  " + "\n  ".join(problems))

    def _read(self, folder: Path, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """The counts in a folder; None if it has none of the right size."""
        try:
            ids_size, count_size = ((folder / file).stat().st_size for file in ("ids.bin", "count.bin"))
            kinds, rest = divmod(count_size, 8)
            if rest or ids_size != 8 * kinds * n:
                return None
            if not kinds:
                return np.empty((0, n), np.int64), np.empty(0, np.int64)
            ids_Kn = np.memmap(folder / "ids.bin", np.int64, "r", shape=(kinds, n))
            return np.asarray(ids_Kn), np.asarray(np.memmap(folder / "count.bin", np.int64, "r"))
        except OSError:
            return None


def count_ngrams(
    tokens: NDArray[np.integer[Any]], offset_D1: NDArray[np.int64], n: int, *, at_once: int = NGRAMS_AT_ONCE
) -> Iterator[tuple[NDArray[np.integer[Any]], NDArray[np.int64]]]:
    """Consecutive parts of the sorted table of n-grams: (ids[k, n], count[k]).

    The n-grams that begin with a range of token types are sorted together, so that there are at most `at_once` of them,
    or those of one type. The text is read once for every range.
    """
    types = int(tokens.max()) + 1
    count_V = np.zeros(types, np.int64)
    for start in range(0, len(tokens), at_once):
        count_V += np.bincount(tokens[start : start + at_once], minlength=types)
    first_type = 0
    while first_type < types:
        count_before = np.cumsum(count_V[first_type:])
        last_type = first_type + max(int(np.searchsorted(count_before, at_once, side="right")), 1)
        found = []
        for start in range(0, len(tokens), at_once):
            part = tokens[start : start + at_once]
            position_P = np.flatnonzero((part >= first_type) & (part < last_type)) + start
            end_P = offset_D1[np.searchsorted(offset_D1, position_P, side="right")]
            found.append(position_P[position_P + n <= end_P])
        position_P = np.concatenate(found)
        if len(position_P):
            yield _distinct(tokens, position_P, n, types)
        first_type = last_type


def _distinct(
    tokens: NDArray[np.integer[Any]], position_P: NDArray[np.int64], n: int, types: int
) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64]]:
    """The different n-grams at these positions in sorted order, and how often each occurs."""
    key_P = tokens[position_P].astype(np.uint64)
    largest = types
    for k in range(1, n):
        if largest * types >= 1 << 64:  # number the different beginnings, which keeps their order
            different, number_P = np.unique(key_P, return_inverse=True)
            key_P, largest = number_P.astype(np.uint64), len(different)
        key_P = key_P * np.uint64(types) + tokens[position_P + k].astype(np.uint64)
        largest *= types
    _, first_K, count_K = np.unique(key_P, return_index=True, return_counts=True)
    ids_Kn = tokens[position_P[first_K][:, None] + np.arange(n)]
    return ids_Kn, count_K.astype(np.int64)
