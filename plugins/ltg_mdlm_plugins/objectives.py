"""Objectives of masked diffusion: how the cross-entropies of masked tokens are weighted.

Shapes: B rows, T tokens per row, N supervised positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltg_mdlm.api import Batch, Corrupted, MaskingStrategy, NoiseSchedule, Objective, Step, Supervised


def tokens_of(batch: Batch) -> Tensor:
    """float32[1]: the micro-batch's tokens that are not padding, control tokens included."""
    return (batch.document_BT >= 0).sum().float().unsqueeze(0)


def diffusion_weight(slope: Tensor, hazard: Tensor, power: float) -> Tensor:
    """float64: |d gamma / dt|^power h, the weight of a masked token's cross-entropy."""
    return slope.double() ** power * hazard.double()


class DiffusionObjective(Objective):
    """Weight |d gamma / dt|^power h with the hazard h = d log p_i / d gamma, which is 1 / gamma for uniform masking.

    At power 1 and with uniform masking this is the negative ELBO (arXiv 2406.07524, eq. 10); smaller powers are the
    softened objectives of arXiv 2509.05056.  Causal positions, whose cross-entropy is an exact -log p, weigh 1.
    """

    def __init__(self, power: float) -> None:
        self.power = power

    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        return tokens_of(batch)

    def weights(self, supervised: Supervised, step: Step) -> tuple[Tensor, None]:
        weight_N = diffusion_weight(supervised.slope_N, supervised.hazard_N, self.power)
        return weight_N.masked_fill(supervised.causal_N, 1.0).float(), None

    def bound_for(self, strategy: MaskingStrategy, schedule: NoiseSchedule) -> bool:
        return self.power == 1 and strategy.kind == "uniform" and schedule.full_support


def compensator(log_probability_NV: Tensor, supervised: Supervised) -> Tensor | float:
    """[N]: sum_v h(v) x_theta(v) - h(x), the rate of revealing that the model expects less the true one."""
    if supervised.hazard_by_type_BV is None:
        return 0.0
    hazard_NV = supervised.hazard_by_type_BV.to(log_probability_NV.dtype)[supervised.row_N]
    own_N1 = hazard_NV.gather(1, supervised.label_N.unsqueeze(1))
    # Subtracting under the sum keeps small terms small: all hazards are equal while gamma is below the mean weight.
    return ((hazard_NV - own_N1) * log_probability_NV.exp()).sum(1)


class StateDependentBound(Objective):
    """The negative ELBO when the masking probability depends on the clean token's type (arXiv 2406.04329).

    The rate at which a masked position is revealed then depends on what it hides, which the model cannot see: beside
    the weighted cross-entropy it pays for the difference between the rate it implies and the true one.  Per position,
    |d gamma / dt| (h(x) (-log x_theta(x)) + sum_v h(v) x_theta(v) - h(x)).  Under uniform masking all hazards are
    equal, and what remains is `DiffusionObjective` at power 1.
    """

    needs_logits = True

    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        return tokens_of(batch)

    def loss_terms(self, logits_NV: Tensor, supervised: Supervised, step: Step) -> Tensor:
        log_probability_NV = logits_NV.log_softmax(1)
        nll_N = -log_probability_NV.gather(1, supervised.label_N.unsqueeze(1)).squeeze(1)
        hazard_N, slope_N = supervised.hazard_N.to(nll_N.dtype), supervised.slope_N.to(nll_N.dtype)
        term_N = slope_N * (hazard_N * nll_N + compensator(log_probability_NV, supervised))
        return torch.where(supervised.causal_N, nll_N, term_N).sum().unsqueeze(0)

    def bound_for(self, strategy: MaskingStrategy, schedule: NoiseSchedule) -> bool:
        return strategy.kind in ("uniform", "by_type") and schedule.full_support
