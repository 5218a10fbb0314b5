"""Adaptive masking (Edman and Fraser 2025, arXiv 2510.20475): types that are predicted poorly are masked more often.

Every token type has a masking weight.  Every few steps it moves towards the share of wrong predictions since the last
update.  In every row, the weights are scaled so that their mean is the mask rate.

Shapes are suffixes: B rows, T tokens per row, N supervised positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ltg_mdlm.api import Batch, MaskingStrategy, Noise, Observation, RunContext, Step

_TINY = 1e-300
"""Keeps unused quotients finite: rows without maskable tokens, and the branch that `where` discards."""


def smoothed_accuracy(correct_V: Tensor, incorrect_V: Tensor, smoothing: float) -> Tensor:
    """float64[V]: (c + s) / (c + i + 2 s), between 0 and 1; 1/2 for types without predictions."""
    return (correct_V + smoothing).double() / (correct_V + incorrect_V + 2 * smoothing)


def updated_weight(weight_V: Tensor, accuracy_V: Tensor, mask_rate: float, history: float) -> Tensor:
    """float64[V]: h w + (1 - h) m (1 - accuracy)."""
    return history * weight_V + (1 - history) * mask_rate * (1 - accuracy_V)


def scale_to_rate(weight_BT: Tensor, maskable_BT: Tensor, rate_B1: Tensor) -> Tensor:
    """float64[B, T] probabilities in [0, 1], whose mean over a row's maskable tokens is its rate.

    They are proportional to the weights if the largest of them is then at most 1.  Otherwise the largest is 1, and the
    probabilities of staying visible are proportional to the difference to the largest weight.  Both cases agree at the
    boundary, so that probabilities are continuous and non-decreasing in the rate.
    """
    counted_BT = weight_BT.masked_fill(~maskable_BT, 0)
    relative_BT = counted_BT / counted_BT.amax(1, keepdim=True).clamp(min=_TINY)
    mean_B1 = relative_BT.sum(1, keepdim=True) / maskable_BT.sum(1, keepdim=True).clamp(min=1)
    proportional_BT = relative_BT * (rate_B1 / mean_B1.clamp(min=_TINY))
    visible_BT = (1 - relative_BT) * ((1 - rate_B1) / (1 - mean_B1).clamp(min=_TINY))
    return torch.where(rate_B1 <= mean_B1, proportional_BT, (1 - visible_BT).clamp(min=0))


class AdaptiveMasking(MaskingStrategy):
    """Masks token types that the model predicts poorly more often, at an unchanged mean rate per row.

    Counts are summed over ranks at the end of each step, so that weights and counts are equal on all ranks.
    """

    def __init__(
        self,
        ctx: RunContext,
        *,
        mask_rate: Callable[[float], float],
        history: float,
        smoothing: float,
        update_every: int,
    ) -> None:
        """`mask_rate` is m as a function of progress.

        It only scales new weights relative to old ones; the rate of a row comes from the noise schedule.
        """
        super().__init__(ctx.mask_id)
        self._sum_over_ranks = ctx.sum_over_ranks
        self._mask_rate, self._history, self._smoothing = mask_rate, history, smoothing
        self._update_every = update_every
        self._ordinary = (~ctx.special_V).nonzero().flatten().to(ctx.device)
        self._weight_V = torch.full((ctx.vocab_size,), mask_rate(0.0), dtype=torch.float64, device=ctx.device)
        # incorrect predictions of every type, then correct ones: since the last update, and of this rank in this step
        self._counts = torch.zeros(2 * ctx.vocab_size, dtype=torch.int64, device=ctx.device)
        self._new_counts = torch.zeros_like(self._counts)
        self._step_accuracy = torch.zeros((), device=ctx.device)

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        """float32[B, T]; its mean over a row's maskable tokens is `noise.rate_B`."""
        return scale_to_rate(self._weight_V[batch.ids_BT], batch.maskable_BT, noise.rate_B.unsqueeze(1)).float()

    def observe(self, observation: Observation) -> None:
        """Count correct and incorrect predictions of masked tokens; ignore micro-batches with a non-finite loss."""
        supervised = observation.supervised
        # integers, whose sum does not depend on the order
        counts_N = (supervised.masked_N & observation.nll_N.isfinite().all()).long()
        self._new_counts.index_add_(0, supervised.label_N + observation.correct_N * len(self._weight_V), counts_N)

    def step_end(self, step: Step) -> None:
        """Add the counts of all ranks, and update the weights every `update_every` steps."""
        new_2V = self._sum_over_ranks(self._new_counts).view(2, -1)
        self._counts += new_2V.flatten()
        self._step_accuracy = new_2V[1].sum() / new_2V.sum().clamp(min=1)
        self._new_counts.zero_()
        if (step.step + 1) % self._update_every == 0:
            incorrect_V, correct_V = self._counts.view(2, -1)
            accuracy_V = smoothed_accuracy(correct_V, incorrect_V, self._smoothing)
            mask_rate = self._mask_rate(step.progress)
            self._weight_V = updated_weight(self._weight_V, accuracy_V, mask_rate, self._history)
            self._counts.zero_()

    def metrics(self) -> Mapping[str, Tensor]:
        """`accuracy` of this step's masked tokens, and `weight_spread`: standard deviation / mean of the weights."""
        weight = self._weight_V[self._ordinary]
        return {"accuracy": self._step_accuracy, "weight_spread": weight.std(correction=0) / weight.mean()}

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self._weight_V, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._weight_V.copy_(state["weight"])
        self._counts.copy_(state["counts"])
