"""Ancestral sampling: the reverse process of masked diffusion (MDLM, arXiv 2406.07524, eq. 7).

Samplers that reveal first what the model is surest of, in the whole text or block by block.

How sure it is, is measured on its distributions, before anything is drawn from them.  An order that depends on nothing
but the tokens that are already there leaves the chain rule intact: with one token per step and an exact denoiser, the
samples follow the joint distribution.  The usual rule (MaskGIT, arXiv 2202.04200; LLaDA, arXiv 2502.09992), which draws
everywhere and keeps the likeliest of the drawn tokens, lowers the temperature unasked (arXiv 2510.04525); at
temperature 0 the two are the same.

Suffixes: B rows, T tokens per row, N positions, V vocabulary, K steps.

Sampling from left to right, by models with causal rows.

When the tokens of ancestral samples are revealed: drawn before anything is generated.

In masked diffusion, whether a token is masked at a mask rate depends on nothing but chance: not on its own value, nor
on its neighbours.  So the whole history of which positions are masked when can be drawn first, and the model asked only
at those steps in which something is revealed; the distribution of the samples is the same as if it had been asked at
every step.  (With infinitely many steps this is the first-hitting sampler, arXiv 2409.02908.)  It holds with remasking,
too, as long as its probabilities do not look at the tokens.

Suffixes: B rows, T tokens per row, K steps, J visits of a row (the steps in which it reveals something).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.random import stream_key, uniform_open
from ltg_mdlm.inference.canvas import Canvas, Template
from ltg_mdlm.inference.sampling_rule import SamplingRule


def sample_ancestral(canvas: Canvas, rates_K: Tensor | None) -> None:
    """Reveal every token at the step that chance gives it, drawn from what the model says then.

    `rates_K`: mask rates at the ends of the steps, None for one token per step.
    """
    rule, gap_T = canvas.setting.rule, canvas.gap_BT[0]
    if rule.remasks:
        assert rates_K is not None
        visits = remasking_visits(gap_T, canvas.sample_B, rates_K, rule)
    else:
        visits = ancestral_visits(gap_T, canvas.sample_B, rates_K, rule.seed)
    for visit in range(len(visits.rate_JB)):
        if rule.remasks:
            canvas.hide(visits.hidden_JBT[visit])
        chosen_BT = visits.reveal_JBT[visit] & canvas.hidden_BT  # less the end of a text, and what lies behind it
        row_R = chosen_BT.any(1).nonzero().squeeze(1)
        if len(row_R):
            look = canvas.look(row_R, visits.rate_JB[visit] * canvas.share_drawn_B)
            look.fill(chosen_BT, visit)


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


def sample_from_left_to_right(canvas: Canvas, template: Template) -> None:
    """Draw every token given those before it; a text that has ended costs nothing more."""
    zero_B = torch.zeros(len(canvas.sample_B), dtype=torch.float64, device=canvas.sample_B.device)
    for column in template.gaps:
        row_R = canvas.hidden_BT[:, column].nonzero().squeeze(1)
        if len(row_R):
            chosen_BT = torch.zeros_like(canvas.hidden_BT)
            chosen_BT[row_R, column] = True
            canvas.look(row_R, zero_B, width=column).fill(chosen_BT, column)


@dataclass(frozen=True)
class Visits:
    """The steps of each row that reveal something, in their order; rows with fewer have empty ones at the end."""

    hidden_JBT: Tensor
    """bool: masked in the row that the model reads"""
    reveal_JBT: Tensor
    """bool: drawn from what it says"""
    rate_JB: Tensor
    """float64: gamma at the beginning of the step"""


def ancestral_visits(gap_T: Tensor, sample_B: Tensor, rates_K: Tensor | None, seed: int) -> Visits:
    """Each token masked at rate s is revealed on the way to rate t < s with probability (s - t) / s.

    That is: a token with the uniform number u is masked as long as u < gamma.  `rates_K` None is the limit of
    infinitely many steps, in which every token has a step of its own.
    """
    u_BT = _uniforms(stream_key(seed, "reveal"), sample_B, len(gap_T))
    if rates_K is None:
        rate_BT = u_BT
    else:
        rates_K = rates_K.to(u_BT.device)
        rate_BT = rates_K[torch.searchsorted(rates_K, u_BT, right=True).clamp(max=len(rates_K) - 1)]
    rate_BT = rate_BT.masked_fill(~gap_T, -1.0)
    visit_BT = _dense_rank(rate_BT)
    count = int(visit_BT[:, gap_T].max()) + 1
    visit_J11 = torch.arange(count, device=u_BT.device)[:, None, None]
    reveal_JBT = (visit_BT == visit_J11) & gap_T
    return Visits((visit_BT >= visit_J11) & gap_T, reveal_JBT, (reveal_JBT * rate_BT).amax(2))


def _dense_rank(rate_BT: Tensor) -> Tensor:
    """int64[B, T]: 0 for the largest number of a row, 1 for the next one, ..."""
    sorted_BT, order_BT = rate_BT.sort(dim=1, descending=True)
    rank_BT = torch.zeros_like(order_BT)
    rank_BT[:, 1:] = (sorted_BT[:, 1:] < sorted_BT[:, :-1]).cumsum(1)
    return torch.empty_like(order_BT).scatter_(1, order_BT, rank_BT)


def _uniforms(key: tuple[int, int], sample_B: Tensor, columns: int) -> Tensor:
    """float64[B, T] in (0, 1)"""
    place_BT = sample_B[:, None] * 2**16 + torch.arange(columns, device=sample_B.device)
    return uniform_open(key, place_BT.flatten()).view(place_BT.shape)


def remasking_visits(gap_T: Tensor, sample_B: Tensor, rates_K: Tensor, rule: SamplingRule) -> Visits:
    """The visits of a history with remasking; `rates_K` holds the K + 1 ends of the steps."""
    hidden_KBT = remasking_history(gap_T, sample_B, rates_K, rule)
    rate_KB = rates_K[1:].flip(0).to(gap_T.device)[:, None].expand(-1, len(sample_B))
    return _without_idle_steps(Visits(hidden_KBT[:-1], hidden_KBT[:-1] & ~hidden_KBT[1:], rate_KB))


def remasking_history(gap_T: Tensor, sample_B: Tensor, rates_K: Tensor, rule: SamplingRule) -> Tensor:
    """bool[K + 1, B, T]: what is masked before the first step and after each one.

    In the step from rate s to rate t < s, a visible token is masked with probability sigma, and a masked one revealed
    with probability (s - t + (1 - s) sigma) / s, which leaves the share t masked (ReMDM, arXiv 2503.00307, section 3).
    """
    hidden_BT = gap_T.repeat(len(sample_B), 1)
    history = [hidden_BT]
    for step in range(len(rates_K) - 1, 0, -1):
        s, t = float(rates_K[step]), float(rates_K[step - 1])
        sigma = remasking_probability(s, t, rule)
        u_BT = _uniforms(stream_key(rule.seed, "remask", step), sample_B, len(gap_T))
        hidden_BT = torch.where(hidden_BT, u_BT * s >= s - t + (1 - s) * sigma, u_BT < sigma) & gap_T
        history.append(hidden_BT)
    return torch.stack(history)


def remasking_probability(s: float, t: float, rule: SamplingRule) -> float:
    """sigma of the step from mask rate s to t: min(eta_cap, largest) or eta_rescale x largest.

    The largest is min(1, t / (1 - s)): beyond it, more would be masked than revealing can make up for.
    """
    largest = min(1.0, t / (1 - s)) if s < 1 else 1.0
    if rule.eta_cap is not None:
        return min(rule.eta_cap, largest)
    assert rule.eta_rescale is not None
    return rule.eta_rescale * largest


def _without_idle_steps(every: Visits) -> Visits:
    """Leaves out each row's steps that reveal nothing."""
    busy_KB = every.reveal_JBT.any(2)
    order_KB = (~busy_KB).int().argsort(dim=0, stable=True)
    order_JB = order_KB[: int(busy_KB.sum(0).max())]
    index_JBT = order_JB[:, :, None].expand(-1, -1, every.reveal_JBT.shape[2])
    return Visits(
        (every.hidden_JBT & busy_KB[:, :, None]).gather(0, index_JBT),
        every.reveal_JBT.gather(0, index_JBT),
        every.rate_JB.gather(0, order_JB),
    )
