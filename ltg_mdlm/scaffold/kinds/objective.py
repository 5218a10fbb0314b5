"""my_plugin: the weights of masked diffusion, cut off where they would let a few rows rule the gradient."""

from __future__ import annotations

from torch import Tensor

from ltg_mdlm.api import Batch, Corrupted, Field, Objective, Plugin, PluginOptions, Step, Supervised, hookimpl


class Options(PluginOptions):
    """What `--set plugins.my_plugin.OPTION=VALUE` can set."""

    cap: float = Field(10.0, gt=0, description="largest weight of a masked token's cross-entropy")


def capped_weight(slope: Tensor, hazard: Tensor, cap: float) -> Tensor:
    """min(|d gamma / dt| h, cap), with the hazard h = 1 / gamma of uniform masking."""
    return (slope.double() * hazard.double()).clamp(max=cap)


class CappedObjective(Objective):
    """Weighted cross-entropies per token.  Without the cap it is the likelihood bound; with it, it is no bound."""

    def __init__(self, cap: float) -> None:
        self.cap = cap

    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        """float32[1]: tokens that are not padding; the trainer sums them over micro-batches and processes."""
        return (batch.document_BT >= 0).sum().float().unsqueeze(0)

    def weights(self, supervised: Supervised, step: Step) -> tuple[Tensor, None]:
        """float32[N]; tokens of causal rows, which have no noise level, weigh 1."""
        weight_N = capped_weight(supervised.slope_N, supervised.hazard_N, self.cap)
        return weight_N.masked_fill(supervised.causal_N, 1.0).float(), None


class MyPlugin(Plugin[Options]):
    """The weights of masked diffusion, cut off at a largest one."""

    api_version = 1
    options_model = Options

    @hookimpl
    def ltg_mdlm_objective(self) -> Objective:
        """Called once, at start-up: hooks only connect options to components."""
        return CappedObjective(self.options.cap)
