"""Objectives of masked diffusion: weights of the cross-entropies of masked tokens.

Shapes are suffixes: B rows, T tokens per row, N supervised positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltg_mdlm.api import Batch, Corrupted, MaskingStrategy, NoiseSchedule, Objective, Step, Supervised


def count_tokens(batch: Batch) -> Tensor:
    """float32[1]: number of tokens of the micro-batch, including control tokens, without padding."""
    return (batch.document_BT >= 0).sum().float().unsqueeze(0)


def diffusion_weight(slope: Tensor, hazard: Tensor, power: float) -> Tensor:
    """float64: |d gamma / dt|^power h, the weight of the cross-entropy of a masked token."""
    return slope.double() ** power * hazard.double()


class DiffusionObjective(Objective):
    """Weights |d gamma / dt|^power h with the hazard h = d log p_i / d gamma, which is 1 / gamma for uniform masking.

    With power 1 and uniform masking, this is the negative ELBO (arXiv 2406.07524, eq. 10).  Smaller powers are the
    softened objectives of arXiv 2509.05056.  Causal positions, whose cross-entropy is exactly -log p, have weight 1.
    """

    def __init__(self, power: float) -> None:
        self.power = power

    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        return count_tokens(batch)

    def weights(self, supervised: Supervised, step: Step) -> tuple[Tensor, None]:
        weight_N = diffusion_weight(supervised.slope_N, supervised.hazard_N, self.power)
        return weight_N.masked_fill(supervised.causal_N, 1.0).float(), None

    def bound_for(self, strategy: MaskingStrategy, schedule: NoiseSchedule) -> bool:
        return self.power == 1 and strategy.kind == "uniform" and schedule.full_support


def compensator(log_probability_NV: Tensor, supervised: Supervised) -> Tensor | float:
    """[N]: sum_v h(v) x_theta(v) - h(x), the unmasking rate that the model expects minus the true one."""
    if supervised.hazard_by_type_BV is None:
        return 0.0
    hazard_NV = supervised.hazard_by_type_BV.to(log_probability_NV.dtype)[supervised.row_N]
    own_N1 = hazard_NV.gather(1, supervised.label_N.unsqueeze(1))
    # subtracting inside the sum does not cancel: all hazards are equal while gamma is below the mean weight
    return ((hazard_NV - own_N1) * log_probability_NV.exp()).sum(1)


class StateDependentBound(Objective):
    """The negative ELBO when the masking probability depends on the clean token's type (arXiv 2406.04329).

    The rate at which a position is unmasked then depends on its clean token, which the model does not know.  The bound
    adds the difference between the rate that the model implies and the true one to the weighted cross-entropy.  Per
    position, it is |d gamma / dt| (h(x) (-log x_theta(x)) + sum_v h(v) x_theta(v) - h(x)).  With uniform masking, all
    hazards are equal, and the bound equals `DiffusionObjective` with power 1.
    """

    needs_logits = True

    def denominators(self, batch: Batch, corrupted: Corrupted) -> Tensor:
        return count_tokens(batch)

    def loss_terms(self, logits_NV: Tensor, supervised: Supervised, step: Step) -> Tensor:
        log_probability_NV = logits_NV.log_softmax(1)
        nll_N = -log_probability_NV.gather(1, supervised.label_N.unsqueeze(1)).squeeze(1)
        hazard_N, slope_N = supervised.hazard_N.to(nll_N.dtype), supervised.slope_N.to(nll_N.dtype)
        term_N = slope_N * (hazard_N * nll_N + compensator(log_probability_NV, supervised))
        return torch.where(supervised.causal_N, nll_N, term_N).sum().unsqueeze(0)

    def bound_for(self, strategy: MaskingStrategy, schedule: NoiseSchedule) -> bool:
        # A strategy by type without a hazard of its own does not say what the bound has to compensate for.
        has_hazard = type(strategy).hazard is not MaskingStrategy.hazard
        known = strategy.kind == "uniform" or (strategy.kind == "by_type" and has_hazard)
        return known and schedule.full_support
