"""How a text is sampled: the sampler, its settings, and the mask rates that a row passes through."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import did_you_mean, load_settings, stored_config
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import run_context
from ltg_mdlm.inference.trained_model import TrainedModel

Sampler = Literal["ancestral", "confidence", "entropy", "block", "autoregressive"]
"""The built-in samplers."""


@dataclass(frozen=True, kw_only=True)
class SamplingRule:
    """The sampler and its settings; docs/generation.md has the formulas.

    Raises UserError for values out of range, and for settings that would have no effect.
    """

    sampler: str = "ancestral"
    """A built-in sampler, or the name of `order`."""
    order: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    """The unmasking order of a plugin, see `plugin_orders`: certainty [N] of positions with the logits [N, V]."""
    steps: int | None = None
    """Number of steps from all masked to nothing masked; None unmasks one token per step."""
    schedule: Literal["linear", "trained"] | None = None
    """Mask rates at the ends of the steps: equally spaced (None, "linear"), or from the noise schedule of the run."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with this total probability (nucleus)."""
    seed: int = 0
    block_length: int | None = None
    """Tokens per block of the sampler "block"; None means 32."""
    eta_cap: float | None = None
    """Remask a token with at most this probability per step (ReMDM-cap)."""
    eta_rescale: float | None = None
    """Remask a token with this share of the largest possible probability (ReMDM-rescale)."""

    def __post_init__(self) -> None:
        if self.order is None and self.sampler not in get_args(Sampler):
            raise UserError(
                f"--sampler {self.sampler}: no such sampler{did_you_mean(self.sampler, get_args(Sampler))}"
                f"\n  samplers: {', '.join(get_args(Sampler))}, and the unmasking orders of plugins (--plugin)"
            )
        if self.order is not None and self.sampler in get_args(Sampler):
            raise UserError(
                f"--sampler {self.sampler} has an order of its own: give the order of a plugin its own name"
            )
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"--temperature {self.temperature}: must be a finite number of at least 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p}: must be a probability above 0 and at most 1")
        for option, number in (("--steps", self.steps), ("--block-length", self.block_length)):
            if number is not None and number < 1:
                raise UserError(f"{option} {number}: must be at least 1")
        for option, eta in (("--eta-cap", self.eta_cap), ("--eta-rescale", self.eta_rescale)):
            if eta is not None and not 0 < eta <= 1:
                raise UserError(f"{option} {eta}: must be a probability above 0 and at most 1")
        if self.temperature == 0 and self.top_p < 1:
            raise UserError("--temperature 0 takes the most likely token, so --top-p has no effect")
        if self.sampler == "autoregressive" and self.steps is not None:
            raise UserError("--sampler autoregressive draws one token per step, so --steps has no effect")
        if self.schedule is not None and self.steps is None:
            raise UserError("--schedule sets the mask rates of the steps: it goes with --steps")
        if self.block_length is not None and self.sampler != "block":
            raise UserError(f"--sampler {self.sampler}: --block-length goes with --sampler block only")
        if self.eta_cap is not None and self.eta_rescale is not None:
            raise UserError("--eta-cap and --eta-rescale are two ways to remask: give one of them")
        if self.remasks and (self.sampler != "ancestral" or self.steps is None):
            raise UserError("--eta-cap and --eta-rescale remask between the steps of --sampler ancestral: give --steps")

    @property
    def remasks(self) -> bool:
        """Whether a token that was drawn may be masked again."""
        return self.eta_cap is not None or self.eta_rescale is not None

    @property
    def is_deterministic(self) -> bool:
        """Whether all samples are equal, whatever the seed."""
        return self.temperature == 0 and self.sampler != "ancestral"

    def to_json(self) -> dict[str, Any]:
        """All settings, as a JSON object; an order of a plugin is known by its name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "order"}


def plugin_orders(plugins: Sequence[str], sets: Sequence[str] = ()) -> dict[str, Callable[[Tensor], Tensor]]:
    """The unmasking orders of plugins by name, for `SamplingRule.order`.

    Args:
        plugins: names of installed plugins.
        sets: options of the plugins, `plugins.NAME.OPTION=VALUE`.

    Raises UserError for a plugin without orders, an order with the name of a built-in sampler, and other settings.
    """
    for text in sets:
        if not text.startswith("plugins."):
            raise UserError(f"--set {text}: only options of plugins (plugins.*) have an effect on an unmasking order")
    settings = load_settings((), sets, plugins)
    orders = orders_of_host(Host(settings.config, settings.sources))
    if not orders:
        raise UserError(f"--plugin {' --plugin '.join(plugins)}: no unmasking orders (ltg_mdlm_unmasking_orders)")
    return orders


def orders_of_host(host: Host) -> dict[str, Callable[[Tensor], Tensor]]:
    """The unmasking orders of the selected plugins.  Raises UserError for the name of a built-in sampler."""
    orders = host.unmasking_orders()
    if taken := orders.keys() & {"auto", *get_args(Sampler)}:
        raise UserError(f"the unmasking order {min(taken)!r} of a plugin has the name of a built-in sampler")
    return orders


class RateSchedule(Protocol):
    """Anything with the method `rate` of `ltg_mdlm.api.NoiseSchedule`."""

    def rate(self, t: Tensor, progress: float) -> Tensor:
        """float64 mask rates gamma(t), increasing in t."""


class EqualSteps:
    """gamma(t) = t: every step unmasks the same number of tokens in expectation."""

    def rate(self, t: Tensor, progress: float) -> Tensor:
        return t


def mask_rates(schedule: RateSchedule, steps: int) -> Tensor:
    """float64[K + 1]: gamma(k / K) for k = 0 .. K, with exactly 0 and 1 at the ends."""
    inside = schedule.rate(torch.arange(1, steps, dtype=torch.float64) / steps, 1.0)
    return torch.cat([torch.zeros(1, dtype=torch.float64), inside, torch.ones(1, dtype=torch.float64)])


def trained_schedule(trained: TrainedModel) -> RateSchedule:
    """The noise schedule that a model was trained with, as it was at the end of training.

    Raises UserError if the schedule is unknown, its plugin is not installed, it has learned state, or its mask rates
    do not reach 0 and 1.
    """
    if "config" not in trained.about:
        raise UserError(f"--schedule trained: {trained.source} does not say how it was trained; leave it out")
    config = stored_config(trained.about["config"], trained.source)
    filled = Host(config).fill("noise_schedule", run_context(config, trained.tokenizer, Ranks.alone()))
    schedule: RateSchedule = filled.component
    if filled.component.state_dict() or filled.component.modules():
        raise UserError(
            f"--schedule trained: that of {filled.plugin} has learned, and its state is not opened; leave it out"
        )
    low, high = schedule.rate(torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64), 1.0).tolist()
    if low > 0.01 or high < 0.99:
        raise UserError(
            f"--schedule trained: the mask rates that {filled.plugin} trained with lie between {low:.2g} and"
            f" {high:.2g}, but sampling needs rates from 1 to 0; leave it out"
        )
    return schedule
