"""my_plugin: the model is told gamma ** exponent, which spreads small mask rates out."""

from __future__ import annotations

from torch import Tensor

from ltg_mdlm.api import Corrupted, Field, Noise, Plugin, PluginOptions, TimeConditioning, hookimpl


class Options(PluginOptions):
    """What `--set plugins.my_plugin.OPTION=VALUE` can set."""

    exponent: float = Field(0.5, gt=0, le=1, description="of the mask rate; 1 is the mask rate itself")


class PowerOfRate(TimeConditioning):
    """gamma ** exponent, through the host's embedding; override `embedding` to bring one of your own."""

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def value(self, corrupted: Corrupted, noise: Noise) -> Tensor:
        """float32[B]; 0 for causal rows."""
        return self.value_for_rate(noise.rate_B).masked_fill(corrupted.causal_B, 0)

    def value_for_rate(self, rate_B: Tensor) -> Tensor:
        """float32[B]: what the model is told in evaluation, where the mask rate is given."""
        return rate_B.float() ** self.exponent


class MyPlugin(Plugin[Options]):
    """The model is told a power of the mask rate."""

    api_version = 1
    options_model = Options

    @hookimpl
    def ltg_mdlm_time_conditioning(self) -> TimeConditioning:
        """Called for training, and again whenever a trained model is opened."""
        return PowerOfRate(self.options.exponent)
