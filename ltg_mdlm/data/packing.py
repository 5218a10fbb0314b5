"""Documents cut into pieces and packed into rows, several pieces to a row.

Which lengths of pieces share a row is decided once, from the histogram of lengths (`pack_sizes`). Every epoch assigns
the pieces of each length at random to the places for that length, and shuffles the rows (`RowPlan.order`). So all
epochs have the same number of rows and of tokens, and each token of the corpus is in exactly one row of every epoch.

Suffixes: P pieces, C places for a piece, R rows of an epoch, B rows of a batch, T tokens per row, D documents,
N tokens of the corpus, I pieces chosen for an epoch; a trailing 1 means one more, as in bounds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.random import shuffled
from ltg_mdlm.core.row_order import RowTable
from ltg_mdlm.data.corpus import Split
from ltg_mdlm.data.tokenizer import BOS, EOS, NUM_SPECIAL, PAD

Packing = Literal["documents_packed", "one_document"]

SHORTEST_ROW = 3
"""`<s>`, a token and `</s>`."""

_DEALS = 4
"""How often pieces with a time are dealt to rows; a fifth deal moves almost none."""


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Consecutive parts of the documents, each short enough for a row."""

    start_P: NDArray[np.int64]
    """Position of the first token in the corpus."""
    length_P: NDArray[np.int32]
    """Tokens of the corpus, at least one."""
    closes_P: NDArray[np.bool_]
    """`</s>` follows the piece."""
    document_P: NDArray[np.int64]
    """Index of the document."""

    @property
    def size_P(self) -> NDArray[np.int32]:
        """Positions in a row: `<s>`, the tokens, and `</s>` if the piece closes a document."""
        return self.length_P + 1 + self.closes_P


class RowPlan:
    """The rows of a split at one row length.

    Attributes:
        seq_len: tokens per row
        pieces: the pieces that are packed
        size_P: positions of each piece in a row
        words_P: words of the text that begin in each piece
        source_P: int16 source of each piece; None if the corpus does not say
        one_document: whether every row is a single piece
        rows: rows of an epoch
        tokens: tokens of an epoch without padding, but with `<s>` and `</s>`
        words: words of the text in an epoch
    """

    def __init__(self, split: Split, seq_len: int, *, packing: Packing, end_of_document: bool) -> None:
        """Cut the documents into pieces and decide which sizes share a row.

        Args:
            split: the documents
            seq_len: tokens per row
            packing: "documents_packed", or "one_document" for a single piece per row
            end_of_document: put `</s>` after every document

        Raises:
            UserError: the rows are too short for a token between `<s>` and `</s>`.
        """
        if seq_len < SHORTEST_ROW:
            raise UserError(
                f"training.seq_len: rows of {seq_len} tokens are too short; must be at least {SHORTEST_ROW}"
            )
        self.seq_len = seq_len
        self.pieces = cut_documents(split.offsets, seq_len, end_of_document=end_of_document)
        self.size_P = self.pieces.size_P
        self.words_P = split.words_between(np.append(self.pieces.start_P, split.num_tokens))
        self.source_P = None if split.source_D is None else split.source_D[self.pieces.document_P]
        self.one_document = packing == "one_document"
        size_C, self._bound_R1 = self._pack(self.size_P)
        self._place_C = np.argsort(size_C, kind="stable")  # places in the order of their sizes
        self.rows = len(self._bound_R1) - 1
        self.tokens = int(self.size_P.sum(dtype=np.int64))
        self.words = int(self.words_P.sum())

    @property
    def non_pad_share(self) -> float:
        """Share of the positions of an epoch's rows that are not padding."""
        return self.tokens / (self.rows * self.seq_len)

    def order(self, *key: int) -> EpochOrder:
        """The order of pieces and rows in one epoch, a function of `key` (seed, stage, epoch)."""
        random_P = shuffled(len(self.size_P), *key, 0)
        piece_C = np.empty_like(random_P)
        piece_C[self._place_C] = random_P[np.argsort(self.size_P[random_P], kind="stable")]
        return self._in_order(piece_C, self._bound_R1, shuffled(self.rows, *key, 1))

    def rows_of(self, piece_I: NDArray[np.int64]) -> int:
        """The number of rows into which these pieces are packed."""
        return len(self._pack(self.size_P[piece_I])[1]) - 1

    def order_of(self, piece_I: NDArray[np.int64], *key: int, time_I: NDArray[np.float64] | None = None) -> EpochOrder:
        """An epoch of chosen pieces, some of them more than once or not at all, a function of `key`.

        It has `self.rows` rows, like every epoch; if the pieces fill more, a random choice of their rows is left out.

        Args:
            piece_I: the pieces; they must fill at least `self.rows` rows
            key: numbers from which the random order is derived
            time_I: when in the epoch each piece should come, on any scale; None for random
        """
        random_I = shuffled(len(piece_I), *key, 0)
        piece_I = piece_I[random_I]
        size_I = self.size_P[piece_I]
        size_C, bound_R1 = self._pack(size_I)
        rows = len(bound_R1) - 1
        assert rows >= self.rows, (rows, self.rows)
        row_R = shuffled(rows, *key, 1)
        index_C = np.empty_like(piece_I)
        if time_I is None:
            index_C[np.argsort(size_C, kind="stable")] = np.argsort(size_I, kind="stable")
        else:
            # In each size the pieces are dealt to the rows in the order of their times.  Pieces of several sizes share
            # a row, and their times differ, so the rows are sorted by their mean time and dealt again, until both fit.
            time_I = time_I[random_I]
            in_order_I = np.lexsort((time_I, size_I))
            row_C = np.repeat(np.arange(rows), np.diff(bound_R1))
            for _ in range(_DEALS):
                rank_R = np.empty_like(row_R)
                rank_R[row_R] = np.arange(rows)
                index_C[np.lexsort((rank_R[row_C], size_C))] = in_order_I
                size_and_time_R = np.add.reduceat(size_I[index_C] * time_I[index_C], bound_R1[:-1])
                mean_time_R = size_and_time_R / np.add.reduceat(size_I[index_C], bound_R1[:-1], dtype=np.int64)
                row_R = row_R[np.argsort(mean_time_R[row_R], kind="stable")]
        kept_R = np.sort(shuffled(rows, *key, 2)[: self.rows])
        return self._in_order(piece_I[index_C], bound_R1, row_R[kept_R])

    def _pack(self, size_I: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(size_C, bound_R1) as in `pack_sizes`."""
        if self.one_document:
            return np.sort(size_I), np.arange(len(size_I) + 1)
        return pack_sizes(np.bincount(size_I), self.seq_len)

    def _in_order(
        self, piece_C: NDArray[np.int64], bound_R1: NDArray[np.int64], row_R: NDArray[np.int64]
    ) -> EpochOrder:
        """The epoch that takes the given rows of a packing."""
        tokens_R, words_R = (
            np.add.reduceat(value_P[piece_C], bound_R1[:-1], dtype=np.int64) for value_P in (self.size_P, self.words_P)
        )
        count_R = np.diff(bound_R1)[row_R]
        taken_R1 = np.concatenate([[0], np.cumsum(count_R)])
        place_C = np.arange(taken_R1[-1]) + np.repeat(bound_R1[row_R] - taken_R1[:-1], count_R)
        return EpochOrder(
            piece_C[place_C],
            taken_R1,
            np.concatenate([[0], np.cumsum(tokens_R[row_R])]),
            np.concatenate([[0], np.cumsum(words_R[row_R])]),
        )

    def rearranged(self, order: EpochOrder, row_R: NDArray[np.int64]) -> EpochOrder:
        """The epoch that takes rows of another one, some of them more than once or not at all."""
        return self._in_order(order.piece_C, order.bound_R1, row_R)

    def table(self, order: EpochOrder) -> RowTable:
        """The rows of an epoch, for a component that puts them into another order."""
        return RowTable(
            count=self.rows,
            seq_len=self.seq_len,
            bound_R1=order.bound_R1,
            start_P=self.pieces.start_P[order.piece_C],
            length_P=self.pieces.length_P[order.piece_C],
            words_P=self.words_P[order.piece_C],
            source_P=None if self.source_P is None else self.source_P[order.piece_C],
        )


@dataclass(frozen=True, slots=True, eq=False)
class EpochOrder:
    """Which pieces are in which row in one epoch."""

    piece_C: NDArray[np.int64]
    """The piece in every place, row after row."""
    bound_R1: NDArray[np.int64]
    """The places of row r are bound_R1[r] to bound_R1[r + 1]."""
    tokens_R1: NDArray[np.int64]
    """Tokens without padding in the rows before r."""
    words_R1: NDArray[np.int64]
    """Words of the text that begin in the rows before r."""

    def rows(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64[C], int64[R]: the pieces of the rows `start` to `stop`, and the number of pieces of each row."""
        return self.piece_C[self.bound_R1[start] : self.bound_R1[stop]], np.diff(self.bound_R1[start : stop + 1])


def cut_documents(offset_D1: NDArray[np.int64], seq_len: int, *, end_of_document: bool) -> Pieces:
    """Cut every document into pieces that fill a row, and a shorter last piece.

    With `end_of_document` the last piece of a document leaves room for `</s>`. A document that would fill its rows
    exactly gives its last token to one more piece, because `</s>` needs a token before it.
    """
    length_D = np.diff(offset_D1)
    room = seq_len - 1
    last_D = (length_D - 1) % room + 1
    count_D = (length_D - 1) // room + 1
    full_D = end_of_document & (last_D == room)  # no room for </s>
    count_D = count_D + full_D
    last_P = np.cumsum(count_D) - 1
    length_P = np.full(last_P[-1] + 1, room, np.int32)
    length_P[last_P] = np.where(full_D, 1, last_D)
    length_P[last_P[full_D] - 1] -= 1
    closes_P = np.zeros(len(length_P), bool)
    closes_P[last_P] = end_of_document
    start_P = np.cumsum(length_P, dtype=np.int64) - length_P + offset_D1[0]
    document_P = np.repeat(np.arange(len(length_D)), count_D)
    return Pieces(start_P, length_P, closes_P, document_P)


def pack_sizes(count_S: NDArray[np.int64], seq_len: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Best-fit decreasing over a histogram: put `count_S[s]` pieces of size s into rows of `seq_len`.

    Pieces of equal size are placed together, in as many equal rows at once as there are (Krell et al. 2021,
    arXiv 2107.02027, section 3). So the time depends on the number of different sizes only.

    Returns:
        size_C: size of the piece in every place, row after row; sizes decrease within a row
        bound_R1: the places of row r are bound_R1[r] to bound_R1[r + 1]
    """
    rows_of: dict[int, Counter[tuple[int, ...]]] = defaultdict(Counter)  # room left -> sizes in the row -> such rows

    def add(sizes: tuple[int, ...], rows: int) -> None:
        if rows:
            rows_of[seq_len - sum(sizes)][sizes] += rows

    for size in range(min(seq_len, len(count_S) - 1), 0, -1):
        left = int(count_S[size])
        while left and (room := min((room for room in rows_of if room >= size), default=0)):
            for sizes, rows in rows_of.pop(room).items():
                placed = min(rows, left)
                add((*sizes, size), placed)
                add(sizes, rows - placed)
                left -= placed
        per_row = seq_len // size
        full_rows, rest = divmod(left, per_row)
        add((size,) * per_row, full_rows)
        add((size,) * rest, min(rest, 1))

    patterns = [pattern for room in sorted(rows_of) for pattern in sorted(rows_of[room].items())]
    size_C = np.concatenate([np.tile(np.array(sizes, np.int32), rows) for sizes, rows in patterns])
    pieces_R = np.repeat([len(sizes) for sizes, _ in patterns], [rows for _, rows in patterns])
    return size_C, np.concatenate([[0], np.cumsum(pieces_R)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The arrays of a `core.batch.Batch`."""

    ids_BT: NDArray[np.int64]
    document_BT: NDArray[np.int32]
    position_BT: NDArray[np.int64]
    maskable_BT: NDArray[np.bool_]
    source_BT: NDArray[np.int16] | None
    """None if the corpus does not name its sources."""


def fill_rows(
    split: Split, pieces: Pieces, piece_P: NDArray[np.int64], count_B: NDArray[np.int64], seq_len: int
) -> Rows:
    """Copy pieces into rows without a Python loop: row b has the next `count_B[b]` of `piece_P`, then padding.

    A piece becomes `<s>`, its tokens and, if it closes a document, `</s>`. That `</s>` is maskable, but has no
    position in the corpus (-1).
    """
    rows = len(count_B)
    start_P, length_P, closes_P = (column[piece_P] for column in (pieces.start_P, pieces.length_P, pieces.closes_P))
    size_P = length_P + 1 + closes_P
    row_P = np.repeat(np.arange(rows), count_B)
    first_piece_P = np.repeat(np.cumsum(count_B) - count_B, count_B)
    before_P = np.cumsum(size_P, dtype=np.int64) - size_P
    bos_P = row_P * seq_len + before_P - before_P[first_piece_P]  # positions are counted through all rows
    end_P = bos_P + size_P - 1

    ids = np.full(rows * seq_len, PAD, np.int64)
    position = np.full(rows * seq_len, -1, np.int64)
    token_N = np.arange(length_P.sum(dtype=np.int64))
    tokens_before_P = np.cumsum(length_P, dtype=np.int64) - length_P
    origin_N = token_N + np.repeat(start_P - tokens_before_P, length_P)
    target_N = token_N + np.repeat(bos_P + 1 - tokens_before_P, length_P)
    ids[target_N] = split.tokens[origin_N]
    position[target_N] = origin_N
    maskable = ids >= NUM_SPECIAL
    ids[bos_P] = BOS
    ids[end_P[closes_P]] = EOS
    maskable[end_P[closes_P]] = True

    document = np.full(rows * seq_len, -1, np.int32)
    not_padding = np.arange(before_P[-1] + size_P[-1]) + np.repeat(bos_P - before_P, size_P)
    document[not_padding] = np.repeat(np.arange(len(piece_P)) - first_piece_P, size_P)
    source = None
    if split.source_D is not None:
        source = np.full(rows * seq_len, -1, np.int16)
        source[not_padding] = np.repeat(split.source_D[pieces.document_P[piece_P]], size_P)
    shape = (rows, seq_len)
    return Rows(
        ids_BT=ids.reshape(shape),
        document_BT=document.reshape(shape),
        position_BT=position.reshape(shape),
        maskable_BT=maskable.reshape(shape),
        source_BT=None if source is None else source.reshape(shape),
    )
