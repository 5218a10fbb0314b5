"""From text to token ids, with a mark on every token in which a word of the text begins.

Suffixes: N tokens, P pieces of text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.data.boundaries import join_units, plain_unit_ends
from ltg_mdlm.data.sources import Piece
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.data.unit_table import UnitTable

_CODE = np.dtype(np.uint32)  # 2 * id + (a word begins here)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Tokens of some pieces of text, back to back."""

    ids_N: NDArray[np.unsignedinteger]
    word_start_N: NDArray[np.bool_]
    """A word's first character is in this token."""
    tokens_P: NDArray[np.int64]
    """Tokens of each piece."""
    words_P: NDArray[np.int64]
    """Words that begin in each piece; their sum is the number of marked tokens."""
    opens_P: NDArray[np.bool_]
    """The piece is the first of its document."""
    text_bytes: int
    """Size of the text in UTF-8."""


class Encoder:
    """Encodes text; for the stack's own tokenizer by looking up units (`boundaries`), which is much faster."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend = tokenizer.backend
        self._text = tokenizer.token_text
        self._by_units = tokenizer.cuts_at_spaces
        self._units = UnitTable(self._encode_joined, self._encode_each)
        self.id_type = id_type(tokenizer.vocab_size)

    def encode(self, pieces: Sequence[Piece]) -> Encoded:
        """Encode pieces in the order of the text; long documents in pieces need the stack's tokenizer."""
        codes = [self._encode_piece(piece.text) for piece in pieces]
        code_N = np.frombuffer(b"".join(codes), _CODE)
        word_start_N = (code_N & 1).astype(bool)
        tokens_P = np.array([len(code) // _CODE.itemsize for code in codes], np.int64)
        begun_N1 = np.concatenate([[0], np.cumsum(word_start_N)])
        end_P = np.cumsum(tokens_P)
        return Encoded(
            ids_N=(code_N >> 1).astype(self.id_type),
            word_start_N=word_start_N,
            tokens_P=tokens_P,
            words_P=begun_N1[end_P] - begun_N1[end_P - tokens_P],
            opens_P=np.array([piece.opens_document for piece in pieces], bool),
            text_bytes=sum(len(piece.text.encode()) for piece in pieces),
        )

    def _encode_piece(self, text: str) -> bytes:
        if not self._by_units:
            return self._encode_each([text])[0]
        return b"".join(self._units.values(text))

    def _encode_joined(self, units: Sequence[str]) -> list[bytes]:
        """The codes of plain units, tokenised as one text: several times faster than one by one."""
        (encoding,) = self._backend.encode_batch_fast([join_units(units)], add_special_tokens=False)
        id_N = np.array(encoding.ids, np.int64)
        end_P = plain_unit_ends(units, self._text.length_V[id_N])
        return self._codes_of(id_N, end_P)

    def _encode_each(self, texts: Sequence[str]) -> list[bytes]:
        """The codes of any texts, tokenised one by one."""
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        ids = [self._without_last_blank(text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]
        id_N = np.fromiter(chain.from_iterable(ids), np.int64)
        codes = self._codes_of(id_N, np.cumsum([len(piece) for piece in ids], dtype=np.int64))
        return [self._checked(text, code) for text, code in zip(texts, codes, strict=True)]

    def _without_last_blank(self, text: str, ids: list[int]) -> list[int]:
        """A unit that ends a line: the blank that the normaliser puts behind it belongs to the next unit."""
        return ids[:-1] if self._by_units and text.endswith("\n") else ids

    def _codes_of(self, id_N: NDArray[np.int64], end_P: NDArray[np.int64]) -> list[bytes]:
        """Cut tokens into pieces that end at `end_P`, each the beginning of a word or text."""
        first_N = np.zeros(len(id_N) + 1, bool)
        first_N[0] = True
        first_N[end_P] = True
        word_start_N = self._text.word_starts(id_N, first_N[:-1])
        code = ((id_N << 1) | word_start_N).astype(_CODE).tobytes()
        bounds = [0, *(end_P * _CODE.itemsize).tolist()]
        return [code[start:end] for start, end in pairwise(bounds)]

    def _checked(self, text: str, code: bytes) -> bytes:
        """Mark words by the tokens' offsets where normalisation changed white space, as in "don´t" -> "don ́t"."""
        code_N = np.frombuffer(code, _CODE)
        if np.count_nonzero(code_N & 1) == len(text.split()):
            return code
        ends = [end for _, end in self._backend.encode(text, add_special_tokens=False).offsets]
        word_start_N = word_starts_by_offsets(text, np.array(ends[: len(code_N)]))
        return bytes((code_N >> 1 << 1 | word_start_N).astype(_CODE).tobytes())


def word_starts_by_offsets(text: str, end_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[N]: a word's first character is in this token, which ends before character `end_N` of `text`.

    One mark per word: a word whose token is marked already takes the next free one, or the last free one before.
    A text with more words than tokens (no byte-level vocabulary has one) has every token marked.
    """
    first_W = np.array([match.start() for match in re.finditer(r"\S+", text)], np.int64)[: len(end_N)]
    count = len(first_W)
    order_W = np.arange(count)
    token_W = np.searchsorted(np.maximum.accumulate(end_N), first_W, side="right")
    token_W = np.maximum.accumulate(token_W - order_W) + order_W
    token_W = np.minimum(token_W, len(end_N) - count + order_W)
    return np.isin(np.arange(len(end_N)), token_W)


def id_type(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest type for token ids on disk."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
