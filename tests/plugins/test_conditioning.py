"""Conditioning values."""

from __future__ import annotations

import math

import pytest
import torch
from ltg_mdlm_plugins.conditioning import MaskRate, NoConditioning, Sigma
from support.batches import MASKINGS

from ltg_mdlm.testing.toy import batch_of, noise_at, step_for

BATCH = batch_of([[[20] * 7], [[21] * 3], [[22] * 7]], 16)
CAUSAL = torch.tensor([False, False, True])


def values(conditioning, rate: float = 0.6) -> tuple[list[float], list[int]]:
    noise = noise_at(rate, BATCH)
    result = MASKINGS["uniform"]().corrupt(BATCH, CAUSAL, noise, step_for(BATCH))
    conditioning_B = conditioning.value(result, noise)
    assert conditioning_B.dtype == torch.float32
    return conditioning_B.tolist(), result.masked_BT.sum(1).tolist()


def test_the_mask_rate_is_the_value_and_causal_rows_have_0():
    assert values(MaskRate())[0] == pytest.approx([0.6, 0.6, 0.0])


def test_the_realised_rate_is_over_maskable_tokens_or_as_published_over_all_positions():
    conditioning_B, masked_B = values(MaskRate("realised"))
    assert conditioning_B == pytest.approx([masked_B[0] / 7, masked_B[1] / 3, 0.0])
    conditioning_B, masked_B = values(MaskRate("realised_all_positions"))
    assert conditioning_B == pytest.approx([masked_B[0] / 16, masked_B[1] / 16, 0.0])
    assert masked_B[0] > 0


@pytest.mark.parametrize("rate", [1e-6, 0.25, 0.9])
def test_sigma_is_minus_the_log_of_the_visible_share(rate):
    assert values(Sigma(), rate)[0] == pytest.approx([-math.log(1 - 0.999 * rate)] * 2 + [0.0], rel=1e-5)


def test_sigma_stays_finite_when_everything_is_masked():
    assert values(Sigma(), 1.0)[0][0] == pytest.approx(-math.log(1e-3), rel=1e-4)


@pytest.mark.parametrize("conditioning", [MaskRate(), Sigma()])
def test_evaluation_uses_the_value_of_training_for_the_same_rate(conditioning):
    rate_B = torch.tensor([0.2, 0.6])
    assert float(conditioning.value_for_rate(rate_B)[1]) == pytest.approx(values(conditioning)[0][0])


def test_no_conditioning_has_no_value():
    none = NoConditioning()
    assert not none.active
    assert none.value_for_rate(torch.tensor([0.5])) is None
    noise = noise_at(0.5, BATCH)
    assert none.value(MASKINGS["uniform"]().corrupt(BATCH, CAUSAL, noise, step_for(BATCH)), noise) is None
