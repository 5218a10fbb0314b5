"""Frequency-informed masking (arXiv 2509.05056, section 3.1): rare tokens are masked more often, at the same mean rate.

The rarity of a token type gives its masking weight w in [0, 1], and weights are scaled to probabilities whose mean is
the mask rate.  The functions compute the complements 1 - w: with the published softening exponent of 0.02 all weights
are close to 1, and 1 - w or 1 - mean(w) would cancel.

Rarities are positive for ordinary types and 0 for control tokens, which count as the most frequent of all.

Shapes are suffixes: B rows, T tokens per row, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ltg_mdlm.api import Batch, MaskingStrategy, Noise, Step

RowMinimum = Literal["virtual", "row"]
Curriculum = Literal["linear", "epochs", "none"]
Weighting = Literal["row", "token", "exact"]

SMOOTHING = 1e-8
"""Added to relative frequencies, as published; keeps types that do not occur finite."""
_TINY = 1e-300
"""Keeps unused quotients finite: 0 / 0 for rows without maskable tokens, and the branch that `where` discards."""


def rank_rarity(count_V: Tensor, special_V: Tensor) -> Tensor:
    """float64[V]: frequency rank / V, 0 for control tokens.

    Rank 1 is the most frequent ordinary type.  Types that do not occur come last, and ties are ordered by id.
    """
    order_V = count_V.masked_fill(special_V, torch.iinfo(count_V.dtype).max).argsort(descending=True, stable=True)
    position_V = torch.empty_like(order_V)
    position_V[order_V] = torch.arange(len(order_V), device=order_V.device)
    rank_V = (position_V - special_V.sum() + 1).clamp(min=0)
    return rank_V.double() / len(rank_V)


def inverse_rarity(count_V: Tensor, special_V: Tensor, exponent: float = 1.0) -> Tensor:
    """float64[V]: relative frequency to the power -exponent, 0 for control tokens."""
    frequency_V = count_V.double() / count_V.sum().clamp(min=1)
    return (frequency_V + SMOOTHING).pow(-exponent).masked_fill(special_V, 0.0)


def softened_complement(rarity: Tensor, low: Tensor | float, high: Tensor, power: float) -> Tensor:
    """1 - w for w = ((rarity - low) / (high - low)) ** power; 0 if high = low."""
    scaled = ((rarity - low) / (high - low)).clamp(0, 1)
    return -torch.expm1(torch.special.xlogy(power, torch.where(high > low, scaled, 1.0)))


def scale_to_rate(complement: Tensor, mean_complement: Tensor, rate: Tensor) -> Tensor:
    """Masking probabilities with mean gamma = `rate` for weights w = 1 - complement of mean mu = 1 - mean_complement.

    w gamma / mu up to gamma = mu, and 1 - (1 - w) (1 - gamma) / (1 - mu) beyond.  They are in [0, 1], continuous and
    non-decreasing in gamma, 0 at gamma = 0 and 1 at gamma = 1.
    """
    mean = 1 - mean_complement
    below = (1 - complement) * (rate / mean.clamp(min=_TINY))
    above = 1 - complement * ((1 - rate) / mean_complement.clamp(min=_TINY))
    return torch.where(rate <= mean, below, above.clamp(min=0))


def masking_hazard(complement: Tensor, mean_complement: Tensor, rate: Tensor) -> Tensor:
    """d log p / d gamma of the probabilities p that `scale_to_rate` returns."""
    probability = scale_to_rate(complement, mean_complement, rate)
    above = complement / mean_complement.clamp(min=_TINY) / probability.clamp(min=_TINY)
    return torch.where(rate <= 1 - mean_complement, 1 / rate, above)


class Weights(NamedTuple):
    """Complements of masking weights and their mean."""

    complement: Tensor
    """float64[B, T], or [V] if weights depend only on the type"""
    mean: Tensor
    """float64[B, 1], or a scalar"""


def row_weights(rarity_BT: Tensor, counted_BT: Tensor, power: float, minimum: RowMinimum) -> Weights:
    """Weights from the range and the mean of each row's counted positions.

    `minimum="row"` (published) subtracts the smallest rarity of the row, so its most frequent type is not masked up to
    gamma = mu.  "virtual" subtracts 0, the rarity of a type that would be more frequent than all others.
    """
    high_B1 = rarity_BT.masked_fill(~counted_BT, 0).amax(1, keepdim=True)
    low_B1 = rarity_BT.masked_fill(~counted_BT, torch.inf).amin(1, keepdim=True) if minimum == "row" else 0.0
    complement_BT = softened_complement(rarity_BT, low_B1, high_B1, power)
    mean_B1 = (complement_BT * counted_BT).sum(1, keepdim=True) / counted_BT.sum(1, keepdim=True).clamp(min=1)
    return Weights(complement_BT, mean_B1)


def corpus_weights(rarity_V: Tensor, share_V: Tensor, power: float, minimum: RowMinimum) -> Weights:
    """Weights from the range over all ordinary types and the mean over the corpus; `share_V` sums to 1."""
    ordinary_V = rarity_V > 0
    low = rarity_V.masked_fill(~ordinary_V, torch.inf).amin() if minimum == "row" else 0.0
    complement_V = softened_complement(rarity_V, low, rarity_V.amax(), power)
    return Weights(complement_V, (complement_V * share_V).sum())


@dataclass(frozen=True)
class Exponent:
    """The softening exponent as a function of the step: it grows from 0 to `power`, and then stays there.

    The curriculum is "linear" up to the share `until` of training, "epochs" (published, one increment per epoch, the
    last one in epoch `epochs`) or "none" (constant).
    """

    power: float
    curriculum: Curriculum
    until: float
    epochs: int
    max_steps: int

    def __call__(self, step: Step) -> float:
        """The exponent of this step."""
        if self.curriculum == "none":
            return self.power
        if self.curriculum == "epochs":
            share = math.floor(step.epoch) / max(self.epochs - 1, 1)
        else:
            # progress is step / max_steps; in the last step it is smaller than 1 by 1 / max_steps
            share = step.progress / (self.until * (1 - 1 / max(self.max_steps, 2)))
        return self.power * min(share, 1.0)


class RowFrequencyMasking(MaskingStrategy):
    """Normalises weights within each row, so that every row is masked at its own rate gamma."""

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
        """`all_positions` (published): range and mean include padding and control tokens, which are never masked."""
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
    """Normalises weights over the corpus, so that a token's probability depends only on its type and gamma.

    The mean rate of a row is gamma only on average over the corpus.  In return, a likelihood bound exists
    (`StateDependentBound`).
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
        """float32[B, T]; its mean over the corpus is gamma."""
        complement_V, mean = self._weights(step)
        return scale_to_rate(complement_V[batch.ids_BT], mean, noise.rate_B.unsqueeze(1)).float()

    def hazard(self, batch: Batch, noise: Noise, step: Step) -> tuple[Tensor | None, Tensor | None]:
        if self._weighting == "row":
            return None, None
        hazard_BV = masking_hazard(*self._weights(step), noise.rate_B.unsqueeze(1))
        hazard_BT = hazard_BV.gather(1, batch.ids_BT)
        if self._weighting == "token":
            return hazard_BT, None
        # control tokens are never masked, so no masked position is ever unmasked as one
        return hazard_BT, hazard_BV * (self._rarity_V > 0)
