"""Writing a split as it streams by."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.data.corpus import split_files
from ltg_mdlm.data.encode import Encoded


class SplitWriter:
    """Appends encoded text to the files of one split while its context lasts; memory does not grow with the text.

    Suffixes: N tokens, P pieces, D documents of one batch, V vocabulary.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        folder.mkdir()
        self._open = ExitStack()
        self._types = {name: dtype for name, (dtype, _) in split_files(0, 0, vocab_size).items()}
        self._files = {name: self._open.enter_context((folder / f"{name}.bin").open("wb")) for name in self._types}
        self._token_count_V = np.zeros(vocab_size, np.int64)
        self._bits_left = np.zeros(0, bool)
        self._open_tokens = self._open_words = 0  # of the document that is not complete
        self.tokens = self.documents = self.words = self.text_bytes = 0
        self._append("offsets", np.zeros(1))

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, encoded: Encoded) -> None:
        """Append a batch; its first piece may go on with the last document."""
        self._append("tokens", encoded.ids_N)
        self._token_count_V += np.bincount(encoded.ids_N, minlength=len(self._token_count_V))
        bit_N = np.concatenate([self._bits_left, encoded.word_start_N])
        whole = len(bit_N) // 8 * 8
        self._append("word_bits", np.packbits(bit_N[:whole], bitorder="little"))
        self._bits_left = bit_N[whole:]
        self.text_bytes += encoded.text_bytes
        self._add_documents(encoded)

    def _add_documents(self, encoded: Encoded) -> None:
        """The documents that end in this batch are complete when the next one opens."""
        first_D = np.flatnonzero(encoded.opens_P)
        bound_D = np.concatenate([[0], first_D, [len(encoded.opens_P)]])
        tokens_D, words_D = (_sums(count_P, bound_D) for count_P in (encoded.tokens_P, encoded.words_P))
        tokens_D[0] += self._open_tokens
        words_D[0] += self._open_words
        self._open_tokens, self._open_words = int(tokens_D[-1]), int(words_D[-1])
        self._close_documents(tokens_D[:-1], words_D[:-1])

    def _close_documents(self, tokens_D: NDArray[np.int64], words_D: NDArray[np.int64]) -> None:
        tokens_D, words_D = tokens_D[tokens_D > 0], words_D[tokens_D > 0]
        self._append("offsets", self.tokens + np.cumsum(tokens_D))
        self._append("words", words_D)
        self.tokens += int(tokens_D.sum())
        self.words += int(words_D.sum())
        self.documents += len(words_D)

    def finish(self) -> dict[str, int]:
        """Write what is left, and return the counts of the split."""
        self._close_documents(np.array([self._open_tokens]), np.array([self._open_words]))
        self._append("word_bits", np.packbits(self._bits_left, bitorder="little"))
        self._append("token_count_V", self._token_count_V)
        return {name: getattr(self, name) for name in ("documents", "tokens", "words", "text_bytes")}

    def _append(self, name: str, array: NDArray[Any]) -> None:
        self._files[name].write(array.astype(self._types[name], copy=False).tobytes())


def _sums(count_P: NDArray[np.int64], bound_D: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of `count_P` between consecutive bounds."""
    total_P1 = np.concatenate([[0], np.cumsum(count_P)])
    return np.asarray(np.diff(total_P1[bound_D]))
