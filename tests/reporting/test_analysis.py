"""Effective weights and second moments, against closed forms and scipy's quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ltg_mdlm_plugins.gpt_bert import DecliningRate
from ltg_mdlm_plugins.schedules import BimodalGaussian, Cosine, CosineSquared, Gaussian, Linear, Modes
from rich.console import Console
from scipy import integrate, stats
from support.batches import schedule

from ltg_mdlm.reporting.schedule_analysis import MIN_RATE, effective_weight, log10_second_moment, second_moment_table
from ltg_mdlm.testing.toy import step_for, text_batch

MODES = Modes()


def truncnorm(mean: float, std: float) -> stats.rv_continuous:
    return stats.truncnorm(-mean / std, (1 - mean) / std, loc=mean, scale=std)


@pytest.mark.parametrize(
    ("made", "power", "moment"),
    [
        (Linear(), 1.0, 1.0),
        (Linear(), 0.3, 1.0),
        (Cosine(), 1.0, math.pi**2 / 8),
        (CosineSquared(), 1.0, math.pi**2 / 8),
        (Cosine(), 0.5, 1.0),
        (Gaussian(0.2, 0.12), 0.5, 1.0),
        (Gaussian(0.2, 0.12), 0.0, 1.0),
        (BimodalGaussian(MODES), 0.0, 1.0),
        (BimodalGaussian(MODES, derivative="mixture"), 0.5, 1.0),
    ],
)
def test_second_moments_have_their_closed_forms(made, power, moment):
    """At p = 1/2 slope^2p is the slope, whose mean is the range of mask rates; at p = 0 everything is 1."""
    assert 10 ** log10_second_moment(made, power) == pytest.approx(moment, rel=1e-9)


@pytest.mark.parametrize("power", [0.05, 0.1, 0.25, 0.75, 1.0])
def test_second_moments_are_those_of_the_slopes_of_random_rows(power):
    """The definition, as an integral over t in double precision."""
    for made in (Cosine(), CosineSquared(), Gaussian(0.5, 0.3)):
        t = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
        direct = float((made.slope(t, 0.0) ** (2 * power)).mean())
        assert 10 ** log10_second_moment(made, power) == pytest.approx(direct, rel=1e-4)


def test_gaussian_second_moments_at_power_one_agree_with_quadrature():
    """integral of 1 / q, against scipy; of the drawn mode's slope the left mode alone has 10^415."""
    density = truncnorm(0.2, 0.12).pdf
    expected, _ = integrate.quad(lambda rate: 1 / density(rate), 0, 1, points=[0.9, 0.99], epsrel=1e-10)
    assert log10_second_moment(Gaussian(0.2, 0.12), 1.0) == pytest.approx(math.log10(expected), abs=1e-6)
    # Laplace: the integral of 1 / f over the right end is 1 / (f(1) |d log f / d gamma|) there.
    z = (1 - MODES.left_mean) / MODES.left_std
    log_density = -z * z / 2 - math.log(MODES.left_std * math.sqrt(2 * math.pi))
    laplace = (math.log(0.6) - log_density - math.log(z / MODES.left_std)) / math.log(10)
    assert log10_second_moment(BimodalGaussian(MODES), 1.0) == pytest.approx(laplace, abs=1e-3)
    assert laplace > 400


@pytest.mark.parametrize("tokens", [16, 128])
def test_in_short_rows_small_mask_rates_add_the_variance_of_a_binomial(tokens):
    low = MIN_RATE
    linear = 1 - low + (math.log(1 / low) - 1 + low) / tokens
    assert 10 ** log10_second_moment(Linear(), 1.0, tokens=tokens) == pytest.approx(linear, rel=1e-9)
    density = lambda rate: 2 / math.pi / math.sqrt(rate * (2 - rate))  # noqa: E731
    term = lambda log_rate: (  # noqa: E731
        density(math.exp(log_rate)) * (math.exp(log_rate) + (1 - math.exp(log_rate)) / tokens)
    )
    cosine, _ = integrate.quad(term, math.log(low), 0, limit=400)
    assert 10 ** log10_second_moment(Cosine(), 0.0, tokens=tokens) == pytest.approx(cosine, rel=1e-6)


@given(st.floats(0.01, 0.99), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_effective_weights_are_the_densitys_power_over_the_rate(rate, power, progress):
    at = torch.tensor([rate], dtype=torch.float64)
    left, right = truncnorm(MODES.left_mean, MODES.left_std), truncnorm(MODES.right_mean(progress), MODES.right_std)
    mixture = 0.6 * left.pdf(rate) + 0.4 * right.pdf(rate)
    cases = {
        "cosine": (2 / math.pi / math.sqrt(rate * (2 - rate))) ** (1 - power),
        "cosine_squared": (1 / math.pi / math.sqrt(rate * (1 - rate))) ** (1 - power),
        "linear": 1.0,
        "gaussian": truncnorm(0.2, 0.12).pdf(rate) ** (1 - power),
        "bimodal_mixture": mixture ** (1 - power),
        "bimodal": 0.6 * left.pdf(rate) ** (1 - power) + 0.4 * right.pdf(rate) ** (1 - power),
    }
    for name, expected in cases.items():
        weight = float(effective_weight(schedule(name), power, at, progress))
        assert weight == pytest.approx(expected / rate, rel=1e-6, abs=1e-200)


@pytest.mark.parametrize("name", ["cosine", "gaussian", "bimodal", "bimodal_mixture"])
@pytest.mark.parametrize("power", [0.0, 0.1])
def test_effective_weights_agree_with_sampled_rows(name, power):
    """The mean weight of rows in bands of mask rates, from draws of the schedule."""
    batch = text_batch(20_000, 2)
    noise = schedule(name).sample(batch, step_for(batch))
    edges = torch.linspace(0.08, 0.58, 11, dtype=torch.float64)
    fine = torch.linspace(0.08, 0.58, 2001, dtype=torch.float64)
    curve = effective_weight(schedule(name), power, fine, 0.4)
    expected = torch.stack([torch.trapezoid(curve[i : i + 201], fine[i : i + 201]) for i in range(0, 2000, 200)])
    weight_B = noise.slope_B**power / noise.rate_B
    band_B = torch.bucketize(noise.rate_B, edges) - 1
    inside = (band_B >= 0) & (band_B < 10)
    found = torch.zeros(10, dtype=torch.float64).index_add_(0, band_B[inside], weight_B[inside]) / len(weight_B)
    assert torch.allclose(found, expected, rtol=0.05, atol=0.01)


def test_schedules_without_a_density_are_refused():
    for made in (Gaussian(0.2, 0.12, "clamp"), DecliningRate(0.3, 0.15)):
        with pytest.raises(ValueError, match="no density"):
            log10_second_moment(made, 1.0)


def test_the_table_has_a_row_per_schedule_and_per_change_in_training():
    console = Console(width=140, record=True)
    console.print(second_moment_table({"linear": Linear(), "mixture": schedule("bimodal_mixture")}))
    lines = [line for line in console.export_text().splitlines() if "linear" in line or "mixture" in line]
    assert len(lines) == 3
    assert "0.00 / 0.05" in lines[0]
    assert "9.95 / 9.95" in lines[1]
