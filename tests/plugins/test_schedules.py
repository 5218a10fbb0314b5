"""Noise schedules against calculus, against scipy, and against how training deals them to rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ltg_mdlm_plugins.schedules import (
    LOWEST_RATE,
    BimodalGaussian,
    Cosine,
    CosineSquared,
    Gaussian,
    Linear,
    Modes,
    TruncatedNormal,
)
from scipy import special, stats
from support.batches import SCHEDULES, schedule
from torch import Tensor

from ltg_mdlm.testing.toy import rows_of, step_for, text_batch

SMOOTH = ["linear", "cosine", "cosine_squared", "gaussian", "bimodal", "bimodal_mixture"]
"""Schedules that have a density."""
progresses = st.floats(0, 1)
inner = st.floats(1e-3, 1 - 1e-3)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def truncnorm(mean: float, std: float, low: float = LOWEST_RATE) -> stats.rv_continuous:
    """scipy's normal distribution on [low, 1]."""
    return stats.truncnorm((low - mean) / std, (1 - mean) / std, loc=mean, scale=std)


@pytest.mark.parametrize("name", SMOOTH)
@given(t=inner, progress=progresses)
@settings(max_examples=15, deadline=None)
def test_slope_is_the_derivative_of_the_rate(name, t, progress):
    assume(not name.startswith("bimodal") or abs(t - 0.6) > 0.02)  # between the modes, the curvature is too large
    made, step = schedule(name), 1e-4 * min(t, 1 - t)
    low, high = made.rate(tensor(t - step, t + step), progress).tolist()
    assert float(made.slope(tensor(t), progress)) == pytest.approx((high - low) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("name", SMOOTH)
@given(t=inner, progress=progresses)
@settings(max_examples=15, deadline=None)
def test_density_is_one_over_the_slope(name, t, progress):
    made = schedule(name)
    rate = made.rate(tensor(t), progress)
    assert float(made.density(rate, progress)) == pytest.approx(1 / float(made.slope(tensor(t), progress)), rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@given(t=st.lists(st.floats(2**-60, 1 - 2**-53), min_size=2, max_size=20).map(sorted), progress=progresses)
@settings(max_examples=15, deadline=None)
def test_rates_increase_with_t_and_stay_in_the_unit_interval(name, t, progress):
    rate = schedule(name).rate(tensor(*t), progress)
    assert torch.all(rate.diff() >= 0)
    assert torch.all((rate > 0) & (rate <= 1))


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_and_weights_are_finite_at_both_ends(name):
    ends = tensor(2**-53, 1e-13, 1 - 1e-13, 1 - 2**-53)
    made = schedule(name)
    for progress in (0.0, 1.0):
        for power in (0.0, 0.1, 1.0):
            weight = made.slope(ends, progress) ** power / made.rate(ends, progress)
            assert torch.all(torch.isfinite(weight.float()))


@pytest.mark.parametrize(
    ("made", "mean"),
    [(Linear(), 0.5), (Cosine(), 1 - 2 / math.pi), (CosineSquared(), 0.5)],
    ids=["linear", "cos", "cos2"],
)
def test_mean_mask_rates_are_the_published_ones(made, mean):
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert float(made.rate(t, 0.0).mean()) == pytest.approx(mean, abs=1e-8)


@pytest.mark.parametrize("t", [1e-12, 1e-8, 1e-4, 1e-3])
def test_cosine_weights_do_not_cancel_at_small_rates(t):
    """slope / gamma = (pi / 2) cot(pi t / 4); in float32, 1 - cos(pi t / 2) is off by a factor of two near t = 0."""
    weight = Cosine().slope(tensor(t), 0.0) / Cosine().rate(tensor(t), 0.0)
    assert float(weight) == pytest.approx(math.pi / 2 / math.tan(math.pi * t / 4), rel=1e-12)


@pytest.mark.parametrize("rest", [2**-45, 2**-30, 1e-3])
def test_cosine_squared_slope_does_not_cancel_at_the_far_end(rest):
    t = 1 - rest
    assert float(CosineSquared().slope(tensor(t), 0.0)) == pytest.approx(
        math.pi / 2 * math.sin(math.pi * (1 - t)), rel=1e-9, abs=0
    )


@given(st.floats(0, 1), st.floats(0.01, 3), st.lists(inner, min_size=1, max_size=10))
@settings(max_examples=100, deadline=None)
def test_truncated_normal_is_scipys(mean, std, t):
    ours, theirs = TruncatedNormal(mean, std, LOWEST_RATE, 1.0), truncnorm(mean, std)
    x = ours.quantile(tensor(*t))
    assert x.numpy() == pytest.approx(theirs.ppf(t), abs=1e-9)
    assert ours.cdf(x).numpy() == pytest.approx(np.array(t), abs=1e-9)
    assert ours.survival(x).numpy() == pytest.approx(1 - np.array(t), abs=1e-9)
    assert ours.log_density(x).numpy() == pytest.approx(theirs.logpdf(x.numpy()), abs=1e-7)


@given(st.floats(0, 0.9), st.floats(0.02, 1), progresses, st.lists(inner, min_size=1, max_size=10))
@settings(max_examples=30, deadline=None)
def test_bimodal_rates_are_quantiles_of_scipys_mixture(left_mean, left_std, progress, t):
    modes = Modes(left_mean=left_mean, left_std=left_std)
    made = BimodalGaussian(modes)
    left, right = truncnorm(left_mean, left_std), truncnorm(modes.right_mean(progress), modes.right_std)
    rate = made.rate(tensor(*t), progress)
    cdf = 0.6 * left.cdf(rate) + 0.4 * right.cdf(rate)
    assert cdf == pytest.approx(np.array(t), abs=1e-9)
    density = 0.6 * left.pdf(rate) + 0.4 * right.pdf(rate)
    assert made.density(rate, progress).numpy() == pytest.approx(density, rel=1e-6)


@pytest.mark.parametrize("rest", [2**-48, 2**-40, 2**-20])
def test_upper_tails_are_as_exact_as_lower_ones(rest):
    """Where 1 - t is tiny, a quantile from t alone would be off in the fifth digit."""
    t = tensor(1 - rest)
    assert upper_tail(float(Gaussian(0.2, 0.12).rate(t, 0.0)), 0.2, 0.12) == pytest.approx(rest, rel=1e-6, abs=0)
    modes = Modes()
    rate = float(BimodalGaussian(modes).rate(t, 0.5))
    assert 0.4 * upper_tail(rate, modes.right_mean(0.5), modes.right_std) == pytest.approx(rest, rel=1e-6, abs=0)


def upper_tail(x: float, mean: float, std: float) -> float:
    """P(X > x) on [0, 1]; scipy's own truncated normal is less exact there."""
    below, above = special.ndtr(-mean / std), special.ndtr((mean - 1) / std)
    return (special.ndtr((mean - x) / std) - above) / (1 - below - above)


def test_the_right_mode_moves_from_its_start_towards_its_end():
    modes = Modes()
    assert modes.right_mean(0.0) == pytest.approx(0.4)
    assert modes.right_mean(1.0) == pytest.approx(0.4 + 0.45 * (1 - math.exp(-1)))
    assert modes.right_mean(0.5) == pytest.approx(0.4 + 0.45 * (1 - math.exp(-0.5)))


@pytest.mark.parametrize("causal", [False, True])
@given(cuts=st.lists(st.integers(1, 60), max_size=6, unique=True).map(sorted), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_t_covers_every_cell_once_for_any_ranks_and_micro_batches(causal, cuts, seed):
    """The n masked rows of a global batch have one t in each of n equal cells, for any split."""
    batch = text_batch(61, 8)
    causal_R = (torch.arange(61) * 7 + seed) % 3 == 0 if causal else None
    step = step_for(batch, seed=seed, causal_R=causal_R)
    parts = [rows_of(batch, slice(a, b)) for a, b in zip([0, *cuts], [*cuts, 61], strict=True)]
    t_R = torch.cat([step.stratified(part, "noise") for part in reversed(parts)])
    masked_R = torch.ones(61, dtype=torch.bool) if causal_R is None else ~causal_R
    masked_R = torch.cat([masked_R[part.row_B] for part in reversed(parts)])
    n = int(masked_R.sum())
    assert (t_R[masked_R] * n).floor().sort().values.tolist() == list(range(n))
    assert torch.all((t_R > 0) & (t_R < 1))


def test_cells_are_assigned_to_rows_anew_in_every_step():
    batch = text_batch(61, 8)
    first, second = (step_for(batch, step=s).stratified(batch, "noise") for s in (1, 2))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.4


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_sample_agrees_with_the_schedule_as_a_function_of_t(name):
    batch = text_batch(256, 4)
    step = step_for(batch)
    noise = schedule(name).sample(batch, step)
    assert all(x.dtype == torch.float64 for x in (noise.t_B, noise.rate_B, noise.slope_B))
    assert torch.all((noise.t_B > 0) & (noise.t_B < 1))
    assert torch.all((noise.rate_B > 0) & (noise.rate_B <= 1))
    assert noise.rate_B.numpy() == pytest.approx(schedule(name).rate(noise.t_B, step.progress).numpy(), abs=1e-9)
    if name not in ("bimodal", "bimodal_clamped"):  # their slopes are those of the component
        slope = schedule(name).slope(noise.t_B, step.progress)
        assert noise.slope_B.numpy() == pytest.approx(slope.numpy(), rel=1e-6)


def test_both_modes_of_the_bimodal_schedule_are_stratified():
    """Sorted draws of n rows deviate from each mode's distribution function by at most one cell."""
    batch = text_batch(1000, 4)
    step = step_for(batch)
    made = BimodalGaussian(Modes(left_mean=0.2, right_start=0.8, right_end=0.8))
    rate_B = made.sample(batch, step).rate_B
    for mean, std, rates in ((0.2, 0.02, rate_B[rate_B < 0.4]), (0.8, 0.08, rate_B[rate_B > 0.4])):
        cdf = np.sort(truncnorm(mean, std).cdf(rates.numpy()))
        n = len(cdf)
        assert n == {0.2: 600, 0.8: 400}[mean]
        assert np.all(np.abs(cdf - (np.arange(n) + 0.5) / n) <= 1 / n)


def test_component_and_mixture_derivatives_differ_only_in_the_slope():
    batch = text_batch(500, 4)
    component, mixture = (schedule(n).sample(batch, step_for(batch)) for n in ("bimodal", "bimodal_mixture"))
    assert torch.equal(component.rate_B, mixture.rate_B)
    assert torch.equal(component.t_B, mixture.t_B)
    modes = Modes()
    rate = mixture.rate_B.numpy()
    left, right = truncnorm(modes.left_mean, modes.left_std), truncnorm(modes.right_mean(0.4), modes.right_std)
    density = 0.6 * left.pdf(rate) + 0.4 * right.pdf(rate)
    assert mixture.slope_B.numpy() == pytest.approx(1 / density, rel=1e-6)
    own = np.where(rate < 0.25, left.pdf(rate), right.pdf(rate))
    near = (rate < 0.2) | (rate > 0.3)  # where the rate identifies the drawn mode
    assert component.slope_B.numpy()[near] == pytest.approx(1 / own[near], rel=1e-6)


def test_clamped_gaussian_draws_collect_at_the_ends_as_published():
    """4.8 % of the published unimodal draws get a rate that masks nothing, and a weight of 1e8."""
    t = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    rate = Gaussian(0.2, 0.12, "clamp").rate(t, 0.0)
    assert float((rate == 1e-8).double().mean()) == pytest.approx(stats.norm.cdf(-0.2 / 0.12), abs=1e-4)
    assert float((rate == 1e-8).double().mean()) == pytest.approx(0.048, abs=5e-4)
    inside = rate > 1e-8
    z = stats.norm.ppf(t[inside].numpy())
    assert rate[inside].numpy() == pytest.approx(0.2 + 0.12 * z, abs=1e-12)
    slope = Gaussian(0.2, 0.12, "clamp").slope(t, 0.0)
    assert slope.numpy() == pytest.approx(0.12 / stats.norm.pdf(stats.norm.ppf(t.numpy())), rel=1e-9)
    assert Gaussian(0.2, 0.12, "clamp").density(rate, 0.0) is None


def test_truncated_gaussian_draws_have_no_atoms():
    batch = text_batch(2000, 4)
    rate_B = schedule("gaussian").sample(batch, step_for(batch)).rate_B
    assert float(rate_B.min()) > 1e-6
    assert stats.kstest(rate_B.numpy(), truncnorm(0.2, 0.12).cdf).statistic <= 1 / 2000


def test_only_schedules_whose_draws_can_estimate_the_bound_claim_full_support():
    """The mean slope is the share of mask rates that draws have seen, 1 if they see all."""
    claims = {name: schedule(name).full_support for name in SCHEDULES}
    assert [name for name, claim in claims.items() if claim] == ["linear", "cosine", "cosine_squared"]
    assert Gaussian(0.5, 0.3).full_support
    assert BimodalGaussian(Modes(left_std=0.3, right_std=0.3)).full_support
    assert BimodalGaussian(Modes(left_std=0.5), derivative="mixture").full_support
    assert not BimodalGaussian(Modes(left_std=0.5)).full_support  # rows of the right mode see only some mask rates
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    for wide in (Linear(), Cosine(), CosineSquared(), Gaussian(0.5, 0.3), Gaussian(0.3, 0.3)):
        assert wide.full_support
        assert float(wide.slope(t, 0.0).mean()) == pytest.approx(1, abs=0.01)
    assert float(schedule("gaussian").slope(t, 0.0).mean()) < 0.8
    assert float(schedule("bimodal_mixture").slope(t, 0.0).mean()) < 0.8


def test_bimodal_noise_does_not_depend_on_the_split_into_micro_batches():
    batch = text_batch(64, 4)
    step = replace(step_for(batch), causal_R=torch.arange(64) % 5 == 0)
    whole = schedule("bimodal").sample(batch, step)
    part = schedule("bimodal").sample(rows_of(batch, torch.tensor([63, 5, 17])), step)
    for name in ("t_B", "rate_B", "slope_B"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[[63, 5, 17]])
