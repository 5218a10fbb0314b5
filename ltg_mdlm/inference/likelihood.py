"""An upper bound of -log p(x) for any masked language model, estimated by stratified Monte Carlo.

Under uniform masking with the linear schedule, the negative ELBO of a row with L maskable tokens is

    E_{k ~ U{1..L}} [ L / k * sum over the masked tokens of -log p(token | rest) ],  k tokens masked at random.

This is the published integral over t (arXiv 2406.07524, eq. 8), with the expectation over the number of masked tokens
given t taken exactly.  The bound is computed identically for every model, so runs with different schedules can be
compared.

A model with blocks (`MaskingStrategy.block_length`) is trained to predict a block from the unmasked blocks before it.
Its bound is the sum of this expectation over the blocks, with the tokens of a block in place of those of the row and
all earlier blocks unmasked (arXiv 2503.09573).  A forward pass over the row and a clean copy of it covers all blocks.

Four techniques lower the variance without changing the mean: exact counts instead of independent masks, stratified
counts, complementary pairs of masks, and a baseline.  `benchmarks/bound_variance.py` measures their effect.

Shapes: B rows, T tokens per row, V vocabulary, C blocks of a row, 1 if the row is not divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltg_mdlm.core.batch import Batch, Step
from ltg_mdlm.model.visibility import block_of

RowNLL = Callable[[Batch, Tensor, Tensor], Tensor]
"""(batch, masked_BT, rate_B) -> float64[B, C], or float64[B] without blocks: summed negative log-likelihood of the
masked tokens of each block, in nats."""


@dataclass(frozen=True)
class Bound:
    """An estimate of the negative ELBO."""

    nats_per_token: float
    """Nats per maskable token."""
    standard_error: float
    """Standard error over texts and masks: the expected deviation on other rows of the same kind of text.

    Rows count as independent draws, so it is too small for conclusions about other *sources* of text.  It is too large
    for a comparison of two models on the same rows and masks, whose errors are mostly the same.
    """
    tokens: int
    rows: int

    def bits_per_byte(self, tokens_per_byte: float) -> float:
        """The bound in bits per byte of UTF-8 text."""
        return self.nats_per_token * tokens_per_byte / math.log(2)


def estimate_bound(
    batches: Iterable[Batch],
    row_nll: RowNLL,
    *,
    rows: int,
    draws: int,
    seed: int,
    baseline_V: Tensor | None = None,
    block_length: int = 0,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda x: x,
) -> Bound:
    """Estimate the bound with `draws` masks per row, in complementary pairs.

    Args:
        batches: the rows of this rank.
        row_nll: the model.
        rows: number of rows in all batches of all ranks; the share of masked tokens is stratified over them.
        draws: forward passes per row, an even number.
        seed: seed of the masks.
        baseline_V: float[V] guesses at the cost of every token type in nats, such as its unigram cross-entropy.  Only
            the difference between cost and guess then depends on the masks.  The mean is the same for any guess,
            because a mask of k tokens hides each of L tokens with probability k / L.
        block_length: tokens of a block, each with a bound of its own; 0 for the bound of whole rows.
        sum_over_ranks: sums a tensor over the ranks.
    """
    assert draws % 2 == 0
    step = Step(seed=seed, step=0, progress=0.0, epoch=0.0, rows=rows)
    sums = torch.zeros(6, dtype=torch.float64)
    for batch in batches:
        block_BT = block_of(batch.document_BT, block_length) if block_length else None
        tokens_B = batch.maskable_BT.sum(1).double()
        tokens_BC = block_sums(batch.maskable_BT, block_BT).double()
        guess_BT = guesses(batch, baseline_V)
        total_B = torch.zeros_like(tokens_B)
        for pair in range(draws // 2):
            for masked_BT in complementary_masks(batch, step, f"pair {pair}", block_BT):
                count_BC = block_sums(masked_BT, block_BT).clamp(min=1)
                rate_B = (masked_BT.sum(1).clamp(min=1) / tokens_B.clamp(min=1)).float()
                nll_BC = row_nll(batch, masked_BT, rate_B).view_as(tokens_BC)
                surprise_BC = nll_BC - block_sums(guess_BT * masked_BT, block_BT)
                total_B += (tokens_BC / count_BC * surprise_BC).sum(1)
        nats_B = total_B / draws + guess_BT.sum(1)
        moments = (
            nats_B.sum(),
            tokens_B.sum(),
            nats_B.square().sum(),
            (nats_B * tokens_B).sum(),
            tokens_B.square().sum(),
            (tokens_B > 0).sum().double(),
        )
        sums += torch.stack(moments).cpu()
    return _ratio_estimate(sum_over_ranks(sums))


def guesses(batch: Batch, baseline_V: Tensor | None) -> Tensor:
    """float64[B, T]: the baseline of every maskable token; 0 elsewhere, and everywhere if there is no baseline."""
    if baseline_V is None:
        return torch.zeros(batch.ids_BT.shape, dtype=torch.float64, device=batch.ids_BT.device)
    return baseline_V.to(batch.ids_BT.device).double()[batch.ids_BT].masked_fill(~batch.maskable_BT, 0.0)


def block_sums(value_BT: Tensor, block_BT: Tensor | None) -> Tensor:
    """[B, C]: the sums of the values in every block; C = 1 if the row is not divided."""
    if block_BT is None:
        return value_BT.sum(1, keepdim=True)
    sums_BC = torch.zeros(
        len(value_BT),
        int(block_BT.max()) + 1,
        dtype=value_BT.dtype if value_BT.is_floating_point() else torch.int64,
        device=value_BT.device,
    )
    return sums_BC.scatter_add_(1, block_BT.long(), value_BT.to(sums_BC.dtype))


def complementary_masks(batch: Batch, step: Step, stream: str, block_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Two bool[B, T] masks of k and L + 1 - k tokens whose union is every maskable token; k is uniform over 1 .. L.

    Both follow one random order of the row's tokens: the first masks the first k tokens, the second the last L + 1 - k.
    Easy and hard tokens, and small and large k, therefore cancel.  With blocks, this holds for the tokens of each
    block, and all blocks of a row have the same share of masked tokens, up to rounding.
    """
    columns = batch.ids_BT.shape[1]
    tokens_BT = batch.maskable_BT.sum(1, keepdim=True)
    order_BT = step.uniform(batch, f"{stream} order", columns).masked_fill(~batch.maskable_BT, 2.0)
    if block_BT is not None:
        order_BT = order_BT.double() + 4 * block_BT
        tokens_BT = block_sums(batch.maskable_BT, block_BT).gather(1, block_BT.long())
    rank_BT = order_BT.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    if block_BT is not None:  # blocks are contiguous, so the ranks of a block begin at its first column
        column_T = torch.arange(columns, device=block_BT.device)
        rank_BT -= torch.where(block_BT.diff(dim=1, prepend=block_BT[:, :1] - 1) > 0, column_T, 0).cummax(1).values
    t_B1 = step.stratified(batch, stream).unsqueeze(1)
    first_BT = (t_B1 * tokens_BT).long() + 1
    return (rank_BT < first_BT) & batch.maskable_BT, (rank_BT >= first_BT - 1) & batch.maskable_BT


def _ratio_estimate(sums: Tensor) -> Bound:
    """Ratio of the sums of nats and tokens over rows, with the standard error of the delta method."""
    nats, tokens, nats_squared, cross, tokens_squared, rows = sums.tolist()
    ratio = nats / max(tokens, 1)
    residual = max(nats_squared - 2 * ratio * cross + ratio**2 * tokens_squared, 0.0)
    correction = rows / max(rows - 1, 1)
    return Bound(ratio, math.sqrt(correction * residual) / max(tokens, 1), int(tokens), int(rows))
