"""Samplers that reveal first what the model is surest of, in the whole text or block by block.

How sure it is, is measured on its distributions, before anything is drawn from them.  An order that depends on nothing
but the tokens that are already there leaves the chain rule intact: with one token per step and an exact denoiser, the
samples follow the joint distribution.  The usual rule (MaskGIT, arXiv 2202.04200; LLaDA, arXiv 2502.09992), which draws
everywhere and keeps the likeliest of the drawn tokens, lowers the temperature unasked (arXiv 2510.04525); at
temperature 0 the two are the same.

Suffixes: B rows, T tokens per row, N positions, V vocabulary, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from ltg_mdlm.errors import UserError
from ltg_mdlm.generate.canvas import Canvas
from ltg_mdlm.generate.rule import SamplingRule

BLOCK_LENGTH: Final = 32
Columns = Sequence[int]


def top_probability(logits_NV: Tensor) -> Tensor:
    """[N]: the probability of the likeliest token."""
    return logits_NV.softmax(1).amax(1)


def negative_entropy(logits_NV: Tensor) -> Tensor:
    """[N]: minus the entropy of the distribution, in nats."""
    entropy_N: Tensor = torch.special.entr(logits_NV.softmax(1)).sum(1)
    return -entropy_N


CERTAINTY: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "confidence": top_probability,
    "block": top_probability,
    "entropy": negative_entropy,
}


def sample_ordered(canvas: Canvas, parts: Sequence[tuple[Columns, Tensor]]) -> None:
    """Fill groups of columns one after the other, in each the surest positions first; ties go to the left.

    `parts`: columns, and the mask rates at the ends of the steps in which they are filled.
    """
    visit = 0
    for columns, rates_K in parts:
        within_T = torch.zeros_like(canvas.hidden_BT[0])
        within_T[list(columns)] = True
        for count in counts(len(columns), rates_K):
            _reveal_surest(canvas, within_T, count, visit)
            visit += 1


def counts(columns: int, rates_K: Tensor) -> list[int]:
    """Tokens to reveal in each step that reveals any: floor(gamma x columns) are masked behind a step."""
    masked = [int(rate * columns + 1e-9) for rate in rates_K.flip(0).tolist()]
    return [before - after for before, after in pairwise(masked) if before > after]


def blocks(gaps: Columns, rule: SamplingRule, rates_of: Callable[[int], Tensor]) -> list[tuple[Columns, Tensor]]:
    """The gaps in blocks from left to right, and the mask rates in each: the steps are dealt out to the blocks.

    Raises UserError for fewer steps than blocks.
    """
    size = rule.block_length or BLOCK_LENGTH
    found = [gaps[start : start + size] for start in range(0, len(gaps), size)]
    if rule.steps is None:
        return [(columns, rates_of(len(columns))) for columns in found]
    if rule.steps < len(found):
        raise UserError(f"--steps {rule.steps}: there are {len(found)} blocks of {size} tokens; give a step to each")
    ends = [rule.steps * number // len(found) for number in range(len(found) + 1)]
    return [(columns, rates_of(end - start)) for columns, (start, end) in zip(found, pairwise(ends), strict=True)]


def _reveal_surest(canvas: Canvas, within_T: Tensor, count: int, visit: int) -> None:
    open_BT = canvas.hidden_BT & within_T
    row_R = open_BT.any(1).nonzero().squeeze(1)
    if not len(row_R):
        return
    look = canvas.look(row_R, canvas.share_hidden_B)
    certainty_BT = torch.full(open_BT.shape, -torch.inf, device=open_BT.device)
    certainty_BT[open_BT] = look.each(open_BT, CERTAINTY[canvas.setting.rule.sampler])
    rank_BT = certainty_BT.argsort(dim=1, descending=True, stable=True).argsort(1)
    look.fill(open_BT & (rank_BT < count), visit)
