"""The rows that a model has to see for the scores of texts, all of one length: nothing is padded.

Suffixes: S texts, R rows, T tokens per row, N predicted tokens, J draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltg_mdlm.data.special_tokens import MASK
from ltg_mdlm.evaluate.encoding import Encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of one length, and the tokens to predict in them, in the order of the rows."""

    ids_RT: Tensor
    rate_R: Tensor
    """float32: the share of the row's tokens, `<s>` aside, that is masked"""
    row_N: Tensor
    column_N: Tensor
    """Where the token stood"""
    label_N: Tensor
    target_N: Tensor
    """The sum that its log-likelihood belongs to"""
    weight_N: Tensor
    """float64: what it counts for there"""

    def batches(self, tokens: int) -> Iterator[Rows]:
        """The same in batches of at most so many tokens, but of at least one row."""
        count = max(1, tokens // self.ids_RT.shape[1])
        starts = torch.arange(0, len(self.ids_RT), count)
        places = [*torch.searchsorted(self.row_N, starts).tolist(), len(self.row_N)]
        for start, first, last in zip(starts.tolist(), places, places[1:], strict=False):
            yield Rows(
                ids_RT=self.ids_RT[start : start + count],
                rate_R=self.rate_R[start : start + count],
                row_N=self.row_N[first:last] - start,
                column_N=self.column_N[first:last],
                label_N=self.label_N[first:last],
                target_N=self.target_N[first:last],
                weight_N=self.weight_N[first:last],
            )

    def without_repetitions(self) -> Rows:
        """Rows that are equal become one; the two sentences of a minimal pair often differ in a single token."""
        ids_RT, place_R = torch.unique(self.ids_RT, dim=0, return_inverse=True)
        rate_R = torch.empty(len(ids_RT)).scatter_(0, place_R, self.rate_R)  # equal rows have equally many masks
        row_N, order_N = place_R[self.row_N].sort(stable=True)
        return Rows(
            ids_RT=ids_RT,
            rate_R=rate_R,
            row_N=row_N,
            column_N=self.column_N[order_N],
            label_N=self.label_N[order_N],
            target_N=self.target_N[order_N],
            weight_N=self.weight_N[order_N],
        )


def causal_rows(texts: Sequence[Encoded], target_S: Tensor) -> Rows:
    """One row per text, in which every scored token is predicted."""
    ids_ST, scored_ST = _stack(texts)
    row_N, column_N = scored_ST.nonzero(as_tuple=True)
    return Rows(
        ids_RT=ids_ST,
        rate_R=torch.zeros(len(ids_ST)),
        row_N=row_N,
        column_N=column_N,
        label_N=ids_ST[row_N, column_N],
        target_N=target_S[row_N],
        weight_N=torch.ones_like(row_N, dtype=torch.float64),
    )


def masked_in_turn(texts: Sequence[Encoded], target_S: Tensor) -> Rows:
    """One row for every scored token, in which it alone is masked (Salazar et al. 2020, arXiv 1910.14659)."""
    ids_ST, scored_ST = _stack(texts)
    text_N, column_N = scored_ST.nonzero(as_tuple=True)
    masked_NT = torch.zeros(len(text_N), ids_ST.shape[1], dtype=torch.bool)
    masked_NT[torch.arange(len(text_N)), column_N] = True
    weight_N = torch.ones_like(text_N, dtype=torch.float64)
    return _masked(ids_ST[text_N], masked_NT, target_S[text_N], weight_N).without_repetitions()


def masked_from_here(texts: Sequence[Encoded], target_S: Tensor) -> Rows:
    """One row per text, in which everything scored is masked and its first token predicted."""
    ids_ST, scored_ST = _stack(texts)
    row_S = torch.arange(len(ids_ST))
    column_S = scored_ST.int().argmax(1)
    return Rows(
        ids_RT=ids_ST.masked_fill(scored_ST, MASK),
        rate_R=scored_ST.sum(1) / (ids_ST.shape[1] - 1),
        row_N=row_S,
        column_N=column_S,
        label_N=ids_ST[row_S, column_S],
        target_N=target_S,
        weight_N=torch.ones_like(row_S, dtype=torch.float64),
    )


def masked_at_random(texts: Sequence[Encoded], target_SJ: Tensor, masked_SJT: Tensor) -> Rows:
    """One row for every text and draw; of k masked among L scored tokens, each counts L / k, as in the bound.

    Draws with one target are averaged.
    """
    ids_ST, scored_ST = _stack(texts)
    masked_RT, target_R = masked_SJT.flatten(0, 1), target_SJ.flatten()
    scored_R = scored_ST.sum(1).double().repeat_interleave(masked_SJT.shape[1])
    weight_R = scored_R / masked_RT.sum(1) / target_R.bincount()[target_R]
    ids_RT = ids_ST.repeat_interleave(masked_SJT.shape[1], dim=0)
    return _masked(ids_RT, masked_RT, target_R, weight_R).without_repetitions()


def _masked(ids_RT: Tensor, masked_RT: Tensor, target_R: Tensor, weight_R: Tensor) -> Rows:
    row_N, column_N = masked_RT.nonzero(as_tuple=True)
    return Rows(
        ids_RT=ids_RT.masked_fill(masked_RT, MASK),
        rate_R=masked_RT.sum(1) / (ids_RT.shape[1] - 1),
        row_N=row_N,
        column_N=column_N,
        label_N=ids_RT[row_N, column_N],
        target_N=target_R[row_N],
        weight_N=weight_R[row_N],
    )


def _stack(texts: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """(ids [S, T], bool [S, T]: scored)"""
    ids_ST = torch.tensor([text.ids for text in texts])
    start_S = torch.tensor([text.start for text in texts])
    return ids_ST, torch.arange(ids_ST.shape[1]) >= start_S[:, None]
