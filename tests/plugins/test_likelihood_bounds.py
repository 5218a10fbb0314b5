"""Objectives compared with exact likelihoods, for a language that can be enumerated (see `support.enumeration`)."""

from __future__ import annotations

import math

import pytest
from ltg_mdlm_plugins.schedules import BimodalGaussian, Cosine, CosineSquared, Gaussian, Linear, Modes
from support.enumeration import (
    Level,
    enumeration_table,
    exact,
    expected_loss,
    integral,
    levels,
    loss_from_float32_weights,
    main,
    mixed,
    pairs,
    sampled_levels,
)

from ltg_mdlm.testing.enumeration import ENTROPY, quadrature

WIDE = Modes(left_mean=0.3, left_std=0.3, right_start=0.6, right_std=0.3)
FULL_SUPPORT = {
    "linear": Linear(),
    "cosine": Cosine(),
    "cosine_squared": CosineSquared(),
    "gaussian": Gaussian(0.5, 0.3),
    "bimodal_mixture": BimodalGaussian(WIDE, derivative="mixture"),
}


def slightly_mixed(posterior_SLV):
    return 0.99 * posterior_SLV + 0.01 / 3


def test_the_entropy_is_the_known_one():
    assert pytest.approx(2.88291, abs=5e-6) == ENTROPY


@pytest.mark.parametrize("name", FULL_SUPPORT)
def test_the_bound_is_the_entropy_for_the_exact_denoiser_under_every_schedule(name):
    schedule = FULL_SUPPORT[name]
    assert schedule.full_support
    assert integral(levels(schedule, panels=3), exact, None) == pytest.approx(ENTROPY, abs=1e-8)


@pytest.mark.parametrize("name", FULL_SUPPORT)
@pytest.mark.parametrize("denoiser", [mixed, slightly_mixed])
def test_the_bound_lies_above_the_entropy_for_any_other_denoiser_and_is_the_same_under_every_schedule(name, denoiser):
    value = integral(levels(FULL_SUPPORT[name], panels=3), denoiser, None)
    assert value > ENTROPY + 1e-4
    assert value == pytest.approx(integral(levels(Linear()), denoiser, None), abs=1e-8)


@pytest.mark.parametrize("derivative", ["component", "mixture"])
def test_both_derivatives_of_the_bimodal_schedule_are_unbiased_at_power_one(derivative):
    """Integrated over the schedule's own draws, through `sample`."""
    over = sampled_levels(BimodalGaussian(WIDE, derivative=derivative), breaks=[WIDE.left_weight], panels=8)
    assert integral(over, exact, None) == pytest.approx(ENTROPY, abs=1e-8)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_softened_objective_is_not_the_bound(power):
    assert abs(integral(levels(Cosine(), panels=4), exact, None, power) - ENTROPY) > 0.01


@pytest.mark.parametrize("derivative", ["component", "mixture"])
def test_the_published_modes_keep_the_bound_in_exact_arithmetic_only(derivative):
    """The integral over mask rates is the entropy; without 0.001 % of the draws, it is less than 0.8 of it."""
    schedule = BimodalGaussian(Modes(), derivative=derivative)
    rate, measure = quadrature([0.0, 1.0], panels=6)
    importance = schedule.log_importance(rate, 1.0, 0.0).exp()
    slopes = [Level(*v) for v in zip(rate.tolist(), importance.tolist(), measure.tolist(), strict=True)]
    assert integral(slopes, exact, None) == pytest.approx(ENTROPY, abs=1e-8)
    assert not schedule.full_support
    drawn = levels(schedule, breaks=[1e-5, Modes().left_weight, 1 - 1e-5], panels=8)[8 * 24 : -8 * 24]
    assert integral(drawn, exact, None) < 0.8 * ENTROPY


@pytest.mark.parametrize(
    ("name", "of_exact", "of_mixed"),
    [
        ("uniform masking, 1 / gamma", 2.88291, 2.91265),
        ("by type, hazard, cross-entropy only (token)", 2.88291, 2.87813),
        ("by type, 1 / gamma (row, published)", 2.63678, 2.68181),
        ("by type, hazard and compensator (exact)", 2.88291, 2.93124),
    ],
)
def test_the_table_of_weightings(name, of_exact, of_mixed):
    """Figures from an independent enumeration with numpy."""
    assert enumeration_table()[name] == pytest.approx((of_exact, of_mixed), abs=6e-6)


def test_only_uniform_masking_and_the_exact_weighting_stay_above_the_entropy():
    table = {name: min(losses) for name, losses in enumeration_table().items()}
    below = [name for name, least in table.items() if least < ENTROPY - 1e-8]
    assert below == ["by type, hazard, cross-entropy only (token)", "by type, 1 / gamma (row, published)"]


@pytest.mark.parametrize("name", FULL_SUPPORT)
def test_the_exact_weighting_is_the_entropy_for_the_exact_denoiser_under_every_schedule(name):
    schedule = FULL_SUPPORT[name]
    kink = bisect(lambda t: float(schedule.rate(quadrature([t, t + 1e-12], 1)[0][:1], 0.0)) - 0.7)
    assert integral(levels(schedule, [kink], panels=3), exact, "exact") == pytest.approx(ENTROPY, abs=1e-8)
    assert integral(levels(schedule, [kink], panels=1), mixed, "exact") == pytest.approx(2.93124, abs=6e-6)


def bisect(function, low: float = 0.0, high: float = 1.0) -> float:
    """Where an increasing function is 0."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return high


@pytest.mark.parametrize("weighting", [None, "row", "token"])
def test_the_trainers_float32_weights_agree(weighting):
    for rate in (1e-4, 0.3, 0.9):
        at = pairs(rate, 1.3, mixed, weighting)
        assert loss_from_float32_weights(at) == pytest.approx(expected_loss(at, weighting), rel=1e-6)


def test_row_and_token_weightings_agree_while_the_mask_rate_is_below_the_mean_weight():
    below, above = (0.3, 0.699), (0.75, 0.95)
    for rate in below:
        row, token = (expected_loss(pairs(rate, 1.0, mixed, w), w) for w in ("row", "token"))
        assert row == pytest.approx(token, rel=1e-12)
    for rate in above:
        row, token = (expected_loss(pairs(rate, 1.0, mixed, w), w) for w in ("row", "token"))
        assert not math.isclose(row, token, rel_tol=1e-3)


def test_the_compensator_is_never_negative_on_average():
    """Without it, the loss is lower at every rate, so the published objective can be below the entropy."""
    for rate in (0.75, 0.85, 0.99):
        token, compensated = (expected_loss(pairs(rate, 1.0, mixed, w), w) for w in ("token", "exact"))
        assert compensated > token


def test_the_table_prints(capsys):
    main()
    printed = capsys.readouterr().out
    assert "2.87813 < entropy" in printed
    assert "2.93124" in printed
