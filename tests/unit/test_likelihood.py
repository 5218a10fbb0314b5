"""The Monte-Carlo bound, against exhaustive enumeration over masks."""

import itertools
import math

import pytest
import torch

from ltg_mdlm.api import Batch, Step
from ltg_mdlm.evaluate.likelihood import complementary_masks, estimate_bound


def make_batch(lengths: list[int], width: int) -> Batch:
    column = torch.arange(width)
    maskable_BT = (column >= 1) & (column <= torch.tensor(lengths).unsqueeze(1))
    return Batch(
        ids_BT=torch.where(maskable_BT, 16 + column, 3),
        document_BT=torch.where(column <= torch.tensor(lengths).unsqueeze(1), 0, -1).int(),
        position_BT=torch.full((len(lengths), width), -1),
        maskable_BT=maskable_BT,
        row_B=torch.arange(len(lengths)),
    )


def table_nll(batch: Batch, masked_BT: torch.Tensor, rate_B: torch.Tensor) -> torch.Tensor:
    """A made-up denoiser: a token costs more the more tokens to its left are masked."""
    cost_BT = 1 + torch.arange(masked_BT.shape[1]) * 0.3 + masked_BT.cumsum(1) * 0.7
    return (cost_BT * masked_BT).sum(1).double()


def exact_bound(length: int) -> float:
    """Sum over k of 1/k times the mean over all masks of k tokens of their summed cost: the NELBO, any-order form."""
    batch, total = make_batch([length], length + 1), 0.0
    for k in range(1, length + 1):
        masks = list(itertools.combinations(range(1, length + 1), k))
        for chosen in masks:
            masked_BT = torch.zeros(1, length + 1, dtype=torch.bool)
            masked_BT[0, list(chosen)] = True
            total += float(table_nll(batch, masked_BT, torch.ones(1))) / k / len(masks)
    return total


def test_estimate_agrees_with_enumeration_within_its_standard_error():
    rows, length = 4096, 5
    batch = make_batch([length] * rows, length + 2)
    bound = estimate_bound([batch], table_nll, rows=rows, draws=2, seed=1)
    exact = exact_bound(length) / length
    assert bound.standard_error < 0.01
    assert abs(bound.nats_per_token - exact) < 4 * bound.standard_error


def test_masks_of_a_pair_cover_every_maskable_token_and_nothing_else():
    batch = make_batch([1, 4, 7, 0], 9)
    step = Step(seed=3, step=0, progress=0.0, epoch=0.0, rows=4)
    first, second = complementary_masks(batch, step, "x")
    assert torch.equal(first | second, batch.maskable_BT)
    assert torch.equal(
        first.sum(1) + second.sum(1), torch.where(batch.maskable_BT.any(1), batch.maskable_BT.sum(1) + 1, 0)
    )


def test_number_of_masked_tokens_is_uniform_over_the_rows():
    rows, length = 6000, 6
    step = Step(seed=0, step=0, progress=0.0, epoch=0.0, rows=rows)
    first, _ = complementary_masks(make_batch([length] * rows, length + 1), step, "x")
    assert first.sum(1).bincount(minlength=7).tolist() == [0, *[rows // length] * length]


def test_splitting_the_rows_into_batches_changes_nothing():
    batch = make_batch([3, 5, 2, 6], 8)
    halves = [
        Batch(**{n: getattr(batch, n)[part] for n in ("ids_BT", "document_BT", "position_BT", "maskable_BT", "row_B")})
        for part in (slice(0, 1), slice(1, 4))
    ]
    whole = estimate_bound([batch], table_nll, rows=4, draws=4, seed=0)
    split = estimate_bound(halves, table_nll, rows=4, draws=4, seed=0)
    assert whole.nats_per_token == pytest.approx(split.nats_per_token, abs=1e-12)
    assert whole.standard_error == pytest.approx(split.standard_error, abs=1e-9)


def test_bits_per_byte_counts_bytes_not_tokens():
    bound = estimate_bound([make_batch([4] * 8, 5)], table_nll, rows=8, draws=2, seed=0)
    assert bound.bits_per_byte(0.25) == pytest.approx(bound.nats_per_token / 4 / math.log(2))
