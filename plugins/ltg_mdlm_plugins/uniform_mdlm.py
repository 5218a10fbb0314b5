"""The plugin `uniform_mdlm`: masked diffusion with uniform masking (MDLM, Sahoo et al. 2024, arXiv 2406.07524).

It provides a component for every slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ltg_mdlm.api import (
    Batch,
    Field,
    MaskingStrategy,
    Noise,
    NoiseSchedule,
    Plugin,
    PluginOptions,
    RowMode,
    RunConfig,
    RunContext,
    Step,
    TimeConditioning,
    hookimpl,
)
from ltg_mdlm_plugins.conditioning import MaskRate, NoConditioning, RateSource, Sigma
from ltg_mdlm_plugins.objectives import DiffusionObjective
from ltg_mdlm_plugins.schedules import (
    BimodalGaussian,
    Cosine,
    CosineSquared,
    Derivative,
    Gaussian,
    Linear,
    Modes,
    Tails,
)

ScheduleName = Literal["linear", "cosine", "cosine_squared", "gaussian", "bimodal_gaussian"]
MODE_OPTIONS = tuple(field.name for field in fields(Modes))
"""Options of the bimodal schedule; their defaults are those of `Modes`."""


class Options(PluginOptions):
    """Schedule, weighting and conditioning."""

    schedule: ScheduleName = Field("cosine", description="distribution of mask rates over rows")
    derivative_power: float = Field(
        1.0, ge=0, le=100, description="exponent of |d gamma / dt| in the row weight; only 1 gives a likelihood bound"
    )
    conditioning: Literal["mask_rate", "sigma", "none"] = Field(
        "mask_rate", description="value that conditions the model; none: a model without AdaLN"
    )
    conditioning_rate: RateSource = Field(
        "expected",
        description="mask rate of the conditioning: as drawn, realised over maskable tokens, or over all positions",
    )
    gaussian_mean: float = Field(0.2, ge=0, le=1, description="gaussian: mean mask rate before truncation")
    gaussian_std: float = Field(0.12, ge=1e-3, le=10, description="gaussian: standard deviation before truncation")
    tails: Tails = Field(
        "truncate",
        description="gaussian, bimodal_gaussian: truncate the distribution to (0, 1), or clamp draws (published)",
    )
    derivative: Derivative = Field(
        "component",
        description="bimodal_gaussian: slope of the drawn mode's quantile function (published), or of the mixture's",
    )
    left_weight: float = Field(
        Modes.left_weight, gt=0, lt=1, description="bimodal_gaussian: share of rows in the left mode"
    )
    left_mean: float = Field(Modes.left_mean, ge=0, le=1, description="bimodal_gaussian: mean of the left mode")
    left_std: float = Field(
        Modes.left_std, ge=1e-3, le=10, description="bimodal_gaussian: standard deviation of the left mode"
    )
    right_start: float = Field(
        Modes.right_start, ge=0, le=1, description="bimodal_gaussian: mean of the right mode at the start"
    )
    right_end: float = Field(
        Modes.right_end, ge=0, le=1, description="bimodal_gaussian: mean that the right mode approaches"
    )
    right_growth: float = Field(
        Modes.right_growth, ge=0, le=10**6, description="bimodal_gaussian: exponential rate of the approach"
    )
    right_std: float = Field(
        Modes.right_std, ge=1e-3, le=10, description="bimodal_gaussian: standard deviation of the right mode"
    )

    slot_of_option: ClassVar[Mapping[str, str]] = {
        "derivative_power": "objective",
        "conditioning": "time_conditioning",
        "conditioning_rate": "time_conditioning",
    } | dict.fromkeys(
        ("schedule", "gaussian_mean", "gaussian_std", "tails", "derivative", *MODE_OPTIONS), "noise_schedule"
    )

    def modes(self) -> Modes:
        """The two modes of the bimodal schedule."""
        return Modes(**self.model_dump(include=set(MODE_OPTIONS)))


SCHEDULES: dict[ScheduleName, Callable[[Options], NoiseSchedule]] = {
    "linear": lambda options: Linear(),
    "cosine": lambda options: Cosine(),
    "cosine_squared": lambda options: CosineSquared(),
    "gaussian": lambda options: Gaussian(options.gaussian_mean, options.gaussian_std, options.tails),
    "bimodal_gaussian": lambda options: BimodalGaussian(options.modes(), options.tails, options.derivative),
}


def options_without_effect(options: Options) -> list[str]:
    """Names of options that differ from their defaults, but belong to another schedule."""
    gaussian = {"gaussian_mean", "gaussian_std", "tails"}
    bimodal = {*MODE_OPTIONS, "derivative", "tails"}
    used = {"gaussian": gaussian, "bimodal_gaussian": bimodal}.get(options.schedule, set())
    changed = {name for name, field in Options.model_fields.items() if getattr(options, name) != field.default}
    return sorted(changed & (gaussian | bimodal) - used)


class NoCausalRows(RowMode):
    """All rows are masked rows."""

    modes = frozenset({"masked"})

    def causal(self, step: Step, device: torch.device) -> None:
        return None


class UniformMasking(MaskingStrategy):
    """Masks every maskable token independently with probability gamma."""

    kind = "uniform"

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        return noise.rate_B.float().unsqueeze(1).expand(batch.ids_BT.shape)


BIBTEX = r"""@inproceedings{sahoo2024mdlm,
  author = {Subham Sekhar Sahoo and Marianne Arriola and Yair Schiff and Aaron Gokaslan and Edgar Marroquin and
            Justin T. Chiu and Alexander Rush and Volodymyr Kuleshov},
  title = {Simple and Effective Masked Diffusion Language Models},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2024},
  eprint = {2406.07524},
  archiveprefix = {arXiv}
}"""


class UniformMDLM(Plugin[Options]):
    """Masked diffusion with uniform masking.  Components that no other selected plugin provides come from here."""

    api_version = 2
    options_model = Options
    bibtex = BIBTEX

    @hookimpl
    def ltg_mdlm_check_config(self, config: RunConfig) -> list[str]:
        schedule = self.options.schedule
        return [f"{name} has no effect with schedule {schedule}" for name in options_without_effect(self.options)]

    @hookimpl
    def ltg_mdlm_row_mode(self) -> RowMode:
        return NoCausalRows()

    @hookimpl
    def ltg_mdlm_noise_schedule(self) -> NoiseSchedule:
        return SCHEDULES[self.options.schedule](self.options)

    @hookimpl
    def ltg_mdlm_masking(self, ctx: RunContext) -> MaskingStrategy:
        return UniformMasking(ctx.mask_id)

    @hookimpl
    def ltg_mdlm_objective(self) -> DiffusionObjective:
        return DiffusionObjective(self.options.derivative_power)

    @hookimpl
    def ltg_mdlm_time_conditioning(self) -> TimeConditioning:
        if self.options.conditioning == "none":
            return NoConditioning()
        return {"mask_rate": MaskRate, "sigma": Sigma}[self.options.conditioning](self.options.conditioning_rate)
