"""Which keys a query attends to, as three integers per column instead of a matrix [X, X].

Query q sees key k if both are in one document and

    group[q] == group[k]  or  order[k] < limit[q].

A kernel can evaluate this in registers; `Visibility.matrix` writes it out.

This file is part of every exported model, so it imports only torch and the standard library.

Shapes are suffixes: B rows, T tokens per row, X columns: the T tokens, and after them any copies of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LAST = torch.iinfo(torch.int32).max
"""An order that is below no limit: only columns of the same group see the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visibility:
    """Which keys a query attends to, as three integers per column.

    Query q sees key k if both are in one document and group[q] == group[k] or order[k] < limit[q].  Every query sees
    itself, so no query is without a key.  docs/slots.md has the values of the usual patterns.
    """

    group_BX: Tensor
    """int32: columns of one group see each other"""
    order_BX: Tensor
    """int32: the column's place as a key"""
    limit_BX: Tensor
    """int32: as a query, the column also sees all keys with a smaller order"""

    def map(self, function: Callable[[Tensor], Tensor]) -> Visibility:
        """A visibility with `function` applied to every tensor, such as a choice of rows."""
        return Visibility(
            group_BX=function(self.group_BX), order_BX=function(self.order_BX), limit_BX=function(self.limit_BX)
        )

    def matrix(self) -> Tensor:
        """bool[B, X, X]: whether the query (dimension 1) sees the key (dimension 2) if both are in one document."""
        same_group = self.group_BX[:, :, None] == self.group_BX[:, None, :]
        return same_group | (self.order_BX[:, None, :] < self.limit_BX[:, :, None])

    @classmethod
    def of_rows(cls, causal_B: Tensor, columns: int) -> Visibility:
        """The default: masked rows see their whole document; in the rows of bool[B] `causal_B`, no later column."""
        same_BX = torch.zeros(causal_B.shape[0], columns, dtype=torch.int32, device=causal_B.device)
        return cls(group_BX=same_BX, order_BX=same_BX, limit_BX=same_BX).with_causal_rows(causal_B)

    def with_causal_rows(self, causal_B: Tensor) -> Visibility:
        """The same with the rows of bool[B] `causal_B` causal: every token sees itself and earlier ones, no copy.

        For strategies with a visibility of their own that may be trained with causal rows among the masked ones.
        """
        column_X = torch.arange(self.group_BX.shape[1], dtype=torch.int32, device=causal_B.device)
        group_BX, order_BX, limit_BX = (
            torch.where(causal_B[:, None], column_X, value_BX)
            for value_BX in (self.group_BX, self.order_BX, self.limit_BX)
        )
        return Visibility(group_BX=group_BX, order_BX=order_BX, limit_BX=limit_BX)

    def with_clean_copy(self) -> Visibility:
        """The visibility [B, 2T] of a corrupted row that is followed by a clean copy of itself.

        `self` is that of the clean copy.  The corrupted columns have the same limits, and so see the same part of the
        clean copy as the column that they share a place with, but of its group they see the corrupted columns instead.
        No clean column sees a corrupted one.
        """
        span_B1 = self.group_BX.amax(1, keepdim=True) - self.group_BX.amin(1, keepdim=True) + 1
        return Visibility(
            group_BX=torch.cat([self.group_BX + span_B1, self.group_BX], dim=1),
            order_BX=torch.cat([torch.full_like(self.order_BX, LAST), self.order_BX], dim=1),
            limit_BX=torch.cat([self.limit_BX, self.limit_BX], dim=1),
        )


def block_of(document_BT: Tensor, block_length: int) -> Tensor:
    """int32[B, T]: the block of every token, numbered through the row from 0.

    A block has `block_length` tokens, the last block of a document maybe fewer: blocks start anew with each document,
    whose `<s>` is the first token of its first block.
    """
    length = document_BT.shape[1]
    column_T = torch.arange(length, device=document_BT.device)
    is_first_BT = torch.ones_like(document_BT, dtype=torch.bool)
    is_first_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    # The first columns of the documents in order, and of them that of each token's document.  ONNX has no `cummax`, and
    # no `cumsum` of bool.
    firsts_BT = torch.where(is_first_BT, column_T, length).sort(1).values
    first_BT = firsts_BT.gather(1, is_first_BT.long().cumsum(1) - 1)
    opens_block_BT = (column_T - first_BT) % block_length == 0
    return opens_block_BT.long().cumsum(1).int() - 1


def block_visibility(document_BT: Tensor, block_length: int) -> Visibility:
    """The visibility [B, T] of a row in blocks: a token sees its own block and the earlier ones of its document.

    `block_visibility(...).with_clean_copy()` is that of block diffusion (arXiv 2503.09573): the corrupted tokens of a
    block see each other, and the clean copies of the earlier blocks.
    """
    block_BT = block_of(document_BT, block_length)
    return Visibility(group_BX=block_BT, order_BX=block_BT, limit_BX=block_BT)
