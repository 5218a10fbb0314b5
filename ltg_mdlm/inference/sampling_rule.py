"""How a text is sampled.

The mask rates that a row passes through on its way from all masked to nothing masked.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import stored_config
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import run_context
from ltg_mdlm.inference.trained_model import TrainedModel

Sampler = Literal["ancestral", "confidence", "entropy", "block", "autoregressive"]


Schedule = Literal["linear", "trained"]


@dataclass(frozen=True, kw_only=True)
class SamplingRule:
    """Which tokens are drawn when, and from what; docs/generation.md has the formulas."""

    sampler: Sampler = "ancestral"
    steps: int | None = None
    """Steps from all masked to nothing masked; None: one token per step."""
    schedule: Schedule | None = None
    """Mask rates at the ends of the steps: at equal distances (None, linear), or those of the run's noise schedule."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 0
    block_length: int | None = None
    """Tokens per block of the sampler `block`; None: 32."""
    eta_cap: float | None = None
    """Remask a token with at most this probability per step (ReMDM-cap)."""
    eta_rescale: float | None = None
    """Remask with this share of the largest probability that keeps the mask rates (ReMDM-rescale)."""

    def __post_init__(self) -> None:
        """Raises UserError for values out of range, and for settings that would have no effect."""
        self._refuse_out_of_range()
        self._refuse_idle()

    def _refuse_out_of_range(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature {self.temperature}: give 0 (the likeliest token) or more, but a number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p}: give a probability above 0, at most 1")
        for name, number in (("--steps", self.steps), ("--block-length", self.block_length)):
            if number is not None and number < 1:
                raise UserError(f"{name} {number}: give 1 or more")
        for name, eta in (("--eta-cap", self.eta_cap), ("--eta-rescale", self.eta_rescale)):
            if eta is not None and not 0 < eta <= 1:
                raise UserError(f"{name} {eta}: give a probability above 0, at most 1")

    def _refuse_idle(self) -> None:
        if self.temperature == 0 and self.top_p < 1:
            raise UserError("--temperature 0 takes the likeliest token, so that --top-p has no effect")
        if self.sampler == "autoregressive" and self.steps is not None:
            raise UserError("--sampler autoregressive draws one token per step, so that --steps has no effect")
        if self.schedule is not None and self.steps is None:
            raise UserError("--schedule says how tokens are dealt to steps: it goes with --steps")
        if self.block_length is not None and self.sampler != "block":
            raise UserError(f"--sampler {self.sampler}: --block-length goes with --sampler block only")
        if self.eta_cap is None and self.eta_rescale is None:
            return
        if self.eta_cap is not None and self.eta_rescale is not None:
            raise UserError("--eta-cap and --eta-rescale are two ways to remask: give one of them")
        if self.sampler != "ancestral" or self.steps is None:
            raise UserError("--eta-cap and --eta-rescale remask between the steps of --sampler ancestral: give --steps")

    @property
    def remasks(self) -> bool:
        """Whether a token that was drawn may be hidden again."""
        return self.eta_cap is not None or self.eta_rescale is not None

    @property
    def is_deterministic(self) -> bool:
        """Whether the seed changes nothing."""
        return self.temperature == 0 and self.sampler != "ancestral"

    def to_json(self) -> dict[str, Any]:
        """Its settings, as they were given."""
        return asdict(self)


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
