"""The rows that components are checked on, corrupted by the parts of a recipe."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

from ltg_mdlm.api import IGNORE, Batch, Corrupted, Noise, Step, Supervised, labels_for, realised_rate
from ltg_mdlm.host import Components
from ltg_mdlm.recipe import HostCopy, MicroBatch, gather_supervised
from ltg_mdlm.testing.toy import batch_of, noise_at, step_for, text_rows

COLUMNS = 40
UNUSUAL: tuple[list[list[int]], ...] = (
    [],  # padding alone
    [[]],  # `<s>` alone
    [[20]],
    [[0, 2, 5]],  # nothing but control tokens
    [[], [21, 0, 22], [23, 24]],
    [[25] * (COLUMNS - 1)],
)
"""Rows that occur, if seldom."""


def sample_batch() -> Batch:
    """A global batch: rows of text, unusual rows, and one whose second document has no `<s>` before it."""
    rows = [*text_rows(12, COLUMNS), *UNUSUAL, [[26, 27, 28], [29, 30, 31]]]
    batch = batch_of(rows, COLUMNS)
    second = batch.document_BT[-1] == 1
    batch.ids_BT[-1, second] = torch.tensor([32, 29, 30, 31])
    batch.maskable_BT[-1, second] = True
    return batch


def sample_step(batch: Batch, **changes: object) -> Step:
    """A step in the middle of training, with every third row causal."""
    return dataclasses.replace(step_for(batch, **changes), causal_R=torch.arange(int(batch.row_B.max()) + 1) % 3 == 1)


def causal_rows(batch: Batch, step: Step) -> Tensor:
    """bool[B]: the rows of this micro-batch that are causal."""
    assert step.causal_R is not None
    return step.causal_R[batch.row_B]


def all_masked(components: Components, batch: Batch, noise: Noise, step: Step) -> MicroBatch:
    """Every maskable token of the masked rows hidden, at the given noise level: what an objective may meet."""
    strategy, causal_B = components.masking, causal_rows(batch, step)
    masked_BT = batch.maskable_BT & ~causal_B.unsqueeze(1)
    hazard_BT, hazard_by_type_BV = strategy.hazard(batch, noise, step)
    corrupted = Corrupted(
        input_BT=batch.ids_BT.masked_fill(masked_BT, strategy.mask_id),
        labels_BT=labels_for(batch, masked_BT, causal_B, strategy.predicts),
        masked_BT=masked_BT,
        realised_rate_B=realised_rate(batch, masked_BT),
        causal_B=causal_B,
        hazard_BT=hazard_BT,
        hazard_by_type_BV=hazard_by_type_BV,
    )
    return micro_batch_of(batch, corrupted, noise)


def micro_batch_of(batch: Batch, corrupted: Corrupted, noise: Noise) -> MicroBatch:
    """As the recipe makes one, without time conditioning."""
    count = HostCopy((corrupted.labels_BT != IGNORE).sum())
    return MicroBatch(batch=batch, corrupted=corrupted, noise=noise, value_B=None, supervised_count=count)


def supervised_of(components: Components, micro_batch: MicroBatch) -> Supervised:
    """The positions with a loss, gathered as in training."""
    return gather_supervised(micro_batch, predicts_next=components.masking.predicts == "next")[0]


ENDS = (2.0**-24, 1e-6, 0.5, 1 - 1e-9, 1.0)
"""Mask rates up to both ends; `Step.uniform` masks nothing at smaller ones."""
SLOPES = (1e-6, 1.0, 1e3)


def noise_at_the_ends(batch: Batch) -> list[Noise]:
    """Every pair of an extreme mask rate and slope."""
    slope_B = torch.ones(len(batch.row_B), dtype=torch.float64)
    return [
        dataclasses.replace(noise_at(rate, batch), slope_B=slope_B * slope)
        for rate, slope in itertools.product(ENDS, SLOPES)
    ]
