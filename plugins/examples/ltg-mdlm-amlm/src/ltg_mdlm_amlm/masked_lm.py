"""The other components of masked language modelling: mask rate, objective, and no conditioning."""

from __future__ import annotations

import torch
from torch import Tensor

from ltg_mdlm.api import IGNORE, Batch, Corrupted, Noise, NoiseSchedule, Objective, Step, Supervised, TimeConditioning


class DecliningRate(NoiseSchedule):
    """One mask rate for all rows of a step, linear in progress."""

    full_support = False

    def __init__(self, start: float, end: float) -> None:
        self._start, self._end = start, end

    def at(self, progress: float) -> float:
        """The mask rate at this progress."""
        return self._start + (self._end - self._start) * progress

    def rate(self, t: Tensor, progress: float) -> Tensor:
        return torch.full_like(t, self.at(progress))

    def slope(self, t: Tensor, progress: float) -> Tensor:
        """1: a single rate has no density."""
        return torch.ones_like(t)


class MeanCrossEntropy(Objective):
    """The mean cross-entropy of all predicted tokens of the global batch."""

    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        return (corrupted.labels_BT != IGNORE).sum().float().unsqueeze(0)

    def weights(self, supervised: Supervised, step: Step) -> tuple[Tensor, None]:
        return torch.ones_like(supervised.rate_N, dtype=torch.float32), None


class NoConditioning(TimeConditioning):
    """No conditioning; the model has no parameters for it."""

    active = False

    def value(self, corrupted: Corrupted, noise: Noise) -> None:
        return None

    def value_for_rate(self, rate_B: Tensor) -> None:
        return None
