"""Uniform masking that predicts like a causal model: the token to the right of each position."""

from __future__ import annotations

from torch import Tensor

from ltg_mdlm.api import Batch, MaskingStrategy, Noise, Step


class NextTokenMasking(MaskingStrategy):
    """Masks every token with probability gamma and predicts it one position earlier (MNTP), as causal rows do."""

    kind = "uniform"
    predicts = "next"

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        return noise.rate_B.float().unsqueeze(1).expand(batch.ids_BT.shape)
