"""What a masked token sees, and the bound that follows from it, by enumeration of a small language."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import gamma, log

import pytest
import torch
from ltg_mdlm_block_diffusion import BlockMasking, BlockNoise

from ltg_mdlm.api import Batch, Corrupted, block_of
from ltg_mdlm.testing import toy
from ltg_mdlm.testing.enumeration import ENTROPY, JOINT_Q, LENGTH, SEQUENCES_QL

FIRST = 16
MASK = toy.context().mask_id


def row_of(sequence: Sequence[int]) -> Batch:
    """A row of `<s>` and the sequence."""
    return toy.batch_of([[[FIRST + token for token in sequence]]], LENGTH + 1)


def corrupted_at(batch: Batch, columns: Sequence[int], block_length: int) -> Corrupted:
    """The row with these columns masked, as the strategy returns it."""
    chosen_BT = torch.zeros_like(batch.maskable_BT)
    chosen_BT[:, list(columns)] = True

    class Chosen(BlockMasking):
        def choose(self, batch, noise, step):
            return chosen_BT

    noise = BlockNoise(block_length).sample(batch, toy.step_for(batch))
    return Chosen(MASK, block_length).corrupt(batch, toy.no_causal(batch), noise, toy.step_for(batch))


def seen_from(corrupted: Corrupted, column: int) -> dict[int, int]:
    """The tokens that the model sees from a column, by their place in the sequence."""
    assert corrupted.visibility is not None
    assert corrupted.context_BS is not None
    ids_X = torch.cat([corrupted.input_BT, corrupted.context_BS], dim=1)[0]
    visible_X = corrupted.visibility.matrix()[0, column]
    shown = [(x % (LENGTH + 1) - 1, int(ids_X[x])) for x in range(len(ids_X)) if visible_X[x]]
    return {place: token - FIRST for place, token in shown if place >= 0 and token != MASK}


def log_probability(place: int, token: int, seen: dict[int, int]) -> float:
    """log p(token at a place | the tokens seen), in the enumerated language."""
    fits_Q = torch.ones(len(JOINT_Q), dtype=torch.bool)
    for at, value in seen.items():
        fits_Q &= SEQUENCES_QL[:, at] == value
    return log(float(JOINT_Q[fits_Q & (SEQUENCES_QL[:, place] == token)].sum()) / float(JOINT_Q[fits_Q].sum()))


def integral(masked: int, visible: int) -> float:
    """The integral of t^masked (1 - t)^visible over the unit interval."""
    return gamma(masked + 1) * gamma(visible + 1) / gamma(masked + visible + 2)


def enumerated_bound(block_length: int) -> float:
    """Nats per row for the best denoiser: the sum over sequences and masks of probability times weighted terms."""
    total = 0.0
    for sequence, p in zip(SEQUENCES_QL.tolist(), JOINT_Q.tolist(), strict=True):
        batch = row_of(sequence)
        block_T = block_of(batch.document_BT, block_length)[0].tolist()
        for flags in itertools.product([False, True], repeat=LENGTH):
            masked = [place + 1 for place, is_masked in enumerate(flags) if is_masked]
            corrupted = corrupted_at(batch, masked, block_length)
            for column in masked:
                weight = 1.0
                for block in set(block_T[1:]):
                    inside = [c for c in range(1, LENGTH + 1) if block_T[c] == block]
                    count = len(set(inside) & set(masked))
                    # A term has the weight 1 / t, with the t of its own block.
                    weight *= integral(count - (block == block_T[column]), len(inside) - count)
                seen = seen_from(corrupted, column)
                total -= p * weight * log_probability(column - 1, sequence[column - 1], seen)
    return total


@pytest.mark.parametrize("block_length", [1, 2, 3, 4])
def test_the_bound_of_the_best_denoiser_is_the_entropy_of_the_language(block_length: int) -> None:
    assert enumerated_bound(block_length) == pytest.approx(ENTROPY, abs=1e-9)


@pytest.mark.parametrize("block_length", [1, 2, 4])
def test_a_masked_token_sees_its_block_and_what_is_before_it(block_length: int) -> None:
    batch = row_of([0, 1, 2])
    block_T = block_of(batch.document_BT, block_length)[0].tolist()
    corrupted = corrupted_at(batch, [1, 2], block_length)
    for column in (1, 2, 3):
        before = {c - 1: [0, 1, 2][c - 1] for c in range(1, 4) if block_T[c] < block_T[column]}
        within = {2: 2} if block_T[3] == block_T[column] else {}  # the only token that is not masked
        assert seen_from(corrupted, column) == before | within


def test_the_rates_of_blocks_are_uniform_and_evenly_spread_over_a_row() -> None:
    batch = toy.batch_of([[list(range(16, 47))]] * 64, 32)
    noise = BlockNoise(4).sample(batch, toy.step_for(batch))
    assert noise.rate_BT is not None
    rate_BK = noise.rate_BT[:, ::4]
    assert torch.equal(noise.rate_BT, rate_BK.repeat_interleave(4, dim=1))
    gaps_BK = rate_BK.sort(dim=1).values.diff(dim=1)
    assert float(gaps_BK.min()) > 0.05
    assert float(gaps_BK.max()) < 0.25
    sorted_rates = rate_BK.flatten().sort().values
    torch.testing.assert_close(
        sorted_rates, torch.linspace(0, 1, len(sorted_rates), dtype=torch.float64), rtol=0, atol=0.02
    )
