"""Checks of noise schedules: consistent rates, slopes, densities and draws."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ltg_mdlm.core.components import NoiseSchedule
from ltg_mdlm.testing.plugin_under_test import NotApplicable, Part, PluginUnderTest, Violation, check
from ltg_mdlm.testing.registration_checks import found
from ltg_mdlm.testing.sample_rows import require_equal, require_finite, require_tensor, sample_batch, sample_step
from ltg_mdlm.testing.toy import rows_of

PROGRESS = (0.0, 0.37, 0.99)
"""Values of training progress at which schedules are checked."""

TIMES = (torch.arange(61, dtype=torch.float64) + 0.37) / 61
"""Times in (0, 1), away from the round numbers at which pieces of a schedule meet."""

EXTREME_TIMES = torch.tensor([1e-9, 1e-6, 1 - 1e-6, 1 - 1e-9], dtype=torch.float64)

TOLERANCE = 1e-3
"""Relative tolerance of slopes against difference quotients of rates."""

DRAWS, BANDS = 100_000, 100
"""Draws, and intervals of mask rates, for the check of full support."""


@check(found)
def mask_rates_are_in_the_unit_interval_and_never_fall(subject: PluginUnderTest) -> None:
    """Rates gamma(t) are float64, in (0, 1] and non-decreasing in t, at any progress."""
    part = subject.noise_schedule()
    where, t = part.where("rate"), torch.cat([TIMES, EXTREME_TIMES]).sort().values
    for progress in PROGRESS:
        rate = part.component.rate(t, progress)
        require_tensor(rate, where, "rate", torch.float64, tuple(t.shape), t.device)
        wrong = ~((rate > 0) & (rate <= 1))
        if wrong.any():
            raise Violation(where, "rates in (0, 1]", f"{float(rate[wrong][0]):g} at t = {float(t[wrong][0]):g}")
        falls = rate.diff() < 0
        if falls.any():
            i = int(falls.nonzero()[0])
            raise Violation(
                where,
                f"rates that increase with t, from {float(rate[i]):.6g} at t = {float(t[i]):.4g}",
                f"{float(rate[i + 1]):.6g} at t = {float(t[i + 1]):.4g}, progress {progress:g}",
            )


@check(mask_rates_are_in_the_unit_interval_and_never_fall)
def slopes_are_the_derivatives_of_the_rates(subject: PluginUnderTest) -> None:
    """Slopes are finite, not negative, and equal to central difference quotients, wherever the rate changes."""
    part = subject.noise_schedule()
    where, compared = part.where("slope"), 0
    for progress in PROGRESS:
        for t in (TIMES, EXTREME_TIMES):
            slope = part.component.slope(t, progress)
            require_tensor(slope, where, "slope", torch.float64, tuple(t.shape), t.device)
            require_finite(slope, where, "slopes")
            if (slope < 0).any():
                raise Violation(
                    where, "slopes that are not negative", f"{float(slope.min()):g} at progress {progress:g}"
                )
        difference = differences(part.component, TIMES, progress)
        slope = part.component.slope(TIMES, progress)
        wrong = (difference > 0) & ((slope / difference - 1).abs() > TOLERANCE)
        compared += int((difference > 0).sum())
        if wrong.any():
            at, expected, given = (float(x[wrong][0]) for x in (TIMES, difference, slope))
            raise Violation(where, f"{expected:.6g}, the difference quotient of rate at t = {at:.4f}", f"{given:.6g}")
    if not compared:
        raise NotApplicable("rate(t) is constant, so any slope is valid")


def differences(schedule: NoiseSchedule, t: Tensor, progress: float) -> Tensor:
    """float64: central difference quotients of the rate; 0 where the rate is constant."""
    h = 1e-5 * torch.minimum(t, 1 - t)
    return (schedule.rate(t + h, progress) - schedule.rate(t - h, progress)) / (2 * h)


@check(slopes_are_the_derivatives_of_the_rates)
def the_density_is_one_over_the_slope(subject: PluginUnderTest) -> None:
    """The density q(gamma) of the drawn mask rates is 1 / slope, if the schedule has a density."""
    part = subject.noise_schedule()
    for progress in PROGRESS:
        rate, difference = part.component.rate(TIMES, progress), differences(part.component, TIMES, progress)
        density = part.component.density(rate, progress)
        if density is None:
            raise NotApplicable("density is None")
        require_finite(density, part.where("density"), "densities")
        wrong = (difference > 0) & ((density * difference - 1).abs() > TOLERANCE)
        if wrong.any():
            at, expected, given = (float(x[wrong][0]) for x in (rate, 1 / difference, density))
            raise Violation(
                part.where("density"), f"{expected:.6g} at mask rate {at:.4g}, 1 / (d rate / dt)", f"{given:.6g}"
            )


@check(mask_rates_are_in_the_unit_interval_and_never_fall)
def full_support_means_that_every_mask_rate_is_drawn(subject: PluginUnderTest) -> None:
    """With full support, 100,000 rows draw mask rates from every interval of width 0.01."""
    part = subject.noise_schedule()
    if not part.component.full_support:
        raise NotApplicable("full_support is False")
    t = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    for progress in PROGRESS:
        band = (part.component.rate(t, progress) * BANDS).long().clamp(max=BANDS - 1)
        empty = (torch.bincount(band, minlength=BANDS) == 0).nonzero().flatten()
        if len(empty):
            low = int(empty[0]) / BANDS
            raise Violation(
                part.where("rate"),
                "mask rates everywhere in (0, 1), since full_support is True",
                f"none of {DRAWS:,} rows between {low:.2f} and {low + 1 / BANDS:.2f} at progress {progress:g}",
            )


@check(mask_rates_are_in_the_unit_interval_and_never_fall)
def the_noise_of_a_row_belongs_to_the_row(subject: PluginUnderTest) -> None:
    """`sample` returns float64[B] that do not depend on earlier calls or on the split into micro-batches and ranks.

    The same holds for rates per token, float64[B, T].
    """
    part, batch = subject.noise_schedule(), sample_batch()
    step, where = sample_step(batch), part.where("sample")
    whole = part.component.sample(batch, step)
    part.component.sample(batch, dataclasses.replace(step, step=step.step + 1))
    rows = len(batch.row_B)
    for index in (torch.arange(rows), torch.arange(5), torch.arange(5, rows).flip(0)):
        result = part.component.sample(rows_of(batch, index), step)
        for name in ("t_B", "rate_B", "slope_B"):
            value, expected = getattr(result, name), getattr(whole, name)[index]
            require_tensor(value, where, name, torch.float64, (len(index),), batch.ids_BT.device)
            require_equal(value, expected, where, f"rows {int(index[0])} to {int(index[-1])} on their own: {name}")
        for name in ("rate_BT", "slope_BT"):
            value, expected = getattr(result, name), getattr(whole, name)
            if value is not None or expected is not None:
                shape = (len(index), batch.ids_BT.shape[1])
                require_tensor(value, where, name, torch.float64, shape, batch.ids_BT.device)
                require_finite(value, where, name)
                require_equal(value, expected[index], where, f"rows on their own: {name}")
    require_draws(part, whole.t_B, whole.rate_B, whole.slope_B, step.progress)


def require_draws(part: Part[NoiseSchedule], t_B: Tensor, rate_B: Tensor, slope_B: Tensor, progress: float) -> None:
    """Raise `Violation` unless the drawn noise agrees with the schedule."""
    where = part.where("sample")
    # A schedule that draws rates in another way, for example by epoch, overrides `sample`.
    draws_by_rate = type(part.component).sample is NoiseSchedule.sample
    same_rate_B = (part.component.rate(t_B, progress) - rate_B).abs() < 1e-5 if draws_by_rate else rate_B == rate_B
    for name, value_B, fine_B in (
        ("t_B in (0, 1)", t_B, (t_B > 0) & (t_B < 1)),
        ("rate_B in (0, 1]", rate_B, (rate_B > 0) & (rate_B <= 1)),
        ("slope_B finite and not negative", slope_B, (slope_B >= 0) & torch.isfinite(slope_B)),
        ("rate_B = rate(t_B)", rate_B, same_rate_B),
    ):
        if not fine_B.all():
            raise Violation(where, name, f"{float(value_B[~fine_B][0]):g} in row {int((~fine_B).nonzero()[0])}")
