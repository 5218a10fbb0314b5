"""A masking strategy in pictures: how often a token is masked, by how frequent its type is.

Measured on rows of the user's corpus, so that it works for any strategy.

Shapes: B rows, T tokens per row, V vocabulary, G mask rates, I intervals of frequency ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltg_mdlm.api import Batch, MaskingStrategy, Noise, Step
from ltg_mdlm.plots.figure import MUTED, ORDERED, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
INTERVALS = 24
LEAST_SHARE = 0.005
"""Intervals that hold a smaller share of the measured tokens are not shown: their averages would be noise."""
FLAT = 0.005
"""A strategy whose probabilities differ less than this, relative to the mask rate, does not depend on rank."""
LEAST_SPAN = 0.1
"""The axis of ratios shows at least 1 - this to 1 + this: small differences are to look small."""

_RANK_LABEL = "frequency rank (1 = most frequent token type)"


@dataclass(frozen=True)
class MaskingByRank:
    """Averages over the tokens of every interval of frequency ranks."""

    rank_I: Tensor
    """Mean frequency rank of the interval's tokens, on a logarithmic scale; 1 is the most frequent type."""
    probability_GI: Tensor
    """What the strategy states."""
    masked_GI: Tensor
    """Share of tokens that it masked."""


def frequency_rank(token_count_V: Tensor) -> Tensor:
    """int64[V]: 1 for the most frequent type; ties go by id."""
    order_V = token_count_V.argsort(descending=True, stable=True)
    rank_V = torch.empty_like(order_V)
    rank_V[order_V] = torch.arange(1, len(order_V) + 1)
    return rank_V


def masking_by_rank(
    masking: MaskingStrategy, batches: Sequence[Batch], rank_V: Tensor, step: Step, rates: Sequence[float] = RATES
) -> MaskingByRank:
    """Mask the rows at every rate, and average over tokens of similar rank.

    `step` says how far training is, and its `rows` counts the rows of all batches.
    """
    edges = torch.unique(torch.logspace(0, math.log10(int(rank_V.max()) + 1), INTERVALS + 1).round())
    sums = torch.zeros(2, len(rates), len(edges) - 1, dtype=torch.float64)
    tokens_I, log_rank_I = sums.new_zeros(len(edges) - 1), sums.new_zeros(len(edges) - 1)
    for batch in batches:
        rank_N = rank_V[batch.ids_BT[batch.maskable_BT]]
        interval_N = torch.bucketize(rank_N, edges, right=True) - 1
        tokens_I.index_add_(0, interval_N, torch.ones(len(rank_N), dtype=torch.float64))
        log_rank_I.index_add_(0, interval_N, rank_N.double().log())
        for g, rate in enumerate(rates):
            stated_BT, masked_BT = mask_at(masking, batch, rate, step)
            sums[0, g].index_add_(0, interval_N, stated_BT[batch.maskable_BT].double())
            sums[1, g].index_add_(0, interval_N, masked_BT[batch.maskable_BT].double())
    shown_I = tokens_I >= LEAST_SHARE * tokens_I.sum()
    means = sums[:, :, shown_I] / tokens_I[shown_I]
    return MaskingByRank((log_rank_I[shown_I] / tokens_I[shown_I]).exp(), means[0], means[1])


def mask_at(masking: MaskingStrategy, batch: Batch, rate: float, step: Step) -> tuple[Tensor, Tensor]:
    """float[B, T] stated probability and bool[B, T] mask, with all rows at one mask rate."""
    rate_B = torch.full(batch.row_B.shape, rate, dtype=torch.float64)
    noise = Noise(t_B=rate_B, rate_B=rate_B, slope_B=torch.ones_like(rate_B))
    causal_B = torch.zeros_like(batch.row_B, dtype=torch.bool)
    return masking.mask_probability(batch, noise, step), masking.corrupt(batch, causal_B, noise, step).masked_BT


def masking_panels(measured: MaskingByRank, when: str, rates: Sequence[float] = RATES) -> list[Panel]:
    """Probabilities, and their ratio to the mask rate unless it is 1 throughout."""
    ratio_GI = measured.probability_GI / torch.tensor(rates, dtype=torch.float64).unsqueeze(1)
    panels = [Panel(f"Masking by frequency{when}", partial(_draw_probability, measured, rates))]
    if bool((ratio_GI - 1).abs().max() > FLAT):
        panels.append(Panel(f"Relative to the mask rate{when}", partial(_draw_ratio, measured.rank_I, ratio_GI, rates)))
    return panels


def _draw_probability(measured: MaskingByRank, rates: Sequence[float], axes: Axes) -> None:
    # The curves are named at the end where they lie further apart.
    end, align = max(((0, "left"), (-1, "right")), key=lambda e: _least_gap(measured.probability_GI[:, e[0]]))
    for g, (rate, colour) in enumerate(zip(rates, ORDERED, strict=True)):
        axes.plot(measured.rank_I, measured.probability_GI[g], color=colour)
        axes.plot(measured.rank_I, measured.masked_GI[g], "o", color=colour, markersize=3.5)
        at = (float(measured.rank_I[end]), float(measured.probability_GI[g, end]))
        axes.annotate(f"γ = {rate:g}", at, (0, 5), textcoords="offset points", ha=align, color=colour)
    axes.plot([], [], color=MUTED, label="probability")
    axes.plot([], [], "o", color=MUTED, markersize=3.5, label="share masked")
    axes.set(xscale="log", xlabel=_RANK_LABEL, ylabel="probability of being masked", ylim=(0, 1.16))
    axes.legend(loc="upper left", ncols=2)


def _least_gap(values: Tensor) -> float:
    return float(values.sort().values.diff().min())


def _draw_ratio(rank_I: Tensor, ratio_GI: Tensor, rates: Sequence[float], axes: Axes) -> None:
    coincide = float((ratio_GI - ratio_GI[0]).abs().max()) < FLAT
    for place, (ratio_I, colour, rate) in enumerate(zip(ratio_GI, ORDERED, rates, strict=True)):
        # Curves that coincide show as stripes.
        width = 1.3 * (len(rates) - place) if coincide else None
        axes.plot(rank_I, ratio_I, color=colour, linewidth=width, label=f"γ = {rate:g}")
    axes.axhline(1, color=MUTED, linewidth=0.8)
    low, high = axes.get_ylim()
    axes.set(xscale="log", xlabel=_RANK_LABEL, ylabel="probability / γ")
    axes.set_ylim(min(low, 1 - LEAST_SPAN), max(high, 1 + LEAST_SPAN))
    axes.legend()
