"""Samplers follow their exact distributions, on a language of 27 sequences with the exact denoiser."""

from __future__ import annotations

import pytest
import torch
from support.exact_sampling import (
    ExactDenoiser,
    chi_square,
    draw,
    exact_law,
    exact_law_of_blocks,
    law_of_the_likeliest_draw,
    total_variation,
)
from torch import Tensor

from ltg_mdlm.inference.samplers import plan_ancestral, plan_remasking, remasking_history, remasking_probability
from ltg_mdlm.inference.sampling_rule import EqualSteps, SamplingRule, mask_rates
from ltg_mdlm.testing.enumeration import JOINT_Q, LENGTH

COUNT = 6_000
MIN_P = 1e-3
"""Smallest accepted p-value.  The draws are fixed, so a test either always passes or always fails."""
STEPS = (1, 2, 4, 8, 16)


class Bent:
    """gamma = t^2: unmasks few tokens per step at the end, unlike the linear schedule."""

    def rate(self, t: Tensor, progress: float) -> Tensor:
        return t.square()


@pytest.mark.parametrize("sampler", ["ancestral", "confidence", "entropy", "block", "autoregressive"])
def test_with_one_token_per_step_samples_follow_the_joint_distribution(sampler):
    counts_Q, canvas = draw(COUNT, sampler=sampler)
    assert chi_square(counts_Q, JOINT_Q).p > MIN_P
    assert set(canvas.passes_B.tolist()) == {LENGTH}


def test_blocks_of_one_token_are_drawn_from_left_to_right_and_follow_the_joint_distribution():
    counts_Q, canvas = draw(COUNT, sampler="block", block_length=1)
    assert chi_square(counts_Q, JOINT_Q).p > MIN_P
    assert canvas.drawn_at_BT.unique(dim=0).tolist() == [[-1, 0, 1, 2]]


@pytest.mark.parametrize("sampler", ["ancestral", "confidence", "entropy", "block"])
@pytest.mark.parametrize("block_length", [1, 2, 3])
def test_a_model_with_blocks_is_sampled_block_by_block_and_follows_the_joint_distribution(sampler, block_length):
    counts_Q, canvas = draw(COUNT, ExactDenoiser(block_length), sampler=sampler)
    assert chi_square(counts_Q, JOINT_Q).p > MIN_P
    block_L = torch.arange(1, LENGTH + 1) // block_length
    drawn_at_BL = canvas.drawn_at_BT[:, 1:]
    for earlier, later in zip(range(LENGTH), range(1, LENGTH), strict=False):
        if block_L[earlier] < block_L[later]:
            assert bool((drawn_at_BL[:, earlier] < drawn_at_BL[:, later]).all())


@pytest.mark.parametrize(("block_length", "steps"), [(2, (1, 1)), (3, (1, 1)), (3, (3, 4)), (50, (3,))])
def test_block_by_block_with_few_steps_samples_follow_the_law_of_the_discretised_process(block_length, steps):
    counts_Q, _ = draw(COUNT, ExactDenoiser(block_length), steps=sum(steps))
    law_Q = exact_law_of_blocks(steps, block_length)
    assert chi_square(counts_Q, law_Q).p > MIN_P
    if steps == (1, 1):
        assert chi_square(counts_Q, JOINT_Q).p < 1e-6, "the test could not tell the two laws apart"


def test_a_model_with_blocks_is_conditioned_on_the_masked_share_of_the_block():
    denoiser = ExactDenoiser(2)
    draw(10, denoiser, sampler="confidence")
    assert [told_B.tolist() for told_B in denoiser.told] == [[1.0] * 10, [1.0] * 10, [0.5] * 10]


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 1},
        {"steps": 4},
        {"temperature": 0.7},
        {"top_p": 0.8},
        {"sampler": "confidence", "steps": 2},
        {"steps": 4, "eta_cap": 0.3},
    ],
    ids=str,
)
def test_the_test_of_the_joint_distribution_detects_other_distributions(wrong):
    counts_Q, _ = draw(COUNT, **wrong)
    assert chi_square(counts_Q, JOINT_Q).p < 1e-6


def test_the_test_detects_the_rule_that_keeps_the_most_likely_draws():
    """MaskGIT's order depends on the drawn tokens, so it prefers likely tokens even with one token per step."""
    law_Q = law_of_the_likeliest_draw()
    assert total_variation(law_Q, JOINT_Q) > 0.05
    assert chi_square(draw(COUNT, sampler="confidence")[0], law_Q).p < 1e-6


@pytest.mark.parametrize("schedule", [EqualSteps(), Bent()], ids=["linear", "bent"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_with_few_steps_samples_follow_the_law_of_the_discretised_process(steps, schedule):
    counts_Q, _ = draw(COUNT, schedule=schedule, steps=steps)
    assert chi_square(counts_Q, exact_law(mask_rates(schedule, steps))).p > MIN_P


@pytest.mark.parametrize("remask", [{"eta_cap": 0.2}, {"eta_rescale": 0.5}], ids=str)
def test_with_remasking_samples_follow_the_law_of_the_remasking_process(remask):
    steps = 5
    rule = SamplingRule(steps=steps, **remask)
    counts_Q, _ = draw(COUNT, steps=steps, **remask)
    law_Q = exact_law(mask_rates(EqualSteps(), steps), lambda s, t: remasking_probability(s, t, rule))
    assert chi_square(counts_Q, law_Q).p > MIN_P


@pytest.mark.parametrize("schedule", [EqualSteps(), Bent()], ids=["linear", "bent"])
def test_the_deviation_from_the_joint_distribution_falls_as_steps_grow(schedule):
    deviations = [total_variation(exact_law(mask_rates(schedule, steps)), JOINT_Q) for steps in STEPS]
    assert deviations == sorted(deviations, reverse=True)
    assert deviations[0] > 0.2
    assert deviations[-1] < deviations[0] / 8


def test_the_deviation_of_the_samples_falls_as_steps_grow():
    deviations = [total_variation(draw(COUNT, steps=steps)[0], JOINT_Q) for steps in (1, 3, 30)]
    assert deviations == sorted(deviations, reverse=True)
    assert deviations[-1] < 0.04


@pytest.mark.parametrize("remask", [{"eta_cap": 0.1}, {"eta_rescale": 0.5}, {"eta_rescale": 1.0}], ids=str)
def test_remasking_keeps_the_share_of_masked_tokens_at_every_step(remask):
    rates_K = mask_rates(Bent(), 6)
    rule = SamplingRule(steps=6, **remask)
    history_KBT = remasking_history(torch.ones(4, dtype=torch.bool), torch.arange(10_000), rates_K, rule)
    assert history_KBT.double().mean((1, 2)).tolist() == pytest.approx(rates_K.flip(0).tolist(), abs=0.01)
    assert bool((history_KBT[1:] & ~history_KBT[:-1]).any()), "nothing was masked again"


def test_every_pass_unmasks_a_token_and_the_last_one_leaves_nothing_masked():
    gap_T = torch.tensor([False, True, True, False, True])
    rule = SamplingRule(steps=9, eta_cap=0.3)
    for plan in (
        plan_ancestral(gap_T, torch.arange(50), mask_rates(EqualSteps(), 9), 0),
        plan_remasking(gap_T, torch.arange(50), mask_rates(EqualSteps(), 9), rule),
    ):
        for row in range(50):
            used_J = plan.unmask_JBT[:, row].any(1)
            assert bool((used_J[:-1] >= used_J[1:]).all())
            last = int(used_J.sum()) - 1
            assert bool((plan.unmask_JBT[last, row] == plan.masked_JBT[last, row]).all())
        assert not plan.unmask_JBT[:, :, ~gap_T].any()


@pytest.mark.parametrize("steps", [1, 2, 7, None])
def test_steps_that_unmask_nothing_cost_no_forward_pass(steps):
    denoiser = ExactDenoiser()
    _, canvas = draw(500, denoiser, steps=steps)
    distinct = [len(set(row) - {-1}) for row in canvas.drawn_at_BT.tolist()]
    assert canvas.passes_B.tolist() == distinct
    assert denoiser.rows == sum(distinct)
    assert max(distinct) == min(steps or LENGTH, LENGTH)


def test_the_model_is_conditioned_on_the_mask_rate_at_the_beginning_of_the_step():
    denoiser = ExactDenoiser()
    draw(500, denoiser, schedule=Bent(), steps=4)
    assert set(torch.cat(denoiser.told).tolist()) == {1.0, 0.75**2, 0.5**2, 0.25**2}
    denoiser = ExactDenoiser()
    draw(10, denoiser, sampler="confidence", steps=2)
    assert [told_B.tolist() for told_B in denoiser.told] == [[1.0] * 10, [pytest.approx(1 / 3)] * 10]
