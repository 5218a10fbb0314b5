"""my_plugin: mask rates gamma = t ** exponent, a schedule that masks little more often than much."""

from __future__ import annotations

from torch import Tensor

from ltg_mdlm.api import Field, NoiseSchedule, Plugin, PluginOptions, hookimpl


class Options(PluginOptions):
    """What `--set plugins.my_plugin.OPTION=VALUE` can set."""

    exponent: float = Field(2.0, ge=1, le=3, description="of t; 1 is the linear schedule, larger ones mask less")


class PowerSchedule(NoiseSchedule):
    """gamma = t ** a; mean mask rate 1 / (a + 1)."""

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def rate(self, t: Tensor, progress: float) -> Tensor:
        """float64 gamma(t), increasing in t."""
        return t**self.exponent

    def slope(self, t: Tensor, progress: float) -> Tensor:
        """float64 d gamma / dt = a t ** (a - 1)."""
        return self.exponent * t ** (self.exponent - 1)

    def density(self, rate: Tensor, progress: float) -> Tensor:
        """float64 q(gamma) = 1 / slope, as a function of gamma."""
        return rate ** (1 / self.exponent - 1) / self.exponent


class MyPlugin(Plugin[Options]):
    """Mask rates gamma = t ** exponent."""

    api_version = 1
    options_model = Options

    @hookimpl
    def ltg_mdlm_noise_schedule(self) -> NoiseSchedule:
        """Called once, at start-up: hooks only connect options to components."""
        return PowerSchedule(self.options.exponent)
