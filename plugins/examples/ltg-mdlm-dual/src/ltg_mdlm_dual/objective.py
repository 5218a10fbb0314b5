"""The dual objective: autoregressive and masked-diffusion cross-entropies in one sum.

Shapes: B rows, T tokens per row, N supervised positions, K = 2 loss groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltg_mdlm.api import IGNORE, Batch, Corrupted, Objective, Step, Supervised


def causal_share(step: Step, device: torch.device) -> Tensor:
    """float32 scalar: the share of this step's rows that are causal."""
    return torch.zeros((), device=device) if step.causal_R is None else step.causal_R.float().mean()


class DualObjective(Objective):
    """(1 - s) x masked diffusion per maskable token + c s x cross-entropy per causally predicted token.

    s is the share of causal rows in this very step, so that every row counts alike however few of a kind there are:
    one causal row in every fourth step weighs four times what it would with the average share.  Each kind is divided by
    its own tokens of the global batch, so that neither depends on how many tokens the other's rows happen to hold.

    A masked token weighs |d gamma / dt|^p h as in masked diffusion, h = d log p_i / d gamma (1 / gamma for uniform
    masking); both come from whatever schedule and masking fill the other slots.
    """

    group_names = ("masked", "causal")

    def __init__(self, *, causal_weight: float, derivative_power: float, z_loss: float) -> None:
        self._causal_weight, self._power, self._z_loss = causal_weight, derivative_power, z_loss

    def group(self, supervised: Supervised) -> Tensor:
        return supervised.causal_N.long()

    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        """float32[2]: maskable tokens of masked rows, whether masked or not, and predicted tokens of causal rows."""
        causal_B1 = corrupted.causal_B.unsqueeze(1)
        maskable = (batch.maskable_BT & ~causal_B1).sum()
        predicted = ((corrupted.labels_BT != IGNORE) & causal_B1).sum()
        return torch.stack([maskable, predicted]).float()

    def weights(self, supervised: Supervised, step: Step) -> tuple[Tensor, Tensor | None]:
        share = causal_share(step, supervised.label_N.device)
        masked_N = (supervised.slope_N.double() ** self._power * supervised.hazard_N.double()).float()
        weight_N = torch.where(supervised.causal_N, self._causal_weight * share, (1 - share) * masked_N)
        return weight_N, self._z_loss * weight_N if self._z_loss else None
