"""Time conditionings: the value that tells the model the noise level of a row."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ltg_mdlm.api import Corrupted, Noise, TimeConditioning

RateSource = Literal["expected", "realised", "realised_all_positions"]


def mask_rate(corrupted: Corrupted, noise: Noise, source: RateSource) -> Tensor:
    """float32[B]: gamma of each row, or the masked share of its maskable tokens, or of all its positions."""
    if source == "expected":
        return noise.rate_B.float()
    if source == "realised":
        return corrupted.realised_rate_B
    return corrupted.masked_BT.float().mean(1)


class MaskRate(TimeConditioning):
    """gamma, as in frequency-informed masked diffusion (arXiv 2509.05056); 0 for causal rows."""

    def __init__(self, source: RateSource = "expected") -> None:
        self._source: RateSource = source

    def value(self, corrupted: Corrupted, noise: Noise) -> Tensor:
        conditioning_B = self.value_for_rate(mask_rate(corrupted, noise, self._source))
        return conditioning_B.masked_fill(corrupted.causal_B, 0)

    def value_for_rate(self, rate_B: Tensor) -> Tensor:
        return rate_B.float()


class Sigma(MaskRate):
    """sigma = -log(1 - 0.999 gamma), as in MDLM (arXiv 2406.07524); the factor keeps sigma finite."""

    LARGEST_RATE: ClassVar[float] = 0.999

    def value_for_rate(self, rate_B: Tensor) -> Tensor:
        return -torch.log1p(-self.LARGEST_RATE * rate_B.float())


class NoConditioning(TimeConditioning):
    """No conditioning; the model has no parameters for it."""

    active = False

    def value(self, corrupted: Corrupted, noise: Noise) -> None:
        return None

    def value_for_rate(self, rate_B: Tensor) -> None:
        return None
