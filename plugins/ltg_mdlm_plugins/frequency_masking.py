"""Frequency-informed masking: rare tokens are masked more often, at an unchanged mean rate.

The formulas are those of arXiv 2509.05056, section 3.1.  Masking weights w in [0, 1] are carried as their complements
1 - w: with the published softening exponent of 0.02 all weights are close to 1, and 1 - w or 1 - mean(w) would cancel.

Shapes: B rows, T tokens per row, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ltg_mdlm.api import Batch, MaskingStrategy, Noise, Step

RowMinimum = Literal["virtual", "row"]
Weighting = Literal["row", "token", "exact"]

_TINY = 1e-300
"""Keeps quotients finite that are not used: 0 / 0 for rows without maskable tokens, and the branch not taken."""


def softened_complement(rarity: Tensor, low: Tensor | float, high: Tensor, power: float) -> Tensor:
    """1 - w for w = ((rarity - low) / (high - low)) ** power; 0 where the range is empty."""
    scaled = ((rarity - low) / (high - low)).clamp(0, 1)
    return -torch.expm1(torch.special.xlogy(power, torch.where(high > low, scaled, 1.0)))


def scale_to_rate(complement: Tensor, mean_complement: Tensor, rate: Tensor) -> Tensor:
    """Masking probabilities with mean `rate`, for weights w = 1 - complement with mean mu = 1 - mean_complement.

    w gamma / mu up to gamma = mu, and 1 - (1 - w) (1 - gamma) / (1 - mu) beyond: in [0, 1], continuous and
    non-decreasing in gamma, 0 at gamma = 0 and 1 at gamma = 1.
    """
    mean = 1 - mean_complement
    below = (1 - complement) * (rate / mean.clamp(min=_TINY))
    above = 1 - complement * ((1 - rate) / mean_complement.clamp(min=_TINY))
    return torch.where(rate <= mean, below, above.clamp(min=0))


def masking_hazard(complement: Tensor, mean_complement: Tensor, rate: Tensor) -> Tensor:
    """d log p / d gamma of the probabilities that `scale_to_rate` returns."""
    probability = scale_to_rate(complement, mean_complement, rate)
    above = complement / mean_complement.clamp(min=_TINY) / probability.clamp(min=_TINY)
    return torch.where(rate <= 1 - mean_complement, 1 / rate, above)


class Weights(NamedTuple):
    """Complements of masking weights, and their mean."""

    complement: Tensor
    """float64[B, T], or [V] when they depend on the type alone"""
    mean: Tensor
    """float64[B, 1], or a scalar"""


def row_weights(rarity_BT: Tensor, counted_BT: Tensor, power: float, minimum: RowMinimum) -> Weights:
    """Weights from the range and mean of each row's counted positions.

    `minimum="row"` (published) subtracts the row's own smallest rarity, which leaves its most frequent type unmasked
    up to gamma = mu; "virtual" subtracts 0, the rarity of a type more frequent than any.
    """
    high_B1 = rarity_BT.masked_fill(~counted_BT, 0).amax(1, keepdim=True)
    low_B1 = rarity_BT.masked_fill(~counted_BT, torch.inf).amin(1, keepdim=True) if minimum == "row" else 0.0
    complement_BT = softened_complement(rarity_BT, low_B1, high_B1, power)
    mean_B1 = (complement_BT * counted_BT).sum(1, keepdim=True) / counted_BT.sum(1, keepdim=True).clamp(min=1)
    return Weights(complement_BT, mean_B1)


def corpus_weights(rarity_V: Tensor, share_V: Tensor, power: float, minimum: RowMinimum) -> Weights:
    """Weights from the range over all ordinary types and the mean over the training tokens; share_V sums to 1."""
    ordinary_V = rarity_V > 0
    low = rarity_V.masked_fill(~ordinary_V, torch.inf).amin() if minimum == "row" else 0.0
    complement_V = softened_complement(rarity_V, low, rarity_V.amax(), power)
    return Weights(complement_V, (complement_V * share_V).sum())


class Exponent:
    """The softening exponent and how it grows over training."""

    def __init__(
        self, power: float, curriculum: Literal["linear", "epochs", "none"], until: float, epochs: int, max_steps: int
    ) -> None:
        self._power, self._curriculum = power, curriculum
        # progress is step / max_steps, so the last step falls short of 1 by one step.
        self._last_progress = until * (1 - 1 / max(max_steps, 2))
        self._last_epoch = max(epochs - 1, 1)

    def __call__(self, step: Step) -> float:
        """The exponent of this step; the full one from `until` (or the last epoch) on."""
        if self._curriculum == "none":
            return self._power
        linear = step.progress / self._last_progress
        share = linear if self._curriculum == "linear" else math.floor(step.epoch) / self._last_epoch
        return self._power * min(share, 1.0)


class RowFrequencyMasking(MaskingStrategy):
    """Weights are normalised within each row, so that every row is masked at its gamma."""

    kind = "other"

    def __init__(
        self,
        mask_id: int,
        rarity_V: Tensor,
        exponent: Exponent,
        *,
        minimum: RowMinimum = "virtual",
        all_positions: bool = False,
        weighting: Weighting = "row",
    ) -> None:
        """`all_positions` (published): range and mean count padding and control tokens, which are never masked."""
        super().__init__(mask_id)
        assert weighting != "exact"
        self._rarity_V, self._exponent, self._minimum = rarity_V, exponent, minimum
        self._all_positions, self._weighting = all_positions, weighting
        self.keeps_rate = not all_positions

    def _weights(self, batch: Batch, step: Step) -> Weights:
        counted_BT = torch.ones_like(batch.maskable_BT) if self._all_positions else batch.maskable_BT
        return row_weights(self._rarity_V[batch.ids_BT], counted_BT, self._exponent(step), self._minimum)

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        """float32[B, T]; its mean over the counted positions of a row is gamma."""
        return scale_to_rate(*self._weights(batch, step), noise.rate_B.unsqueeze(1)).float()

    def hazard(self, batch: Batch, noise: Noise, step: Step) -> tuple[Tensor | None, Tensor | None]:
        if self._weighting == "row":
            return None, None
        return masking_hazard(*self._weights(batch, step), noise.rate_B.unsqueeze(1)), None


class CorpusFrequencyMasking(MaskingStrategy):
    """Weights are normalised over the corpus, so that a token's probability depends on its type and gamma alone.

    A row's mean rate is then gamma only on average over the corpus; in return a likelihood bound is known.
    """

    kind = "by_type"
    keeps_rate = False

    def __init__(
        self,
        mask_id: int,
        rarity_V: Tensor,
        share_V: Tensor,
        exponent: Exponent,
        *,
        minimum: RowMinimum = "virtual",
        weighting: Weighting = "row",
    ) -> None:
        super().__init__(mask_id)
        self._rarity_V, self._share_V, self._exponent = rarity_V, share_V, exponent
        self._minimum, self._weighting = minimum, weighting

    def _weights(self, step: Step) -> Weights:
        return corpus_weights(self._rarity_V, self._share_V, self._exponent(step), self._minimum)

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        """float32[B, T]; its mean over the training corpus is gamma."""
        complement_V, mean = self._weights(step)
        return scale_to_rate(complement_V[batch.ids_BT], mean, noise.rate_B.unsqueeze(1)).float()

    def hazard(self, batch: Batch, noise: Noise, step: Step) -> tuple[Tensor | None, Tensor | None]:
        if self._weighting == "row":
            return None, None
        hazard_BV = masking_hazard(*self._weights(step), noise.rate_B.unsqueeze(1))
        hazard_BT = hazard_BV.gather(1, batch.ids_BT)
        if self._weighting == "token":
            return hazard_BT, None
        # A control token is never hidden, so no masked position ever turns into one.
        return hazard_BT, hazard_BV * (self._rarity_V > 0)
