"""my_plugin: logs how often the model is right on lightly and on heavily masked rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ltg_mdlm.api import Component, Field, Observation, Plugin, PluginOptions, RunContext, Step, hookimpl


class Options(PluginOptions):
    """What `--set plugins.my_plugin.OPTION=VALUE` can set."""

    split: float = Field(0.3, gt=0, lt=1, description="mask rate from which on a row counts as heavily masked")
    memory: float = Field(0.9, ge=0, lt=1, description="weight of the past in the moving average, per step")


class AccuracyByMaskRate(Component):
    """Moving averages over all processes; everything stays on the device until it is logged."""

    def __init__(self, options: Options, device: torch.device, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        self._options, self._sum_over_ranks = options, sum_over_ranks
        # Rows: lightly, heavily masked.  Columns: right answers, answers.
        self._new = torch.zeros(2, 2, device=device)
        self._past = torch.zeros(2, 2, device=device)

    def observe(self, observation: Observation) -> None:
        """Count one micro-batch."""
        supervised = observation.supervised
        heavy_N = supervised.rate_N >= self._options.split
        for i, band_N in enumerate((~heavy_N, heavy_N)):
            counted_N = band_N & ~supervised.causal_N
            self._new[i] += torch.stack([(counted_N & observation.correct_N).sum(), counted_N.sum()])

    def step_end(self, step: Step) -> None:
        """Every process calls this, so that all have the same state."""
        self._past = self._options.memory * self._past + self._sum_over_ranks(self._new)
        self._new = torch.zeros_like(self._new)

    def metrics(self) -> dict[str, Tensor]:
        """Logged as `my_plugin/...`."""
        light, heavy = self._past[:, 0] / self._past[:, 1].clamp(min=1e-9)
        return {"accuracy_light": light, "accuracy_heavy": heavy}

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs to go on as if nothing had happened."""
        return {"past": self._past}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._past = state["past"].to(self._past.device, copy=True)


class MyPlugin(Plugin[Options]):
    """Logs how often the model is right on lightly and on heavily masked rows."""

    api_version = 1
    options_model = Options

    @hookimpl
    def ltg_mdlm_observers(self, ctx: RunContext) -> Iterable[Component]:
        """Called once, at start-up: hooks only connect options to components."""
        return [AccuracyByMaskRate(self.options, ctx.device, ctx.sum_over_ranks)]
