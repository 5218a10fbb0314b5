"""The plugin `dual`: autoregressive and masked-diffusion rows together (Samuel and Charpentier 2025, arXiv 2512.14549).

It provides row mode and objective, and with `next_token` also masking.
"""

from __future__ import annotations

from ltg_mdlm.api import Field, MaskingStrategy, Objective, Plugin, PluginOptions, RowMode, RunContext, hookimpl
from ltg_mdlm_dual.components import DualObjective, ExactShare, NextTokenMasking


class Options(PluginOptions):
    """The share of causal rows, and weights in the loss."""

    causal_share: float = Field(0.25, ge=0, le=1, description="share of causal rows, exact after any number of steps")
    causal_weight: float = Field(2.0, ge=0, description="weight of a causal row; a masked row has weight 1")
    derivative_power: float = Field(
        1.0, ge=0, description="exponent of |d gamma / dt| in the weight of a masked row; 1 is the diffusion bound"
    )
    z_loss: float = Field(1e-4, ge=0, description="weight of the squared log-normaliser; 0 disables it")
    next_token: bool = Field(
        False,
        description="provide masking, too: uniform, with masked tokens predicted one position earlier (published);"
        " otherwise the masking plugin determines the position",
    )


BIBTEX = r"""@misc{samuel2025dual,
  author = {David Samuel and Lucas Georges Gabriel Charpentier},
  title = {Dual-objective Language Models: Training Efficiency Without Overfitting},
  year = {2025},
  eprint = {2512.14549},
  archiveprefix = {arXiv}
}"""


class Dual(Plugin[Options]):
    """The dual objective: causal and masked rows in every global batch."""

    api_version = 2
    options_model = Options
    bibtex = BIBTEX

    @hookimpl
    def ltg_mdlm_row_mode(self) -> RowMode:
        return ExactShare(self.options.causal_share)

    @hookimpl
    def ltg_mdlm_objective(self) -> Objective:
        return DualObjective(
            causal_weight=self.options.causal_weight,
            derivative_power=self.options.derivative_power,
            z_loss=self.options.z_loss,
        )

    @hookimpl
    def ltg_mdlm_masking(self, ctx: RunContext) -> MaskingStrategy | None:
        return NextTokenMasking(ctx.mask_id) if self.options.next_token else None
