"""The plugin `amlm`: adaptive masked language modelling (Edman and Fraser 2025, arXiv 2510.20475).

It provides masking, noise schedule, objective, and no time conditioning.  `slots:` assigns a slot to another plugin.
"""

from __future__ import annotations

from ltg_mdlm.api import (
    Field,
    MaskingStrategy,
    NoiseSchedule,
    Objective,
    Plugin,
    PluginOptions,
    RunConfig,
    RunContext,
    TimeConditioning,
    hookimpl,
)
from ltg_mdlm_amlm.masked_lm import DecliningRate, MeanCrossEntropy, NoConditioning
from ltg_mdlm_amlm.masking import AdaptiveMasking


class Options(PluginOptions):
    """The published recipe."""

    mask_rate_start: float = Field(0.4, gt=0, le=1, description="mask rate at the start of training")
    mask_rate_end: float = Field(0.15, gt=0, le=1, description="mask rate at the end; linear in between")
    update_every: int = Field(200, ge=1, description="steps between two updates of the masking weights")
    history: float = Field(0.2, ge=0, lt=1, description="share of the old weight that an update keeps")
    smoothing: float = Field(
        0.5, gt=0, description="added to the correct and incorrect predictions of a type, so that no weight becomes 0"
    )

    def schedule(self) -> DecliningRate:
        """The mask rate over training."""
        return DecliningRate(self.mask_rate_start, self.mask_rate_end)


BIBTEX = r"""@inproceedings{edman2025mask,
  author = {Lukas Edman and Alexander Fraser},
  title = {Mask and You Shall Receive: Optimizing Masked Language Modeling For Pretraining {BabyLMs}},
  booktitle = {Proceedings of the First {BabyLM} Workshop},
  pages = {445--453},
  year = {2025},
  eprint = {2510.20475},
  archiveprefix = {arXiv}
}"""


class AMLM(Plugin[Options]):
    """Adaptive masked language modelling: token types that are predicted poorly are masked more often."""

    api_version = 2
    options_model = Options
    bibtex = BIBTEX

    @hookimpl
    def ltg_mdlm_check_config(self, config: RunConfig) -> list[str]:
        steps, every = config.training.max_steps, self.options.update_every
        if steps is None or steps > every:
            return []
        return [f"update_every is {every}, but training lasts {steps} steps: masking remains uniform"]

    @hookimpl
    def ltg_mdlm_masking(self, ctx: RunContext) -> MaskingStrategy:
        return AdaptiveMasking(
            ctx,
            mask_rate=self.options.schedule().at,
            history=self.options.history,
            smoothing=self.options.smoothing,
            update_every=self.options.update_every,
        )

    @hookimpl
    def ltg_mdlm_noise_schedule(self) -> NoiseSchedule:
        return self.options.schedule()

    @hookimpl
    def ltg_mdlm_objective(self) -> Objective:
        return MeanCrossEntropy()

    @hookimpl
    def ltg_mdlm_time_conditioning(self) -> TimeConditioning:
        return NoConditioning()
