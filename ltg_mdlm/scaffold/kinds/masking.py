"""my_plugin: long tokens are masked more often, at an unchanged mean rate per row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltg_mdlm.api import Batch, Field, MaskingStrategy, Noise, Plugin, PluginOptions, RunContext, Step, hookimpl


class Options(PluginOptions):
    """What `--set plugins.my_plugin.OPTION=VALUE` can set."""

    power: float = Field(0.5, ge=0, description="exponent of a token's length; 0 is uniform masking")


def length_weights(tokens_V: Sequence[str], power: float) -> Tensor:
    """float64[V] in (0, 1]: (characters of the token / characters of the longest) ** power."""
    length_V = torch.tensor([max(len(token), 1) for token in tokens_V], dtype=torch.float64)
    return (length_V / length_V.max()) ** power


def scale_to_rate(weight_BT: Tensor, rate_B1: Tensor, maskable_BT: Tensor) -> Tensor:
    """Probabilities that increase with the weights w in [0, 1] and whose mean over maskable tokens is the rate gamma.

    w gamma / mu up to gamma = mu, the mean weight, and 1 - (1 - w) (1 - gamma) / (1 - mu) beyond: never outside [0, 1].
    """
    count_B1 = maskable_BT.sum(1, keepdim=True).clamp(min=1)
    # Clamped for rows without maskable tokens, and where all weights are 1.
    mean_B1 = ((weight_BT * maskable_BT).sum(1, keepdim=True) / count_B1).clamp(min=1e-12)
    below_BT = weight_BT * rate_B1 / mean_B1
    above_BT = 1 - (1 - weight_BT) * (1 - rate_B1) / (1 - mean_B1).clamp(min=1e-12)
    return torch.where(rate_B1 <= mean_B1, below_BT, above_BT)


class LongTokenMasking(MaskingStrategy):
    """Every maskable token of a row is masked independently, with a probability that grows with its length."""

    keeps_rate = True

    def __init__(self, mask_id: int, weight_V: Tensor) -> None:
        super().__init__(mask_id)
        self.weight_V = weight_V

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        """float32[B, T]; its mean over maskable tokens is `noise.rate_B`."""
        weight_BT = self.weight_V[batch.ids_BT]
        return scale_to_rate(weight_BT, noise.rate_B.unsqueeze(1), batch.maskable_BT).float()


class MyPlugin(Plugin[Options]):
    """Long tokens are masked more often, at an unchanged mean rate per row."""

    api_version = 1
    options_model = Options

    @hookimpl
    def ltg_mdlm_masking(self, ctx: RunContext) -> MaskingStrategy:
        """Called once, at start-up: hooks only connect options to components."""
        weight_V = length_weights(ctx.tokens_V, self.options.power)
        return LongTokenMasking(ctx.mask_id, weight_V.to(ctx.device))
