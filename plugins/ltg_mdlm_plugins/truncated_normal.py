"""The normal distribution cut to an interval, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 2.0**-53


def open_unit(t: Tensor) -> Tensor:
    """Keep probabilities off 0 and 1, which rounding can reach and where quantiles and slopes are infinite."""
    return t.clamp(_LEAST, 1 - _LEAST)


def _normal_cdf(z: Tensor) -> Tensor:
    # torch.special.ndtr is (1 + erf) / 2, which cancels for small values.
    return 0.5 * torch.erfc(-z / math.sqrt(2))


@dataclass(frozen=True)
class TruncatedNormal:
    """Normal(mean, std) conditioned on [low, high]; infinite bounds leave it whole.

    Lower and upper tails are computed from their own side, so that neither is a difference of numbers close to 1.
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
        """Probability of [low, high] under the whole normal distribution."""
        return 1 - self._below - self._above

    def quantile(self, t: Tensor) -> Tensor:
        """The value below which a share t of the distribution lies; t in (0, 1)."""
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
        """log of the density; finite where the density itself underflows."""
        z = (x - self.mean) / self.std
        return -0.5 * z.square() - math.log(self.std * self.mass * math.sqrt(2 * math.pi))
