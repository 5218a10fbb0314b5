"""The samplers: in which order the masked tokens of a canvas are unmasked.

Shapes: B rows, T tokens per row, N positions, V vocabulary, R rows of a forward pass, K steps from all masked to
nothing masked, J forward passes of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.random import stream_key, uniform_open
from ltg_mdlm.inference.canvas import MAX_COLUMNS, Canvas
from ltg_mdlm.inference.sampling_rule import SamplingRule

BLOCK_LENGTH: Final = 32
"""Tokens per block of the sampler `block` by default."""

Columns = Sequence[int]


class Part(NamedTuple):
    """Columns of a row that are filled before those of the next part."""

    columns: Columns
    """The masked tokens."""
    rates_K: Tensor | None
    """float64[K + 1] mask rates at the ends of the steps, from 0 to 1; None is the limit of infinitely many steps."""
    block: slice = slice(1, None)
    """Columns whose masked share the model is conditioned on; it is run up to their end."""


def sample_ancestral(canvas: Canvas, parts: Sequence[Part]) -> None:
    """Follow the reverse process of masked diffusion (MDLM, arXiv 2406.07524, eq. 7).

    In the step from mask rate s to t < s, a masked token is unmasked with probability (s - t) / s and drawn from the
    model's distribution.  With `eta_cap` or `eta_rescale`, tokens are masked again as in ReMDM (arXiv 2503.00307).

    In both processes, the positions that are masked at a step depend neither on the tokens nor on the model.  All steps
    can therefore be drawn in advance, and the model is called only in steps that unmask a token.  The distribution of
    the samples is the same.  Without remasking and with infinitely many steps this is the first-hitting sampler (arXiv
    2409.02908).

    Args:
        canvas: the rows to fill.
        parts: the whole row, or its blocks, each with a process of its own.
    """
    rule = canvas.setting.rule
    for part in parts:
        gap_T = torch.zeros_like(canvas.masked_BT[0])
        gap_T[list(part.columns)] = True
        if rule.remasks:
            assert part.rates_K is not None
            plan = plan_remasking(gap_T, canvas.sample_B, part.rates_K, rule)
        else:
            plan = plan_ancestral(gap_T, canvas.sample_B, part.rates_K, rule.seed)
        for number in range(len(plan.rate_JB)):
            if rule.remasks:
                canvas.remask(plan.masked_JBT[number])
            chosen_BT = plan.unmask_JBT[number] & canvas.masked_BT  # not behind the end of a text
            row_R = chosen_BT.any(1).nonzero().squeeze(1)
            if len(row_R):
                rate_B = plan.rate_JB[number] * canvas.gap_share(part.block)
                canvas.forward(row_R, rate_B, part.block.stop).draw(chosen_BT, number)


def sample_ordered(canvas: Canvas, parts: Sequence[Part]) -> None:
    """Unmask the positions first at which the model is most certain, in one part of the columns after the other.

    Certainty is computed from the model's distributions before a token is drawn.  An order that depends only on tokens
    that are already unmasked keeps the chain rule intact: with one token per step and an exact denoiser, the samples
    follow the joint distribution.  The usual rule (MaskGIT, arXiv 2202.04200; LLaDA, arXiv 2502.09992) draws a token at
    every position and keeps the draws with the largest probability, which lowers the temperature implicitly (arXiv
    2510.04525).  At temperature 0 both rules are the same.

    Args:
        canvas: the rows to fill.
        parts: the parts of the row, with the mask rates of the steps that fill them.
    """
    certainty = CERTAINTY[canvas.setting.rule.sampler]
    step = 0
    for part in parts:
        assert part.rates_K is not None
        part_T = torch.zeros_like(canvas.masked_BT[0])
        part_T[list(part.columns)] = True
        for count in unmask_counts(len(part.columns), part.rates_K):
            candidate_BT = canvas.masked_BT & part_T
            row_R = candidate_BT.any(1).nonzero().squeeze(1)
            if len(row_R):
                prediction = canvas.forward(row_R, canvas.masked_share(part.block), part.block.stop)
                certainty_BT = torch.full(candidate_BT.shape, -torch.inf, device=candidate_BT.device)
                certainty_BT[candidate_BT] = prediction.map_logits(certainty, candidate_BT)
                # Stable, so that ties go to the left.
                rank_BT = certainty_BT.argsort(dim=1, descending=True, stable=True).argsort(1)
                prediction.draw(candidate_BT & (rank_BT < count), step)
            step += 1


def sample_autoregressive(canvas: Canvas, gaps: Columns) -> None:
    """Draw every token given the tokens before it, in causal rows; rows that have ended cost no forward pass."""
    zero_B = torch.zeros(len(canvas.sample_B), dtype=torch.float64, device=canvas.sample_B.device)
    for column in gaps:
        row_R = canvas.masked_BT[:, column].nonzero().squeeze(1)
        if len(row_R):
            chosen_BT = torch.zeros_like(canvas.masked_BT)
            chosen_BT[row_R, column] = True
            canvas.forward(row_R, zero_B, width=column).draw(chosen_BT, column)


def top_probability(logits_NV: Tensor) -> Tensor:
    """float32[N]: the probability of the most likely token."""
    return logits_NV.softmax(1).amax(1)


def negative_entropy(logits_NV: Tensor) -> Tensor:
    """float32[N]: minus the entropy of the distribution, in nats."""
    entropy_N: Tensor = torch.special.entr(logits_NV.softmax(1)).sum(1)
    return -entropy_N


CERTAINTY: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "confidence": top_probability,
    "block": top_probability,
    "entropy": negative_entropy,
}
"""What the ordered samplers sort positions by."""


def unmask_counts(columns: int, rates_K: Tensor) -> list[int]:
    """Tokens to unmask in each step that unmasks any: floor(gamma * columns) tokens are masked after a step."""
    masked = [int(rate * columns + 1e-9) for rate in rates_K.flip(0).tolist()]
    return [before - after for before, after in pairwise(masked) if before > after]


def blocks(gaps: Columns, rule: SamplingRule, rates_for: Callable[[int], Tensor], of_model: int = 0) -> list[Part]:
    """Split the gaps into blocks from left to right, and distribute the steps over them (LLaDA, arXiv 2502.09992).

    Args:
        gaps: columns of the masked tokens.
        rule: has the number of steps, and the block length, which counts gaps.
        rates_for: returns the float64[K + 1] mask rates for K steps.
        of_model: tokens per block of a model that was trained in blocks: those of the text are then taken.

    Raises UserError if there are fewer steps than blocks.
    """
    size = of_model or rule.block_length or BLOCK_LENGTH
    if of_model:
        found = [list(columns) for _, columns in groupby(gaps, lambda column: column // of_model)]
        spans = [slice(max(start, 1), start + size) for start in (columns[0] // size * size for columns in found)]
    else:
        found = [list(gaps[start : start + size]) for start in range(0, len(gaps), size)]
        spans = [slice(1, None)] * len(found)
    if rule.steps is None:
        is_limit = rule.sampler == "ancestral"
        return [
            Part(columns, None if is_limit else rates_for(len(columns)), span)
            for columns, span in zip(found, spans, strict=True)
        ]
    if rule.steps < len(found):
        raise UserError(
            f"--steps {rule.steps}: there are {len(found)} blocks of {size} tokens; use at least one step per block"
        )
    ends = [rule.steps * number // len(found) for number in range(len(found) + 1)]
    return [
        Part(columns, rates_for(end - start), span)
        for columns, span, (start, end) in zip(found, spans, pairwise(ends), strict=True)
    ]


@dataclass(frozen=True)
class UnmaskingPlan:
    """The tokens of each row that each forward pass unmasks; rows with fewer passes have empty ones at the end."""

    masked_JBT: Tensor
    """bool: masked in the input of the pass."""
    unmask_JBT: Tensor
    """bool: drawn from the prediction of the pass."""
    rate_JB: Tensor
    """float64: mask rate gamma at the beginning of the step."""


def plan_ancestral(gap_T: Tensor, sample_B: Tensor, rates_K: Tensor | None, seed: int) -> UnmaskingPlan:
    """Draw the steps of the reverse process: a token with the uniform number u is masked as long as u < gamma.

    `rates_K` None is the limit of infinitely many steps, in which every token has a step of its own.
    """
    u_BT = _uniforms(stream_key(seed, "reveal"), sample_B, len(gap_T))
    if rates_K is None:
        rate_BT = u_BT
    else:
        rates_K = rates_K.to(u_BT.device)
        rate_BT = rates_K[torch.searchsorted(rates_K, u_BT, right=True).clamp(max=len(rates_K) - 1)]
    rate_BT = rate_BT.masked_fill(~gap_T, -1.0)
    # The pass of a token is the dense rank of its rate in the row: 0 for the largest rate, equal for equal rates.
    sorted_BT, order_BT = rate_BT.sort(dim=1, descending=True)
    rank_BT = torch.zeros_like(order_BT)
    rank_BT[:, 1:] = (sorted_BT[:, 1:] < sorted_BT[:, :-1]).cumsum(1)
    pass_BT = torch.empty_like(order_BT).scatter_(1, order_BT, rank_BT)
    pass_J11 = torch.arange(int(pass_BT[:, gap_T].max()) + 1, device=u_BT.device)[:, None, None]
    unmask_JBT = (pass_BT == pass_J11) & gap_T
    return UnmaskingPlan((pass_BT >= pass_J11) & gap_T, unmask_JBT, (unmask_JBT * rate_BT).amax(2))


def plan_remasking(gap_T: Tensor, sample_B: Tensor, rates_K: Tensor, rule: SamplingRule) -> UnmaskingPlan:
    """Draw the steps of the remasking process, and leave out those in which a row unmasks nothing."""
    masked_KBT = remasking_history(gap_T, sample_B, rates_K, rule)
    before_KBT, unmask_KBT = masked_KBT[:-1], masked_KBT[:-1] & ~masked_KBT[1:]
    rate_KB = rates_K[1:].flip(0).to(gap_T.device)[:, None].expand(-1, len(sample_B))
    used_KB = unmask_KBT.any(2)
    step_KB = (~used_KB).int().argsort(dim=0, stable=True)
    step_JB = step_KB[: int(used_KB.sum(0).max())]
    step_JBT = step_JB[:, :, None].expand(-1, -1, len(gap_T))
    return UnmaskingPlan(
        (before_KBT & used_KB[:, :, None]).gather(0, step_JBT),
        unmask_KBT.gather(0, step_JBT),
        rate_KB.gather(0, step_JB),
    )


def remasking_history(gap_T: Tensor, sample_B: Tensor, rates_K: Tensor, rule: SamplingRule) -> Tensor:
    """bool[K + 1, B, T]: the masked positions before the first step and after each step.

    In the step from rate s to t < s, an unmasked token is masked with probability sigma, and a masked token is unmasked
    with probability (s - t + (1 - s) sigma) / s, which leaves the share t masked (ReMDM, arXiv 2503.00307, section 3).
    """
    masked_BT = gap_T.repeat(len(sample_B), 1)
    history = [masked_BT]
    for step in range(len(rates_K) - 1, 0, -1):
        s, t = float(rates_K[step]), float(rates_K[step - 1])
        sigma = remasking_probability(s, t, rule)
        u_BT = _uniforms(stream_key(rule.seed, "remask", step), sample_B, len(gap_T))
        masked_BT = torch.where(masked_BT, u_BT * s >= s - t + (1 - s) * sigma, u_BT < sigma) & gap_T
        history.append(masked_BT)
    return torch.stack(history)


def remasking_probability(s: float, t: float, rule: SamplingRule) -> float:
    """sigma of the step from mask rate s to t: min(eta_cap, largest) or eta_rescale * largest.

    The largest possible value is min(1, t / (1 - s)): with a larger one, the share t could not be reached.
    """
    largest = min(1.0, t / (1 - s)) if s < 1 else 1.0
    if rule.eta_cap is not None:
        return min(rule.eta_cap, largest)
    assert rule.eta_rescale is not None
    return rule.eta_rescale * largest


def _uniforms(key: tuple[int, int], sample_B: Tensor, columns: int) -> Tensor:
    """float64[B, T] in (0, 1), a function of key, sample and column."""
    place_BT = sample_B[:, None] * MAX_COLUMNS + torch.arange(columns, device=sample_B.device)
    return uniform_open(key, place_BT.flatten()).view(place_BT.shape)
