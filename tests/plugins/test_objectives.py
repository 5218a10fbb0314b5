"""Weights, denominators and finiteness of the built-in objectives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltg_mdlm_plugins.gpt_bert import HybridObjective, causal_rows
from ltg_mdlm_plugins.objectives import DiffusionObjective, StateDependentBound
from ltg_mdlm_plugins.schedules import Cosine, Gaussian
from support.batches import MASKINGS, frequency_masking
from torch import Tensor

from ltg_mdlm.api import MaskingStrategy, Supervised
from ltg_mdlm.testing.toy import batch_of, no_causal, noise_at, step_for, text_batch

STEP = step_for(text_batch(1, 8))


def supervised(
    rate: Tensor, slope: Tensor | float = 1.0, causal: Tensor | None = None, **changes: object
) -> Supervised:
    """One supervised position per mask rate, each in a row of its own."""
    rate_N = rate.double()
    index_N = torch.arange(len(rate_N))
    causal_N = torch.zeros(len(rate_N), dtype=torch.bool) if causal is None else causal
    values = Supervised(
        label_N=index_N % 5,
        row_N=index_N,
        column_N=torch.zeros_like(index_N),
        causal_N=causal_N,
        masked_N=~causal_N,
        rate_N=rate_N,
        realised_rate_N=rate_N,
        slope_N=torch.as_tensor(slope, dtype=torch.float64).expand(len(rate_N)),
        hazard_N=1 / rate_N,
    )
    return replace(values, **changes)


@given(st.floats(1e-6, 1), st.floats(1e-3, 1e3), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=50, deadline=None)
def test_a_rows_weight_is_slope_to_the_power_over_the_rate(rate, slope, power):
    weight_N, z_weight_N = DiffusionObjective(power).weights(supervised(torch.tensor([rate]), slope), STEP)
    assert weight_N.dtype == torch.float32
    assert z_weight_N is None
    assert float(weight_N) == pytest.approx(slope**power / float(torch.tensor(rate)), rel=1e-6)


@given(st.floats(2**-23, 1 - 2**-23), st.sampled_from([0.0, 0.1, 1.0]))
@settings(max_examples=50, deadline=None)
def test_weights_are_finite_wherever_a_token_can_be_masked(t, power):
    """With rates below 2^-24, `Step.uniform` masks nothing."""
    for schedule in (Cosine(), Gaussian(0.2, 0.12), Gaussian(0.2, 0.12, "clamp")):
        time = torch.tensor([t], dtype=torch.float64)
        rate = schedule.rate(time, 0.0).clamp(min=2**-24)
        weight_N, _ = DiffusionObjective(power).weights(supervised(rate, schedule.slope(time, 0.0)), STEP)
        assert torch.isfinite(weight_N).all()


def test_causal_positions_have_weight_1():
    some = supervised(torch.tensor([0.1, 0.1]), 3.0, causal=torch.tensor([False, True]))
    assert DiffusionObjective(1.0).weights(some, STEP)[0].tolist() == pytest.approx([30.0, 1.0])


def test_causal_positions_of_the_state_dependent_bound_have_their_cross_entropy():
    given = supervised(torch.tensor([0.1, 0.1]), 3.0, causal=torch.tensor([True, True]))
    logits_NV = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nll = torch.nn.functional.cross_entropy(logits_NV, given.label_N, reduction="sum")
    assert float(StateDependentBound().loss_terms(logits_NV, given, STEP)) == pytest.approx(float(nll))


def test_the_denominator_counts_all_tokens_but_padding():
    batch = batch_of([[[20, 21], [22]], [[23]], []], 8)
    result = MASKINGS["uniform"]().corrupt(batch, no_causal(batch), noise_at(0.5, batch), STEP)
    for objective in (DiffusionObjective(1.0), StateDependentBound()):
        assert objective.denominators(batch, result).tolist() == [7.0]


def literal_state_dependent_terms(logits_NV: Tensor, given: Supervised) -> float:
    """h(x) (-log x_theta(x)) + sum_v h(v) x_theta(v) - h(x), position by position."""
    total = 0.0
    for n in range(len(logits_NV)):
        said = [math.exp(v) for v in logits_NV[n].tolist()]
        said = [v / sum(said) for v in said]
        hazard = given.hazard_by_type_BV[given.row_N[n]].tolist()
        label = int(given.label_N[n])
        paid = sum(h * p for h, p in zip(hazard, said, strict=True))
        total += float(given.slope_N[n]) * (hazard[label] * -math.log(said[label]) + paid - hazard[label])
    return total


def test_the_state_dependent_bound_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    hazard_BV = torch.rand(6, 5, generator=generator, dtype=torch.float64) + 0.1
    given = supervised(torch.full((6,), 0.5), 0.7, hazard_by_type_BV=hazard_BV)
    given = replace(given, hazard_N=hazard_BV[given.row_N, given.label_N])
    logits_NV = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    assert float(StateDependentBound().loss_terms(logits_NV, given, STEP)) == pytest.approx(
        literal_state_dependent_terms(logits_NV, given)
    )


def test_under_uniform_masking_the_state_dependent_bound_is_the_plain_one():
    given = supervised(torch.tensor([0.1, 0.5, 0.9]), 1.3)
    logits_NV = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nll_N = -logits_NV.log_softmax(1)[torch.arange(3), given.label_N]
    weight_N, _ = DiffusionObjective(1.0).weights(given, STEP)
    expected = float((weight_N * nll_N).sum())
    assert float(StateDependentBound().loss_terms(logits_NV, given, STEP)) == pytest.approx(expected)


def test_terms_of_slices_add_up():
    hazard_BV = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = supervised(torch.full((6,), 0.5), hazard_by_type_BV=hazard_BV)
    logits_NV = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    parts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    added = sum(StateDependentBound().loss_terms(logits_NV[p], given[p], STEP) for p in parts)
    assert torch.allclose(added, StateDependentBound().loss_terms(logits_NV, given, STEP))


@pytest.mark.parametrize("rate", [1e-7, 0.5, 1 - 1e-9, 1.0])
def test_loss_and_gradient_of_the_state_dependent_bound_are_finite(rate):
    """Also for logits that give probabilities 0 and 1."""
    batch = text_batch(3, 16)
    strategy = frequency_masking(statistics="corpus", weighting="exact")
    hazard_BT, hazard_BV = strategy.hazard(batch, noise_at(rate, batch), step_for(batch))
    row_N, column_N = batch.maskable_BT.nonzero(as_tuple=True)
    given = supervised(
        torch.full((len(row_N),), rate),
        label_N=batch.ids_BT[row_N, column_N],
        row_N=row_N,
        hazard_N=hazard_BT[row_N, column_N],
        hazard_by_type_BV=hazard_BV,
    )
    logits_NV = 100 * torch.randn(len(row_N), 48, generator=torch.Generator().manual_seed(0))
    logits_NV.requires_grad_()
    loss = StateDependentBound().loss_terms(logits_NV, given, STEP).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits_NV.grad).all()


class Kind(MaskingStrategy):
    """A masking strategy of this kind."""

    def __init__(self, kind: str) -> None:
        super().__init__(mask_id=4)
        self.kind = kind

    def mask_probability(self, batch, noise, step):
        raise NotImplementedError


class KindWithHazard(Kind):
    def hazard(self, batch, noise, step):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("objective", "kind", "schedule", "is_bound"),
    [
        (DiffusionObjective(1.0), "uniform", Cosine(), True),
        (DiffusionObjective(0.5), "uniform", Cosine(), False),
        (DiffusionObjective(1.0), "by_type", Cosine(), False),
        (DiffusionObjective(1.0), "other", Cosine(), False),
        (DiffusionObjective(1.0), "uniform", Gaussian(0.2, 0.12), False),
        (StateDependentBound(), "by_type", Cosine(), True),
        (StateDependentBound(), "uniform", Cosine(), True),
        (StateDependentBound(), "other", Cosine(), False),
        (StateDependentBound(), "by_type", Gaussian(0.2, 0.12), False),
        (HybridObjective(0.0625, 0.0625, 1e-4), "uniform", Cosine(), False),
    ],
)
def test_only_bounds_are_called_bounds(objective, kind, schedule, is_bound):
    assert objective.bound_for(KindWithHazard(kind), schedule) is is_bound


def test_a_bound_for_rates_by_type_needs_a_strategy_that_states_its_hazards():
    assert not StateDependentBound().bound_for(Kind("by_type"), Cosine())
    assert StateDependentBound().bound_for(Kind("uniform"), Cosine())


@given(st.floats(0, 1), st.floats(1e-5, 1))
@settings(max_examples=30, deadline=None)
def test_the_hybrid_loss_is_a_weighted_mean_of_two_means(causal_weight, z_loss):
    objective = HybridObjective(causal_weight, 0.5, z_loss)
    causal_N = torch.tensor([True, False, False, True, True])
    given = supervised(torch.full((5,), 0.3), causal=causal_N)
    assert objective.group(given).tolist() == causal_N.long().tolist()
    weight_N, z_weight_N = objective.weights(given, replace(STEP, rows=16))
    expected = [causal_weight if c else 1 - causal_weight for c in causal_N]
    assert weight_N.tolist() == pytest.approx(expected, rel=1e-6)
    assert z_weight_N.tolist() == pytest.approx([z_loss * w for w in expected], rel=1e-6)


@pytest.mark.parametrize(("share", "rows"), [(0.0625, 4), (0.0625, 16), (0.0625, 20), (0.9, 3), (0.0, 8), (1.0, 8)])
def test_each_mean_has_its_weight_over_many_steps_of_few_rows(share, rows):
    objective, steps, total = HybridObjective(0.25, share, 0.0), 400, [0.0, 0.0]
    for number in range(steps):
        step = replace(STEP, rows=rows)
        causal = causal_rows(share, number * rows, rows)
        given = supervised(torch.full((2,), 0.3), causal=torch.tensor([False, True]))
        masked_weight, causal_weight = objective.weights(given, step)[0].tolist()
        total[0] += masked_weight * (causal < rows)
        total[1] += causal_weight * (causal > 0)
    assert total == pytest.approx([0.75 * steps * (share < 1), 0.25 * steps * (share > 0)])


def test_the_hybrid_denominators_count_predictions_of_each_mode():
    batch = batch_of([[[20, 21, 22]], [[23, 24], [25]], [[26] * 6]], 8)
    causal_B = torch.tensor([False, True, True])
    result = MASKINGS["spans_unbalanced"]().corrupt(batch, causal_B, noise_at(0.7, batch), STEP)
    masked, causal = HybridObjective(0.5, 0.5, 0.0).denominators(batch, result).tolist()
    assert masked == result.masked_BT[0].sum()
    assert causal == 9
