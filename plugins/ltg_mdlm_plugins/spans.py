"""Span masking as in GPT-BERT (arXiv 2410.24159): a fixed share of every document, in spans of a few tokens.

Shapes are suffixes: B rows, T tokens per row, R rows of the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltg_mdlm.api import (
    Batch,
    Component,
    Corrupted,
    MaskingStrategy,
    Noise,
    Observation,
    RunContext,
    Step,
    labels_for,
    realised_rate,
)


def span_of(batch: Batch, step: Step, max_span: int) -> Tensor:
    """int64[B, T]: first column of each token's span; lengths are uniform over 1 .. max_span.

    A new span begins with every stretch of consecutive maskable tokens of one document.  All stretches of a row use the
    same sequence of span lengths.
    """
    rows, columns = batch.ids_BT.shape
    length_BT = (step.uniform(batch, "span length", columns) * max_span).long() + 1
    first_BT = length_BT.cumsum(1) - length_BT
    begins_BT = torch.zeros(rows, columns + 1, dtype=torch.bool, device=first_BT.device)
    begins_BT.scatter_(1, first_BT.clamp(max=columns), True)
    column_BT = torch.arange(columns, device=first_BT.device).expand(rows, columns)
    stretch_BT = torch.where(batch.maskable_BT, batch.document_BT, -1)
    new_BT = torch.ones_like(batch.maskable_BT)
    new_BT[:, 1:] = stretch_BT[:, 1:] != stretch_BT[:, :-1]
    origin_BT = torch.where(new_BT, column_BT, 0).cummax(1).values
    return torch.where(begins_BT.gather(1, column_BT - origin_BT), column_BT, 0).cummax(1).values


def tokens_by_document(batch: Batch) -> Tensor:
    """int64[B, T]: entry [b, d] is the number of maskable tokens of document d of row b."""
    rows, columns = batch.ids_BT.shape
    row_B1 = torch.arange(rows, device=batch.ids_BT.device).unsqueeze(1)
    # flattened, because on CUDA torch's scatter_add is deterministic only for one dimension
    index_BT = row_B1 * columns + batch.document_BT.clamp(min=0)
    count = torch.zeros(rows * columns, dtype=torch.int64, device=batch.ids_BT.device)
    return count.scatter_add_(0, index_BT.flatten(), batch.maskable_BT.flatten().long()).view(rows, columns)


def quota(tokens: Tensor, rate: Tensor, u: Tensor) -> Tensor:
    """int64: number of tokens of a document to mask: floor(rate * tokens + u), at least 1; `u` is uniform in [0, 1)."""
    return (rate * tokens + u).floor().long().clamp(min=1)


def first_of_each_document(batch: Batch, key_BT: Tensor, tokens_BT: Tensor, quota_BT: Tensor) -> Tensor:
    """bool[B, T]: the maskable tokens with the smallest keys of every document; ties are ordered from left to right.

    `tokens_BT` is `tokens_by_document`, and `quota_BT` the number of tokens to choose, both indexed by document.
    """
    rows, columns = key_BT.shape
    document_BT = batch.document_BT.long().clamp(min=0)
    # sort by document, then by key, with tokens that cannot be chosen last
    by_key_BT = key_BT.argsort(dim=1, stable=True)
    last_BT = document_BT.masked_fill(~batch.maskable_BT, columns)
    order_BT = by_key_BT.gather(1, last_BT.gather(1, by_key_BT).argsort(dim=1, stable=True))
    sorted_BT = torch.empty_like(order_BT)
    sorted_BT.scatter_(1, order_BT, torch.arange(columns, device=key_BT.device).expand(rows, columns))
    before_BT = tokens_BT.cumsum(1) - tokens_BT
    end_BT = (before_BT + quota_BT).gather(1, document_BT)
    return batch.maskable_BT & (sorted_BT < end_BT)


class MaskHistory(Component):
    """How often each token of the corpus was masked so far: one byte per token, equal on all ranks."""

    def __init__(self, ctx: RunContext) -> None:
        # the last element is for tokens that are not in the corpus, whose position is -1
        self._count = torch.zeros(ctx.num_positions + 1, dtype=torch.uint8, device=ctx.device)
        self._sum_over_ranks = ctx.sum_over_ranks
        self._masked_RT: Tensor | None = None

    def count(self, batch: Batch) -> Tensor:
        """uint8[B, T]; 0 for tokens that are not in the corpus."""
        return self._count[batch.position_BT]

    def observe(self, observation: Observation) -> None:
        """Record the corpus positions of masked tokens."""
        batch, supervised = observation.batch, observation.supervised
        if self._masked_RT is None:
            shape = (observation.step.rows, batch.ids_BT.shape[1])
            self._masked_RT = torch.zeros(shape, dtype=torch.int64, device=batch.ids_BT.device)
        position_N = batch.position_BT[supervised.row_N, supervised.column_N + 1]
        # plus one, so that 0 is "not masked", and a sum over ranks combines the rows of all ranks
        self._masked_RT[batch.row_B[supervised.row_N], supervised.column_N] = (position_N + 1) * supervised.masked_N

    def step_end(self, step: Step) -> None:
        """Count the masked tokens of all ranks."""
        if self._masked_RT is None:
            return
        position = (self._sum_over_ranks(self._masked_RT) - 1).flatten()
        self._count[position] = (self._count[position].short() + 1).clamp(max=255).to(torch.uint8)
        self._count[-1:] = 0  # a slice: assigning to one element would copy the number and wait for the device
        self._masked_RT = None

    def state_dict(self) -> dict[str, Tensor]:
        return {"mask_count": self._count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._count.copy_(state["mask_count"])


class SpanMasking(MaskingStrategy):
    """Masks a share gamma of every document in short spans; tokens are predicted one position earlier (MNTP).

    Some of the selected spans are replaced by random tokens or left unchanged.  With a history, tokens that were masked
    less often are preferred.
    """

    keeps_rate = False  # at least one token of every document
    predicts = "next"

    def __init__(
        self, ctx: RunContext, *, max_span: int, random_share: float, keep_share: float, history: MaskHistory | None
    ) -> None:
        super().__init__(ctx.mask_id)
        self._ordinary = (~ctx.special_V).nonzero().flatten().to(ctx.device)
        self._max_span, self._random_share, self._keep_share = max_span, random_share, keep_share
        self._history = history

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        """float32[B, T]: expected share of masked tokens in a token's document, disregarding the history."""
        tokens_BT = tokens_by_document(batch).gather(1, batch.document_BT.long().clamp(min=0))
        return torch.maximum(noise.rate_B.unsqueeze(1), 1 / tokens_BT.clamp(min=1)).float()

    def corrupt(self, batch: Batch, causal_B: Tensor, noise: Noise, step: Step) -> Corrupted:
        span_BT = span_of(batch, step, self._max_span)
        masked_BT = self.chosen(batch, span_BT, noise, step) & ~causal_B.unsqueeze(1)
        return Corrupted(
            input_BT=torch.where(masked_BT, self.replacement(batch, span_BT, step), batch.ids_BT),
            labels_BT=labels_for(batch, masked_BT, causal_B, self.predicts),
            masked_BT=masked_BT,
            realised_rate_B=realised_rate(batch, masked_BT),
            causal_B=causal_B,
        )

    def chosen(self, batch: Batch, span_BT: Tensor, noise: Noise, step: Step) -> Tensor:
        """bool[B, T]: the tokens with the smallest log u + number of earlier maskings, where u is drawn per span."""
        columns = batch.ids_BT.shape[1]
        # in float64, so that different draws have different keys
        key_BT = step.uniform(batch, "span order", columns).gather(1, span_BT).double().log()
        if self._history is not None:
            key_BT = key_BT + self._history.count(batch)
        tokens_BT = tokens_by_document(batch)
        quota_BT = quota(tokens_BT, noise.rate_B.unsqueeze(1), step.uniform(batch, "quota", columns))
        return first_of_each_document(batch, key_BT, tokens_BT, quota_BT)

    def replacement(self, batch: Batch, span_BT: Tensor, step: Step) -> Tensor:
        """int64[B, T]: input ids of selected tokens: random, unchanged or `<mask>`, which is decided per span."""
        columns = batch.ids_BT.shape[1]
        fate_BT = step.uniform(batch, "span fate", columns).gather(1, span_BT)
        draw_BT = (step.uniform(batch, "random token", columns).double() * len(self._ordinary)).long()
        shown_BT = torch.where(fate_BT < self._random_share, self._ordinary[draw_BT], batch.ids_BT)
        return torch.where(fate_BT < self._random_share + self._keep_share, shown_BT, self.mask_id)

    def observe(self, observation: Observation) -> None:
        if self._history is not None:
            self._history.observe(observation)

    def step_end(self, step: Step) -> None:
        if self._history is not None:
            self._history.step_end(step)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._history is None else self._history.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self._history is not None:
            self._history.load_state_dict(state)
