"""Draws from the model's distributions over the vocabulary.

Suffixes: N positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltg_mdlm.generate.rule import SamplingRule
from ltg_mdlm.random import gumbel, stream_key


def draw_tokens(logits_NV: Tensor, rule: SamplingRule, visit: int, place_N: Tensor) -> Tensor:
    """int64[N]: one token from softmax(logits / temperature), cut to the nucleus `top_p` and renormalised.

    By the Gumbel-max trick in float64 (see `ltg_mdlm.random.gumbel`); types with a logit of -inf are never drawn.  The
    noise is a function of (seed, visit, place), whatever else is drawn in the same batch.
    """
    if rule.temperature == 0:
        return logits_NV.argmax(1)
    tempered_NV = _tempered(logits_NV, rule.temperature)
    if rule.top_p < 1:
        tempered_NV = tempered_NV.masked_fill(~nucleus(tempered_NV, rule.top_p), -torch.inf)
    key = stream_key(rule.seed, "tokens", visit)
    return (tempered_NV + gumbel(key, place_N, tempered_NV.shape[1])).argmax(1)


def _tempered(logits_NV: Tensor, temperature: float) -> Tensor:
    """float64[N, V]: the largest is 0, since a temperature next to 0 would make it infinite and its draw undefined."""
    return (logits_NV - logits_NV.amax(1, keepdim=True)).double() / temperature


def nucleus(logits_NV: Tensor, top_p: float) -> Tensor:
    """bool[N, V]: the likeliest types, as few as have at least the probability `top_p` (arXiv 1904.09751)."""
    sorted_NV, order_NV = logits_NV.softmax(1).sort(dim=1, descending=True, stable=True)
    before_NV = sorted_NV.cumsum(1) - sorted_NV
    return torch.zeros_like(logits_NV, dtype=torch.bool).scatter_(1, order_NV, before_NV < top_p)
