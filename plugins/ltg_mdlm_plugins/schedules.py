"""Noise schedules: the distribution of mask rates over rows.

The cosine and Gaussian schedules are those of Kosmopoulou et al. 2025 (arXiv 2509.05056), with time running from clean
to masked.  All tensors are float64; t is in (0, 1), rates are in (0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ltg_mdlm.api import Batch, Noise, NoiseSchedule, Step

Tails = Literal["truncate", "clamp"]
Derivative = Literal["component", "mixture"]

LOWEST_RATE = 1e-10
"""Lower end of truncated Gaussians; the part of the bound below it is of the order of 1e-10 nats per token."""
CLAMP = 1e-8
"""Published clamping keeps 1 - gamma in [CLAMP, 1 - CLAMP]."""
MIN_DENSITY = 1e-3
"""Smallest density of a schedule with full support: every interval of 1 % of the rates gets one row in 100,000."""
_SMALLEST = 2.0**-53
"""Smallest distance of a probability from 0 and 1, see `open_unit`."""


class Linear(NoiseSchedule):
    """gamma = t; mean mask rate 1/2."""

    def rate(self, t: Tensor, progress: float) -> Tensor:
        return t

    def slope(self, t: Tensor, progress: float) -> Tensor:
        return torch.ones_like(t)

    def density(self, rate: Tensor, progress: float) -> Tensor:
        return torch.ones_like(rate)


class Cosine(NoiseSchedule):
    """gamma = 1 - cos(pi t / 2); mean mask rate 1 - 2/pi."""

    def rate(self, t: Tensor, progress: float) -> Tensor:
        # 1 - cos would cancel for small t
        return 2 * torch.sin(math.pi / 4 * t).square()

    def slope(self, t: Tensor, progress: float) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi / 2 * t)

    def density(self, rate: Tensor, progress: float) -> Tensor:
        return 2 / math.pi * (rate * (2 - rate)).rsqrt()


class CosineSquared(NoiseSchedule):
    """gamma = 1 - cos^2(pi t / 2); mean mask rate 1/2."""

    def rate(self, t: Tensor, progress: float) -> Tensor:
        return torch.sin(math.pi / 2 * t).square()

    def slope(self, t: Tensor, progress: float) -> Tensor:
        # symmetric in t and 1 - t; sin(pi t) would cancel near t = 1
        return math.pi / 2 * torch.sin(math.pi * torch.minimum(t, 1 - t))

    def density(self, rate: Tensor, progress: float) -> Tensor:
        return 1 / math.pi * (rate * (1 - rate)).rsqrt()


def open_unit(t: Tensor) -> Tensor:
    """Clamp probabilities to the open interval (0, 1): rounding can reach its ends, where quantiles are infinite."""
    return t.clamp(_SMALLEST, 1 - _SMALLEST)


def _normal_cdf(z: Tensor) -> Tensor:
    # torch.special.ndtr computes (1 + erf) / 2, which cancels for small values
    return 0.5 * torch.erfc(-z / math.sqrt(2))


@dataclass(frozen=True)
class TruncatedNormal:
    """Normal(mean, std) conditioned on [low, high], in float64.

    scipy has this distribution, but not for tensors on a device.  Each tail is computed from its own side, so that none
    is a difference of numbers close to 1.
    """

    mean: float
    std: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def _below(self) -> float:
        return 0.5 * math.erfc((self.mean - self.low) / (self.std * math.sqrt(2)))

    @property
    def _above(self) -> float:
        return 0.5 * math.erfc((self.high - self.mean) / (self.std * math.sqrt(2)))

    @property
    def mass(self) -> float:
        """Probability of [low, high] under Normal(mean, std)."""
        return 1 - self._below - self._above

    def quantile(self, t: Tensor) -> Tensor:
        """Inverse of `cdf`; t in (0, 1)."""
        t = open_unit(t)
        below, above = self._below + t * self.mass, self._above + (1 - t) * self.mass
        z = torch.where(below < above, torch.special.ndtri(below), -torch.special.ndtri(above))
        return (self.mean + self.std * z).clamp(self.low, self.high)

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), accurate where it is small."""
        return (_normal_cdf((x - self.mean) / self.std) - self._below) / self.mass

    def survival(self, x: Tensor) -> Tensor:
        """P(X > x), accurate where it is small."""
        return (_normal_cdf((self.mean - x) / self.std) - self._above) / self.mass

    def log_density(self, x: Tensor) -> Tensor:
        """Logarithm of the density; finite where the density underflows."""
        z = (x - self.mean) / self.std
        return -0.5 * z.square() - math.log(self.std * self.mass * math.sqrt(2 * math.pi))


class Gaussian(NoiseSchedule):
    """Mask rates from a normal distribution that is truncated or (published) clamped to (0, 1].

    Clamping turns the tails into two atoms.  Rows at the lower one have a weight of 1e8, and no masked tokens.
    """

    def __init__(self, mean: float, std: float, tails: Tails = "truncate") -> None:
        self._normal = _normal(mean, std, tails)
        self._tails: Tails = tails
        self.full_support = tails == "truncate" and _least_density(self) >= MIN_DENSITY

    def rate(self, t: Tensor, progress: float) -> Tensor:
        return _into_unit(self._normal.quantile(t), self._tails)

    def slope(self, t: Tensor, progress: float) -> Tensor:
        return torch.exp(-self._normal.log_density(self._normal.quantile(t)))

    def density(self, rate: Tensor, progress: float) -> Tensor | None:
        return None if self._tails == "clamp" else self._normal.log_density(rate).exp()

    def log_importance(self, rate: Tensor, power: float, progress: float) -> Tensor | None:
        return None if self._tails == "clamp" else (1 - power) * self._normal.log_density(rate)


@dataclass(frozen=True, kw_only=True)
class Modes:
    """Two Gaussian modes of mask rates; the right one moves up during training.  The defaults are published values."""

    left_weight: float = 0.6
    left_mean: float = 0.12
    left_std: float = 0.02
    right_start: float = 0.4
    right_end: float = 0.85
    right_growth: float = 1.0
    right_std: float = 0.08

    def right_mean(self, progress: float) -> float:
        """Mean of the right mode; it starts at `right_start` and approaches `right_end` exponentially."""
        return self.right_start + (self.right_end - self.right_start) * -math.expm1(-self.right_growth * progress)


_PROGRESS = (0.0, 0.5, 1.0)
"""Progress of training at which the support of a schedule is examined."""


class BimodalGaussian(NoiseSchedule):
    """Mask rates from a mixture of two normal distributions.

    t is the distribution function of the mixture, so that gamma(t) increases.  The slope of a row is 1 / f(gamma) with
    the derivative "mixture", where f is the density of the mixture, and 1 / f_k(gamma) with "component" (published),
    where f_k is the density of the mode k that the row was drawn from.
    """

    def __init__(self, modes: Modes, tails: Tails = "truncate", derivative: Derivative = "component") -> None:
        self.modes = modes
        self._tails: Tails = tails
        self._derivative: Derivative = derivative
        # With derivatives by component, the rows of each mode estimate the bound on their own.
        apart = [(modes.left_mean, modes.left_std)]
        apart += [(modes.right_mean(progress), modes.right_std) for progress in _PROGRESS]
        drawn = [self] if derivative == "mixture" else [Gaussian(mean, std, tails) for mean, std in apart]
        self.full_support = tails == "truncate" and min(map(_least_density, drawn)) >= MIN_DENSITY

    def components(self, progress: float) -> tuple[TruncatedNormal, TruncatedNormal]:
        """The left and the right mode."""
        modes = self.modes
        return (
            _normal(modes.left_mean, modes.left_std, self._tails),
            _normal(modes.right_mean(progress), modes.right_std, self._tails),
        )

    def sample(self, batch: Batch, step: Step) -> Noise:
        """Stratified draws below `left_weight` go to the left mode, others to the right; both stay stratified."""
        u_B, weight = step.stratified(batch, "noise"), self.modes.left_weight
        left, right = self.components(step.progress)
        is_left_B = u_B < weight
        left_B, right_B = left.quantile(u_B / weight), right.quantile((u_B - weight) / (1 - weight))
        drawn_B = torch.where(is_left_B, left_B, right_B)
        log_density_B = self._log_density(drawn_B, step.progress)
        if self._derivative == "component":
            log_density_B = torch.where(is_left_B, left.log_density(left_B), right.log_density(right_B))
        return Noise(
            t_B=open_unit(self._cdf(drawn_B, step.progress)),
            rate_B=_into_unit(drawn_B, self._tails),
            slope_B=torch.exp(-log_density_B),
        )

    def rate(self, t: Tensor, progress: float) -> Tensor:
        return _into_unit(self._quantile(t, progress), self._tails)

    def slope(self, t: Tensor, progress: float) -> Tensor:
        return torch.exp(-self._log_density(self._quantile(t, progress), progress))

    def density(self, rate: Tensor, progress: float) -> Tensor | None:
        return None if self._tails == "clamp" else self._log_density(rate, progress).exp()

    def log_importance(self, rate: Tensor, power: float, progress: float) -> Tensor | None:
        """With component derivatives, this is the log of the sum over modes of weight x density^(1 - power)."""
        if self._tails == "clamp":
            return None
        if self._derivative == "mixture":
            return (1 - power) * self._log_density(rate, progress)
        left, right = self._log_weighted(rate, progress, 1 - power)
        return torch.logaddexp(left, right)

    def _log_weighted(self, rate: Tensor, progress: float, exponent: float) -> tuple[Tensor, Tensor]:
        left, right = self.components(progress)
        weight = self.modes.left_weight
        return (
            math.log(weight) + exponent * left.log_density(rate),
            math.log1p(-weight) + exponent * right.log_density(rate),
        )

    def _log_density(self, rate: Tensor, progress: float) -> Tensor:
        return torch.logaddexp(*self._log_weighted(rate, progress, 1.0))

    def _cdf(self, rate: Tensor, progress: float) -> Tensor:
        left, right = self.components(progress)
        return self.modes.left_weight * left.cdf(rate) + (1 - self.modes.left_weight) * right.cdf(rate)

    def _survival(self, rate: Tensor, progress: float) -> Tensor:
        left, right = self.components(progress)
        return self.modes.left_weight * left.survival(rate) + (1 - self.modes.left_weight) * right.survival(rate)

    def _quantile(self, t: Tensor, progress: float) -> Tensor:
        """Inverse of the distribution function of the mixture, by bisection between the quantiles of the modes."""
        left, right = (component.quantile(t) for component in self.components(progress))
        low, high = torch.minimum(left, right), torch.maximum(left, right)
        for _ in range(64):
            middle = 0.5 * (low + high)
            below = torch.where(t < 0.5, self._cdf(middle, progress) < t, self._survival(middle, progress) > 1 - t)
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high


def _normal(mean: float, std: float, tails: Tails) -> TruncatedNormal:
    return TruncatedNormal(mean, std, LOWEST_RATE, 1.0) if tails == "truncate" else TruncatedNormal(mean, std)


def _into_unit(rate: Tensor, tails: Tails) -> Tensor:
    return rate if tails == "truncate" else rate.clamp(CLAMP, 1 - CLAMP)


def _least_density(schedule: NoiseSchedule) -> float:
    """The smallest density over all mask rates and over training."""
    rate = torch.linspace(LOWEST_RATE, 1, 1001, dtype=torch.float64)
    densities = [schedule.density(rate, progress) for progress in _PROGRESS]
    return min(float(density.min()) for density in densities if density is not None)
