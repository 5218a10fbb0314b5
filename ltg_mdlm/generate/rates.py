"""The mask rates that a row passes through on its way from all masked to nothing masked."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ltg_mdlm.build import run_context
from ltg_mdlm.config import stored_config
from ltg_mdlm.distributed import Ranks
from ltg_mdlm.errors import UserError
from ltg_mdlm.generate.rule import SamplingRule
from ltg_mdlm.host import Host
from ltg_mdlm.trained_model import TrainedModel


class RateSchedule(Protocol):
    """Anything with the `rate` of `ltg_mdlm.api.NoiseSchedule`."""

    def rate(self, t: Tensor, progress: float) -> Tensor:
        """float64 gamma(t), increasing in t."""


class EqualSteps:
    """gamma = t: as many tokens in every step, on average."""

    def rate(self, t: Tensor, progress: float) -> Tensor:
        return t


def rates(schedule: RateSchedule, steps: int) -> Tensor:
    """float64[K + 1]: gamma at t = k / K, from exactly 0 to exactly 1."""
    inside = schedule.rate(torch.arange(1, steps, dtype=torch.float64) / steps, 1.0)
    return torch.cat([torch.zeros(1, dtype=torch.float64), inside, torch.ones(1, dtype=torch.float64)])


def schedule_for(rule: SamplingRule, trained: TrainedModel) -> RateSchedule:
    """The schedule that the rule asks for.  Raises UserError if it is the model's, and that cannot be had or used."""
    return trained_schedule(trained) if rule.schedule == "trained" else EqualSteps()


def trained_schedule(trained: TrainedModel) -> RateSchedule:
    """The noise schedule of a model's training, as it was at the end.

    Raises UserError if nobody knows it, its plugin is not installed, or it does not lead from nothing to everything.
    """
    if "config" not in trained.about:
        raise UserError(f"--schedule trained: {trained.source} does not say how it was trained; leave it out")
    config = stored_config(trained.about["config"], trained.source)
    context = run_context(config, trained.tokenizer, Ranks.alone())
    filled = Host(config).fill("noise_schedule", context)
    schedule: RateSchedule = filled.component
    low, high = schedule.rate(torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64), 1.0).tolist()
    if low > 0.01 or high < 0.99:
        raise UserError(
            f"--schedule trained: the mask rates that {filled.plugin} trained with lie between {low:.2g} and"
            f" {high:.2g}, but sampling has to come from 1 to 0; leave it out"
        )
    return schedule
