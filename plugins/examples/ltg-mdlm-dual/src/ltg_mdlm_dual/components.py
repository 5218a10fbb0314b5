"""The components of the dual objective: causal rows, the loss of both kinds of rows, and next-token masking.

Shapes are suffixes: B rows, T tokens per row, N supervised positions, R rows of the global batch, K = 2 loss groups.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from ltg_mdlm.api import (
    IGNORE,
    Batch,
    Corrupted,
    MaskingStrategy,
    Mode,
    Noise,
    Objective,
    RowMode,
    Step,
    Supervised,
)


def causal_rows(share: float, first_row: int, rows: int) -> int:
    """Number of causal rows of a step; after any number of steps, their sum is exactly floor(share * rows so far).

    `first_row` is the number of rows in earlier steps.  `share` is interpreted as the decimal number that it prints as.
    """
    exact = Fraction(str(share))
    return math.floor(exact * (first_row + rows)) - math.floor(exact * first_row)


class ExactShare(RowMode):
    """A share of causal rows that is exact after any number of steps, selected by a permutation of (seed, step)."""

    def __init__(self, share: float) -> None:
        self._share = share
        shares: dict[Mode, float] = {"masked": 1 - share, "causal": share}
        self.modes = frozenset(mode for mode, part in shares.items() if part > 0)

    def causal(self, step: Step, device: torch.device) -> Tensor | None:
        count = causal_rows(self._share, step.first_row, step.rows)
        return step.permutation("row_mode", device) < count if count else None


def causal_share(step: Step, device: torch.device) -> Tensor:
    """float32 scalar: the share of this step's rows that are causal."""
    return torch.zeros((), device=device) if step.causal_R is None else step.causal_R.float().mean()


class DualObjective(Objective):
    """(1 - s) x masked diffusion per maskable token + c s x cross-entropy per predicted token of causal rows.

    s is the share of causal rows in this step.  With it, all rows have equal weight even if some steps have no causal
    row; the average share would give too little weight to rare causal rows.  Each sum is divided by the number of its
    own tokens in the global batch, so that it does not depend on the number of tokens in rows of the other kind.

    The weight of a masked token is |d gamma / dt|^p h as in masked diffusion, with h = d log p_i / d gamma (1 / gamma
    for uniform masking).  Both come from the plugins that provide noise schedule and masking.
    """

    group_names = ("masked", "causal")

    def __init__(self, *, causal_weight: float, derivative_power: float, z_loss: float) -> None:
        self._causal_weight, self._power, self._z_loss = causal_weight, derivative_power, z_loss

    def group(self, supervised: Supervised) -> Tensor:
        return supervised.causal_N.long()

    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        """float32[2]: number of maskable tokens of masked rows, and of predicted tokens of causal rows."""
        causal_B1 = corrupted.causal_B.unsqueeze(1)
        maskable = (batch.maskable_BT & ~causal_B1).sum()
        predicted = ((corrupted.labels_BT != IGNORE) & causal_B1).sum()
        return torch.stack([maskable, predicted]).float()

    def weights(self, supervised: Supervised, step: Step) -> tuple[Tensor, Tensor | None]:
        share = causal_share(step, supervised.label_N.device)
        masked_N = (supervised.slope_N.double() ** self._power * supervised.hazard_N.double()).float()
        weight_N = torch.where(supervised.causal_N, self._causal_weight * share, (1 - share) * masked_N)
        return weight_N, self._z_loss * weight_N if self._z_loss else None


class NextTokenMasking(MaskingStrategy):
    """Masks every token with probability gamma and predicts it one position earlier (MNTP), as in causal rows."""

    kind = "uniform"
    predicts = "next"

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        return noise.rate_B.float().unsqueeze(1).expand(batch.ids_BT.shape)
