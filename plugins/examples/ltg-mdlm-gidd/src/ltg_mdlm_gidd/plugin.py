"""The plugin `gidd`: masks and random tokens as one diffusion process."""

from __future__ import annotations

from ltg_mdlm.api import (
    Field,
    MaskingStrategy,
    NoiseSchedule,
    Objective,
    Plugin,
    PluginOptions,
    RunContext,
    TimeConditioning,
    hookimpl,
)
from ltg_mdlm_gidd.diffusion import Interpolating, InterpolatingBound, Levels, Process, Unconditioned


class Options(PluginOptions):
    """The process of the paper, with a tenth of random tokens."""

    uniform_share: float = Field(0.1, ge=0, lt=1, description="share of random tokens at noise level 1/2")
    exponent: float = Field(1.0, gt=0, le=2, description="how random tokens vanish at the ends: (s (1 - s))^(e / 2)")
    last: float = Field(1 - 1e-3, gt=0.5, lt=1, description="largest noise level; the rest of the bound is a constant")


BIBTEX = r"""@misc{vonrutte2025generalized,
  author = {von R{\"u}tte, Dimitri and Janis Fluri and Yuhui Ding and Antonio Orvieto and Bernhard Sch{\"o}lkopf and
            Thomas Hofmann},
  title = {Generalized Interpolating Discrete Diffusion},
  year = {2025},
  eprint = {2503.04482},
  archiveprefix = {arXiv}
}"""


class GIDD(Plugin[Options]):
    """Generalized interpolating discrete diffusion with mask and uniform noise (arXiv 2503.04482)."""

    api_version = 2
    options_model = Options
    bibtex = BIBTEX

    def process(self, ctx: RunContext) -> Process:
        """The diffusion process for the run's vocabulary."""
        ordinary_V = (~ctx.special_V).float()
        return Process(**self.options.model_dump(), noise_V=ordinary_V / ordinary_V.sum(), mask_id=ctx.mask_id)

    @hookimpl
    def ltg_mdlm_noise_schedule(self) -> NoiseSchedule:
        return Levels(self.options.last)

    @hookimpl
    def ltg_mdlm_masking(self, ctx: RunContext) -> MaskingStrategy:
        return Interpolating(ctx, self.process(ctx))

    @hookimpl
    def ltg_mdlm_objective(self, ctx: RunContext) -> Objective:
        assert ctx.statistics is not None
        count_V = (ctx.statistics.token_count_V.to(ctx.device).double() + 1) * ~ctx.special_V
        return InterpolatingBound(self.process(ctx), self.process(ctx).end(count_V / count_V.sum()))

    @hookimpl
    def ltg_mdlm_time_conditioning(self) -> TimeConditioning:
        return Unconditioned()
