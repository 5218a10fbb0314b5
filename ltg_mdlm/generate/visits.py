"""When the tokens of ancestral samples are revealed: drawn before anything is generated.

In masked diffusion, whether a token is masked at a mask rate depends on nothing but chance: not on its own value, nor
on its neighbours.  So the whole history of which positions are masked when can be drawn first, and the model asked only
at those steps in which something is revealed; the distribution of the samples is the same as if it had been asked at
every step.  (With infinitely many steps this is the first-hitting sampler, arXiv 2409.02908.)  It holds with remasking,
too, as long as its probabilities do not look at the tokens.

Suffixes: B rows, T tokens per row, K steps, J visits of a row (the steps in which it reveals something).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltg_mdlm.generate.rule import SamplingRule
from ltg_mdlm.random import stream_key, uniform_open


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
