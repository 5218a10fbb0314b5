"""Documents cut into pieces and packed into rows, several to a row.

Which piece lengths share a row is decided once, from the histogram of lengths; every epoch then deals the pieces of
each length anew to the places for it, and shuffles the rows. So the number of rows, and the tokens in them, are the
same in every epoch, and each token of the corpus is in exactly one row of each epoch.

Suffixes: P pieces, C places for a piece, R rows, D documents; a trailing 1 means one more, as in bounds.

Packed rows as arrays of token ids: pieces of documents copied to their places, without a Python loop.

Suffixes: B rows, T tokens per row, P pieces of those rows, N tokens of the corpus in them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.random import shuffled as permutation
from ltg_mdlm.data.corpus import Split
from ltg_mdlm.data.tokenizer import BOS, EOS, NUM_SPECIAL, PAD

Packing = Literal["documents_packed", "one_document"]


SHORTEST_ROW = 3
"""`<s>`, a token and `</s>`."""


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Consecutive parts of the documents, each short enough for a row."""

    start_P: NDArray[np.int64]
    """First token, as a place in the corpus."""
    length_P: NDArray[np.int32]
    """Tokens of the corpus, at least one."""
    closes_P: NDArray[np.bool_]
    """The piece is followed by `</s>`."""

    @property
    def size_P(self) -> NDArray[np.int32]:
        """Room in a row: `<s>`, the tokens, and perhaps `</s>`."""
        return self.length_P + 1 + self.closes_P


def cut_documents(offset_D1: NDArray[np.int64], seq_len: int, *, end_of_document: bool) -> Pieces:
    """Cut every document into pieces that fill a row, and a rest.

    With `end_of_document` the last piece of a document leaves room for `</s>`; a document that would fill its rows
    exactly gives its last token to one more piece, for `</s>` never stands alone.
    """
    length_D = np.diff(offset_D1)
    room = seq_len - 1
    last_D = (length_D - 1) % room + 1
    count_D = (length_D - 1) // room + 1
    full_D = end_of_document & (last_D == room)  # no place for </s>
    count_D = count_D + full_D
    last_P = np.cumsum(count_D) - 1
    length_P = np.full(last_P[-1] + 1, room, np.int32)
    length_P[last_P] = np.where(full_D, 1, last_D)
    length_P[last_P[full_D] - 1] -= 1
    closes_P = np.zeros(len(length_P), bool)
    closes_P[last_P] = end_of_document
    start_P = np.cumsum(length_P, dtype=np.int64) - length_P + offset_D1[0]
    return Pieces(start_P, length_P, closes_P)


def pack_sizes(count_S: NDArray[np.int64], seq_len: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Best-fit decreasing over a histogram: `count_S[s]` pieces of size s into rows of `seq_len`.

    Pieces of equal size are placed together, in as many equal rows at once as there are (Krell et al. 2021,
    arXiv 2107.02027, section 3), so that the time depends on the number of sizes only.

    Returns:
        size_C: size of the piece in every place, row after row, sizes decreasing within a row
        bound_R1: the places of row r are bound_R1[r] to bound_R1[r + 1]
    """
    open_rows = _OpenRows(seq_len)
    for size in range(min(seq_len, len(count_S) - 1), 0, -1):
        left = open_rows.fill(size, int(count_S[size]))
        whole, rest = divmod(left, seq_len // size)
        open_rows.add((size,) * (seq_len // size), whole)
        open_rows.add((size,) * rest, min(rest, 1))
    patterns = open_rows.patterns()
    size_C = np.concatenate([np.tile(np.array(sizes, np.int32), rows) for sizes, rows in patterns])
    pieces_R = np.repeat([len(sizes) for sizes, _ in patterns], [rows for _, rows in patterns])
    return size_C, np.concatenate([[0], np.cumsum(pieces_R)])


class _OpenRows:
    """Rows that are not full, counted by the room they have left and the sizes in them."""

    def __init__(self, seq_len: int) -> None:
        self._seq_len = seq_len
        self._by_room: dict[int, dict[tuple[int, ...], int]] = defaultdict(lambda: defaultdict(int))

    def add(self, sizes: tuple[int, ...], rows: int) -> None:
        if rows:
            self._by_room[self._seq_len - sum(sizes)][sizes] += rows

    def fill(self, size: int, left: int) -> int:
        """Place pieces where the least room remains, while they fit; returns how many do not."""
        while left and (room := min((room for room in self._by_room if room >= size), default=0)):
            for sizes, rows in self._by_room.pop(room).items():
                placed = min(rows, left)
                self.add((*sizes, size), placed)
                self.add(sizes, rows - placed)
                left -= placed
        return left

    def patterns(self) -> list[tuple[tuple[int, ...], int]]:
        """(sizes, rows) of all kinds of row, in a fixed order."""
        return [pattern for room in sorted(self._by_room) for pattern in sorted(self._by_room[room].items())]


@dataclass(frozen=True, slots=True, eq=False)
class EpochOrder:
    """Which pieces are in which row in one epoch."""

    piece_C: NDArray[np.int64]
    """Piece in every place, row after row."""
    bound_R1: NDArray[np.int64]
    """The places of row r are bound_R1[r] to bound_R1[r + 1]."""
    tokens_R1: NDArray[np.int64]
    """Tokens other than padding in the rows before r."""
    words_R1: NDArray[np.int64]
    """Words of the text that begin in the rows before r."""

    def rows(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64[C], int64[R]: pieces of the rows `start` to `stop`, and how many each row has."""
        return self.piece_C[self.bound_R1[start] : self.bound_R1[stop]], np.diff(self.bound_R1[start : stop + 1])


class RowPlan:
    """The rows of a split at one row length.

    Attributes:
        pieces: what is packed
        rows: rows of an epoch
        tokens: tokens other than padding in an epoch, `<s>` and `</s>` included
        words: words of the text in an epoch
    """

    def __init__(self, split: Split, seq_len: int, *, packing: Packing, end_of_document: bool) -> None:
        """Raises UserError for rows too short to hold a token between `<s>` and `</s>`."""
        if seq_len < SHORTEST_ROW:
            raise UserError(f"training.seq_len: rows of {seq_len} tokens; at least {SHORTEST_ROW}")
        self.seq_len = seq_len
        self.pieces = cut_documents(split.offsets, seq_len, end_of_document=end_of_document)
        self._size_P = self.pieces.size_P
        self._words_P = split.words_between(np.append(self.pieces.start_P, split.num_tokens))
        if packing == "one_document":
            self._size_C, self._bound_R1 = np.sort(self._size_P), np.arange(len(self._size_P) + 1)
        else:
            self._size_C, self._bound_R1 = pack_sizes(np.bincount(self._size_P), seq_len)
        self._place_C = np.argsort(self._size_C, kind="stable")  # places in the order of their sizes
        self.rows = len(self._bound_R1) - 1
        self.tokens = int(self._size_P.sum(dtype=np.int64))
        self.words = int(self._words_P.sum())

    @property
    def non_pad_share(self) -> float:
        """Share of the positions of an epoch's rows that hold tokens."""
        return self.tokens / (self.rows * self.seq_len)

    def order(self, *key: int) -> EpochOrder:
        """The epoch that `key` (seed, stage, epoch) stands for."""
        dealt_P = permutation(len(self._size_P), *key, 0)
        piece_C = np.empty_like(dealt_P)
        piece_C[self._place_C] = dealt_P[np.argsort(self._size_P[dealt_P], kind="stable")]
        row_R = permutation(self.rows, *key, 1)
        count_R = np.diff(self._bound_R1)[row_R]
        bound_R1 = np.concatenate([[0], np.cumsum(count_R)])
        place_C = np.arange(len(piece_C)) + np.repeat(self._bound_R1[row_R] - bound_R1[:-1], count_R)
        piece_C = piece_C[place_C]
        tokens_R1, words_R1 = (
            np.concatenate([[0], np.cumsum(value_P[piece_C], dtype=np.int64)])[bound_R1]
            for value_P in (self._size_P, self._words_P)
        )
        return EpochOrder(piece_C, bound_R1, tokens_R1, words_R1)


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
