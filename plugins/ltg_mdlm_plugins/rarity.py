"""How rare a token type is: the weights behind frequency-informed masking (arXiv 2509.05056, section 3.1).

Rarities are float64[V], positive for ordinary types and 0 for control tokens, which count as the most frequent of all.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMOOTHING = 1e-8
"""Added to relative frequencies, as published; keeps unseen types finite."""


def rank_rarity(count_V: Tensor, special_V: Tensor) -> Tensor:
    """Frequency rank / V; rank 1 is the most frequent ordinary type, unseen ones come last, ties go by id."""
    order_V = count_V.masked_fill(special_V, torch.iinfo(count_V.dtype).max).argsort(descending=True, stable=True)
    place_V = torch.empty_like(order_V)
    place_V[order_V] = torch.arange(len(order_V), device=order_V.device)
    rank_V = (place_V - special_V.sum() + 1).clamp(min=0)
    return rank_V.double() / len(rank_V)


def inverse_rarity(count_V: Tensor, special_V: Tensor, exponent: float = 1.0) -> Tensor:
    """Relative frequency to the power -exponent."""
    frequency_V = count_V.double() / count_V.sum().clamp(min=1)
    return (frequency_V + SMOOTHING).pow(-exponent).masked_fill(special_V, 0.0)
