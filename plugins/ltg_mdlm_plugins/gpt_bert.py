"""The plugin `gpt_bert`: masked and causal rows in every global batch (Charpentier and Samuel 2024, arXiv 2410.24159).

It provides row mode, noise schedule, masking, objective, and no time conditioning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from pydantic import model_validator
from torch import Tensor

from ltg_mdlm.api import (
    IGNORE,
    Batch,
    Corrupted,
    Field,
    MaskingStrategy,
    Mode,
    NoiseSchedule,
    Objective,
    Plugin,
    PluginOptions,
    RowMode,
    RunContext,
    Step,
    Supervised,
    TimeConditioning,
    hookimpl,
)
from ltg_mdlm_plugins.conditioning import NoConditioning
from ltg_mdlm_plugins.spans import MaskHistory, SpanMasking


class Options(PluginOptions):
    """The published recipe; 15/16 of the rows are masked."""

    causal_share: float = Field(0.0625, ge=0, le=1, description="share of causal rows")
    causal_weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weight of the causal mean in the loss; the masked mean has the rest; null: causal_share",
    )
    mask_rate_start: float = Field(0.3, gt=0, le=1, description="mask rate at the start of training")
    mask_rate_end: float = Field(0.15, gt=0, le=1, description="mask rate at the end; linear in between")
    max_span: int = Field(3, ge=1, le=2**20, description="maximum span length; lengths are uniform over 1 .. max_span")
    random_share: float = Field(0.1, ge=0, le=1, description="share of selected spans replaced by random tokens")
    keep_share: float = Field(0.1, ge=0, le=1, description="share of selected spans left unchanged")
    balance: bool = Field(
        True, description="prefer tokens that were masked less often; one byte per corpus token on every device"
    )
    z_loss: float = Field(1e-4, ge=0, le=1000, description="weight of the squared log-normaliser")

    @model_validator(mode="after")
    def _shares_fit(self) -> Options:
        if self.random_share + self.keep_share > 1:
            raise ValueError("random_share and keep_share add up to more than 1")
        return self


def causal_rows(causal_share: float, first_row: int, rows: int) -> int:
    """Number of causal rows of a step; after any number of steps, their sum is exactly floor(share * rows so far)."""
    share = Fraction(str(causal_share))
    return math.floor(share * (first_row + rows)) - math.floor(share * first_row)


def share_of_steps(row_share: float, rows: int) -> float:
    """Share of steps that contain a row of a kind, if `row_share` of all rows are of that kind (see `causal_rows`).

    It is 1 if no rows are of that kind, so that it can be a divisor.
    """
    return min(1.0, row_share * rows) or 1.0


class CausalShare(RowMode):
    """A fixed share of causal rows, selected by a permutation that is a function of (seed, step)."""

    def __init__(self, share: float) -> None:
        self._share = share
        shares: Mapping[Mode, float] = {"masked": 1 - share, "causal": share}
        self.modes = frozenset(mode for mode, part in shares.items() if part)

    def causal(self, step: Step, device: torch.device) -> Tensor | None:
        count = causal_rows(self._share, step.first_row, step.rows)
        if count == 0:
            return None
        return step.permutation("row_mode", device) < count


class DecliningRate(NoiseSchedule):
    """One mask rate for all rows, linear in progress."""

    full_support = False

    def __init__(self, start: float, end: float) -> None:
        self._start, self._end = start, end

    def rate(self, t: Tensor, progress: float) -> Tensor:
        return torch.full_like(t, self._start + (self._end - self._start) * progress)

    def slope(self, t: Tensor, progress: float) -> Tensor:
        """1: a single rate has no density; row weights depend only on the rate."""
        return torch.ones_like(t)


class HybridObjective(Objective):
    """(1 - c) x mean cross-entropy of masked tokens + c x mean cross-entropy of causal rows; z-loss likewise.

    Both means are over the global batch.  In a sum over tokens, causal rows, which predict every token, would have
    several times their share.  If global batches are so small that some have no row of one kind (fewer than 16 rows at
    a share of 1/16), the mean of this kind has a larger weight in the others, so that it is c on average over steps.
    """

    group_names = ("masked", "causal")

    def __init__(self, causal_weight: float, causal_share: float, z_loss: float) -> None:
        self._causal_weight, self._causal_share, self._z_loss = causal_weight, causal_share, z_loss

    def group(self, supervised: Supervised) -> Tensor:
        return supervised.causal_N.long()

    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        supervised_B = (corrupted.labels_BT != IGNORE).sum(1)
        causal = (supervised_B * corrupted.causal_B).sum()
        return torch.stack([supervised_B.sum() - causal, causal]).float()

    def weights(self, supervised: Supervised, step: Step) -> tuple[Tensor, Tensor | None]:
        masked = (1 - self._causal_weight) / share_of_steps(1 - self._causal_share, step.rows)
        causal = self._causal_weight / share_of_steps(self._causal_share, step.rows)
        weight_N = torch.where(supervised.causal_N, causal, masked)
        return weight_N, self._z_loss * weight_N if self._z_loss else None


BIBTEX = r"""@misc{charpentier2024gptbert,
  author = {Lucas Georges Gabriel Charpentier and David Samuel},
  title = {{GPT} or {BERT}: why not both?},
  year = {2024},
  eprint = {2410.24159},
  archiveprefix = {arXiv}
}"""


class GPTBert(Plugin[Options]):
    """GPT-BERT: span masking, next-token prediction in both modes, no time conditioning."""

    api_version = 2
    options_model = Options
    bibtex = BIBTEX

    @hookimpl
    def ltg_mdlm_row_mode(self) -> RowMode:
        return CausalShare(self.options.causal_share)

    @hookimpl
    def ltg_mdlm_noise_schedule(self) -> NoiseSchedule:
        return DecliningRate(self.options.mask_rate_start, self.options.mask_rate_end)

    @hookimpl
    def ltg_mdlm_masking(self, ctx: RunContext) -> MaskingStrategy:
        return SpanMasking(
            ctx,
            max_span=self.options.max_span,
            random_share=self.options.random_share,
            keep_share=self.options.keep_share,
            history=MaskHistory(ctx) if self.options.balance else None,
        )

    @hookimpl
    def ltg_mdlm_objective(self) -> Objective:
        share, weight = self.options.causal_share, self.options.causal_weight
        return HybridObjective(share if weight is None else weight, share, self.options.z_loss)

    @hookimpl
    def ltg_mdlm_time_conditioning(self) -> TimeConditioning:
        return NoConditioning()
