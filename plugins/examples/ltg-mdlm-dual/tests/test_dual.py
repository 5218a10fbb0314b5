"""The dual objective: exact shares of causal rows, and one sum over tokens of both kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from ltg_mdlm_dual.components import DualObjective, ExactShare, NextTokenMasking, causal_rows
from ltg_mdlm_dual.plugin import Dual, Options
from torch import Tensor

from ltg_mdlm.api import IGNORE, Batch, Corrupted, MaskingStrategy, Noise, Step, Supervised

CPU = torch.device("cpu")
BOS, PAD, MASK, SPECIAL = 1, 3, 4, 16


def step_at(index: int, rows: int, causal_R: Tensor | None = None) -> Step:
    """A step of a run with this many rows in every global batch."""
    return Step(seed=0, step=index, progress=0.1, epoch=0.0, rows=rows, first_row=index * rows, causal_R=causal_R)


def rows_of(ids: Sequence[Sequence[int]]) -> Batch:
    """Rows of one document each, padded at the end."""
    ids_BT = torch.tensor(ids)
    return Batch(
        ids_BT=ids_BT,
        document_BT=torch.where(ids_BT == PAD, -1, 0).int(),
        position_BT=torch.full_like(ids_BT, -1),
        maskable_BT=ids_BT >= SPECIAL,
        row_B=torch.arange(len(ids)),
    )


class EverySecond(MaskingStrategy):
    """Masks the ordinary tokens in even columns."""

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        return (torch.arange(batch.ids_BT.shape[1]) % 2 == 0).float().expand(batch.ids_BT.shape)


BATCH = rows_of([[BOS, 20, 21, 22, 23, 24], [BOS, 30, 31, 32, PAD, PAD], [BOS, 40, 41, 42, 43, 44]])
CAUSAL_B = torch.tensor([False, True, False])
RATE_B = torch.tensor([0.5, 0.3, 0.25], dtype=torch.float64)
NOISE = Noise(t_B=RATE_B, rate_B=RATE_B, slope_B=torch.tensor([2.0, 3.0, 0.5], dtype=torch.float64))
STEP = step_at(0, 3, CAUSAL_B)


def corrupted() -> Corrupted:
    """Rows 0 and 2 masked at columns 2 and 4, row 1 causal."""
    return EverySecond(MASK).corrupt(BATCH, CAUSAL_B, NOISE, STEP)


def supervised_of(result: Corrupted) -> Supervised:
    """The supervised positions."""
    row_N, column_N = (result.labels_BT != IGNORE).nonzero(as_tuple=True)
    rate_N = RATE_B[row_N]
    return Supervised(
        label_N=result.labels_BT[row_N, column_N],
        row_N=row_N,
        column_N=column_N,
        causal_N=CAUSAL_B[row_N],
        masked_N=~CAUSAL_B[row_N],
        rate_N=rate_N,
        realised_rate_N=result.realised_rate_B[row_N],
        slope_N=NOISE.slope_B[row_N],
        hazard_N=1 / rate_N,
    )


def objective(**options: float) -> DualObjective:
    """The plugin's objective with these options."""
    made = Dual(Options(**options)).ltg_mdlm_objective()
    assert isinstance(made, DualObjective)
    return made


# Rows


@pytest.mark.parametrize("share", [0.0, 1 / 64, 0.1, 0.25, 0.29, 1 / 3, 63 / 64, 1.0])
@pytest.mark.parametrize("rows", [1, 7, 16, 64])
def test_after_any_number_of_steps_exactly_the_share_of_rows_was_causal(share: float, rows: int) -> None:
    causal = 0
    for index in range(200):
        causal_R = ExactShare(share).causal(step_at(index, rows), CPU)
        causal += 0 if causal_R is None else int(causal_R.sum())
        assert causal == math.floor(Fraction(str(share)) * rows * (index + 1))


def test_shares_stay_exact_while_batches_grow() -> None:
    first_row, causal = 0, 0
    for rows in range(1, 60):
        causal += causal_rows(0.3, first_row, rows)
        first_row += rows
        assert causal == first_row * 3 // 10


def test_every_row_is_causal_in_its_share_of_the_steps() -> None:
    causal_SR = torch.stack(
        [made for s in range(150) if (made := ExactShare(0.25).causal(step_at(s, 16), CPU)) is not None]
    )
    assert causal_SR.shape == (150, 16)
    assert float((causal_SR.double().mean(0) - 0.25).abs().max()) < 0.15


@pytest.mark.parametrize(("share", "modes"), [(0.0, {"masked"}), (0.25, {"masked", "causal"}), (1.0, {"causal"})])
def test_modes_are_those_of_rows_that_exist(share: float, modes: set[str]) -> None:
    assert ExactShare(share).modes == modes


# Objective


def test_causal_rows_predict_the_next_token_and_masked_rows_their_own() -> None:
    result = corrupted()
    assert result.labels_BT.tolist() == [
        [IGNORE, IGNORE, 21, IGNORE, 23, IGNORE],
        [30, 31, 32, IGNORE, IGNORE, IGNORE],
        [IGNORE, IGNORE, 41, IGNORE, 43, IGNORE],
    ]
    assert result.input_BT[1].tolist() == BATCH.ids_BT[1].tolist()


@pytest.mark.parametrize("power", [0.0, 0.1, 1.0])
def test_the_loss_is_the_sum_of_the_formula(power: float) -> None:
    """By hand: one causal row of three, 10 maskable tokens in the masked rows, 3 predicted tokens in the causal one."""
    result = corrupted()
    supervised = supervised_of(result)
    dual = objective(derivative_power=power, causal_weight=2.0, z_loss=0.0)
    assert dual.denominators(BATCH, result).tolist() == [10, 3]
    weight_N, z_weight_N = dual.weights(supervised, STEP)
    assert z_weight_N is None
    group_N = dual.group(supervised)
    nll_N = torch.tensor([0.1, 0.2, 1.0, 2.0, 4.0, 0.5, 0.7])
    loss = (weight_N * nll_N / dual.denominators(BATCH, result)[group_N]).sum()
    masked = (0.1 + 0.2) * 2**power / 0.5 + (0.5 + 0.7) * 0.5**power / 0.25
    assert float(loss) == pytest.approx(2 / 3 * masked / 10 + 2 * 1 / 3 * (1.0 + 2.0 + 4.0) / 3)


def test_the_z_loss_has_the_weights_of_the_cross_entropy() -> None:
    weight_N, z_weight_N = objective(z_loss=0.01).weights(supervised_of(corrupted()), STEP)
    assert z_weight_N is not None
    assert z_weight_N.tolist() == pytest.approx((0.01 * weight_N).tolist())


def test_a_step_without_causal_rows_is_plain_masked_diffusion() -> None:
    weight_N, _ = objective().weights(supervised_of(corrupted()), step_at(0, 3))
    assert weight_N[:2].tolist() == pytest.approx([2 / 0.5] * 2)


def test_all_rows_have_equal_weight_if_few_steps_have_a_causal_row() -> None:
    """1/64 of 16 rows: one causal row in every fourth step.  Over four steps, they have the weight of 1 row of 64."""
    weights = []
    supervised = supervised_of(corrupted())
    for index in range(4):
        causal_R = ExactShare(1 / 64).causal(step_at(index, 16), CPU)
        weight_N, _ = objective(causal_weight=1.0).weights(supervised, step_at(index, 16, causal_R))
        weights.append(float(weight_N[supervised.causal_N][0]))
    assert sorted(weights) == pytest.approx([0, 0, 0, 1 / 16])
    assert sum(weights) / 4 == pytest.approx(1 / 64)


# Masking


def test_next_token_masking_is_uniform_and_predicts_from_the_left() -> None:
    strategy = NextTokenMasking(MASK)
    probability_BT = strategy.mask_probability(BATCH, NOISE, STEP)
    assert probability_BT.tolist() == [pytest.approx([float(rate)] * 6) for rate in RATE_B]
    certain = Noise(t_B=RATE_B, rate_B=torch.ones(3, dtype=torch.float64), slope_B=RATE_B)
    result = strategy.corrupt(BATCH, CAUSAL_B, certain, STEP)
    assert result.labels_BT[0].tolist() == [20, 21, 22, 23, 24, IGNORE]
    assert result.input_BT[0].tolist() == [BOS] + [MASK] * 5
