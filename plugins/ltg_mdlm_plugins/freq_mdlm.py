"""The plugin `freq_mdlm`: frequency-informed masking (Kosmopoulou et al. 2025, arXiv 2509.05056).

It provides the masking.  With `weighting: exact`, it also provides the objective, because only this weighting makes
the loss a likelihood bound.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from torch import Tensor

from ltg_mdlm.api import (
    CorpusStatistics,
    Field,
    MaskingStrategy,
    Plugin,
    PluginOptions,
    RunConfig,
    RunContext,
    UserError,
    hookimpl,
)
from ltg_mdlm_plugins.frequency_masking import (
    CorpusFrequencyMasking,
    Curriculum,
    Exponent,
    RowFrequencyMasking,
    RowMinimum,
    Weighting,
    inverse_rarity,
    rank_rarity,
)
from ltg_mdlm_plugins.objectives import StateDependentBound


class Options(PluginOptions):
    """Masking weights, their curriculum, and the weights of masked tokens in the loss."""

    power: float = Field(0.02, ge=0, le=100, description="softening exponent; 0 is uniform masking")
    curriculum: Curriculum = Field(
        "linear", description="growth of the exponent from 0: in every step, once per epoch (published), or none"
    )
    curriculum_until: float = Field(
        1.0, gt=0, le=1, description="linear: share of training after which the exponent is constant"
    )
    curriculum_epochs: int = Field(10, ge=2, le=10**6, description="epochs: the exponent is reached in this epoch")
    weights: Literal["rank", "inverse", "exponential"] = Field(
        "rank", description="rarity of a token type: frequency rank, 1 / frequency, or 1 / frequency^frequency_scale"
    )
    frequency_scale: float = Field(1.0, gt=0, le=100, description="exponential: the exponent; at 1 it equals inverse")
    row_min: RowMinimum = Field(
        "virtual",
        description="minimum of the min-max scaling: 0, or the smallest rarity in the row (published); the tokens that"
        " have it are then rarely masked",
    )
    statistics: Literal["maskable", "all_positions", "corpus"] = Field(
        "maskable",
        description="tokens that give the range and mean of the weights: maskable tokens of the row, all its positions"
        " (published), or the corpus",
    )
    weighting: Weighting = Field(
        "row",
        description="weight in the loss; row: 1 / mask rate (published); token: the token's hazard; exact: hazard and"
        " compensator, a likelihood bound",
    )

    @model_validator(mode="after")
    def _exact_needs_types(self) -> Options:
        if self.weighting == "exact" and self.statistics != "corpus":
            raise ValueError(
                "weighting: exact needs statistics: corpus, so that masking depends only on the token type"
            )
        if self.weighting == "exact" and self.row_min != "virtual":
            raise ValueError("weighting: exact needs row_min: virtual, so that every token type can be masked")
        return self


BIBTEX = r"""@inproceedings{kosmopoulou2025masked,
  author = {Despoina Kosmopoulou and Efthymios Georgiou and Vaggelis Dorovatas and Georgios Paraskevopoulos and
            Alexandros Potamianos},
  title = {Masked Diffusion Language Models with Frequency-Informed Training},
  booktitle = {Proceedings of the First {BabyLM} Workshop},
  pages = {531--539},
  year = {2025},
  eprint = {2509.05056},
  archiveprefix = {arXiv}
}"""


class FreqMDLM(Plugin[Options]):
    """Frequency-informed masked diffusion."""

    api_version = 2
    options_model = Options
    bibtex = BIBTEX
    rarity_V: Tensor
    share_V: Tensor

    @hookimpl
    def ltg_mdlm_check_config(self, config: RunConfig) -> list[str]:
        """Warns about options without effect and about epochs that differ.

        Raises UserError if `derivative_power` contradicts `weighting: exact`.
        """
        options = self.options
        power = config.plugins.get("uniform_mdlm", {}).get("derivative_power", 1.0)
        if options.weighting == "exact" and power != 1:
            raise UserError(
                f"plugins.uniform_mdlm.derivative_power is {power}, but plugins.freq_mdlm.weighting: exact is the"
                " likelihood bound, which has derivative power 1\n  remove one of the two settings"
            )
        used = {
            "frequency_scale": options.weights == "exponential",
            "curriculum_until": options.curriculum == "linear",
            "curriculum_epochs": options.curriculum == "epochs",
        }
        warnings = [
            f"{name} has no effect with weights {options.weights} and curriculum {options.curriculum}"
            for name, is_used in used.items()
            if not is_used and name in options.changed_options()
        ]
        epochs = config.training.epochs
        if options.curriculum == "epochs" and epochs not in (None, options.curriculum_epochs):
            warnings.append(f"curriculum_epochs is {options.curriculum_epochs}, but training lasts {epochs:g} epochs")
        return warnings

    @hookimpl
    def ltg_mdlm_corpus_statistics(self, stats: CorpusStatistics, ctx: RunContext) -> None:
        count_V = stats.token_count_V.to(ctx.device)
        special_V = ctx.special_V.to(ctx.device)
        self.share_V = count_V.double() / count_V.sum().clamp(min=1)
        if self.options.weights == "rank":
            self.rarity_V = rank_rarity(count_V, special_V)
        else:
            scale = self.options.frequency_scale if self.options.weights == "exponential" else 1.0
            self.rarity_V = inverse_rarity(count_V, special_V, scale)

    @hookimpl
    def ltg_mdlm_masking(self, ctx: RunContext) -> MaskingStrategy:
        options = self.options
        exponent = Exponent(
            options.power, options.curriculum, options.curriculum_until, options.curriculum_epochs, ctx.max_steps
        )
        if options.statistics == "corpus":
            return CorpusFrequencyMasking(
                ctx.mask_id,
                self.rarity_V,
                self.share_V,
                exponent,
                minimum=options.row_min,
                weighting=options.weighting,
            )
        return RowFrequencyMasking(
            ctx.mask_id,
            self.rarity_V,
            exponent,
            minimum=options.row_min,
            all_positions=options.statistics == "all_positions",
            weighting=options.weighting,
        )

    @hookimpl
    def ltg_mdlm_objective(self) -> StateDependentBound | None:
        return StateDependentBound() if self.options.weighting == "exact" else None
