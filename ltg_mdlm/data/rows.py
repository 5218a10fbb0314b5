"""Packed rows as arrays of token ids: pieces of documents copied to their places, without a Python loop.

Suffixes: B rows, T tokens per row, P pieces of those rows, N tokens of the corpus in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.data.corpus import Split
from ltg_mdlm.data.packing import Pieces
from ltg_mdlm.data.special_tokens import BOS, EOS, NUM_SPECIAL, PAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The arrays of an `api.Batch`."""

    ids_BT: NDArray[np.int64]
    document_BT: NDArray[np.int32]
    position_BT: NDArray[np.int64]
    maskable_BT: NDArray[np.bool_]


def fill_rows(
    split: Split, pieces: Pieces, piece_P: NDArray[np.int64], count_B: NDArray[np.int64], seq_len: int
) -> Rows:
    """Lay out `count_B` pieces in each row, one after the other, and padding behind them.

    Each piece is `<s>`, its tokens and, where it closes a document to be ended, `</s>`, which is maskable but has no
    place in the corpus (-1).
    """
    rows = len(count_B)
    start_P, length_P, closes_P = (column[piece_P] for column in (pieces.start_P, pieces.length_P, pieces.closes_P))
    size_P = length_P + 1 + closes_P
    row_P = np.repeat(np.arange(rows), count_B)
    first_piece_P = np.repeat(np.cumsum(count_B) - count_B, count_B)
    before_P = np.cumsum(size_P, dtype=np.int64) - size_P
    at_P = row_P * seq_len + before_P - before_P[first_piece_P]  # places counted through all rows
    end_P = at_P + size_P - 1

    ids = np.full(rows * seq_len, PAD, np.int64)
    position = np.full(rows * seq_len, -1, np.int64)
    token_N = np.arange(length_P.sum(dtype=np.int64))
    tokens_before_P = np.cumsum(length_P, dtype=np.int64) - length_P
    source_N = token_N + np.repeat(start_P - tokens_before_P, length_P)
    place_N = token_N + np.repeat(at_P + 1 - tokens_before_P, length_P)
    ids[place_N] = split.tokens[source_N]
    position[place_N] = source_N
    maskable = ids >= NUM_SPECIAL
    ids[at_P] = BOS
    ids[end_P[closes_P]] = EOS
    maskable[end_P[closes_P]] = True

    document = np.full(rows * seq_len, -1, np.int32)
    place = np.arange(before_P[-1] + size_P[-1]) + np.repeat(at_P - before_P, size_P)
    document[place] = np.repeat(np.arange(len(piece_P)) - first_piece_P, size_P)
    shape = (rows, seq_len)
    return Rows(
        ids_BT=ids.reshape(shape),
        document_BT=document.reshape(shape),
        position_BT=position.reshape(shape),
        maskable_BT=maskable.reshape(shape),
    )
