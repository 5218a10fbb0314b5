"""Checks of claimed likelihood bounds, by enumeration of a small language.

A bound is one if no denoiser has an expected loss below the entropy of the language. The check computes the expected
loss of the best denoiser over all sequences, all sets of masked positions and the mask rates of the schedule.

Shapes: as in `enumeration`; B rows, one for each pair in S; N supervised positions; P pairs of context and position; U
distinct inputs of the objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltg_mdlm.core.batch import Batch, Corrupted, Noise, Step, Supervised, labels_for
from ltg_mdlm.core.components import MaskingStrategy, NoiseSchedule
from ltg_mdlm.data.tokenizer import NUM_SPECIAL
from ltg_mdlm.host.slots import Components
from ltg_mdlm.testing import toy
from ltg_mdlm.testing.enumeration import (
    ENTROPY,
    JOINT_Q,
    LENGTH,
    MASKED_SL,
    SEQUENCE_S,
    SEQUENCES_QL,
    TOKENS_SL,
    TYPES,
    StepAt,
    likelihood_of_masks,
    posterior,
    quadrature,
)
from ltg_mdlm.testing.masking_checks import (
    its_kind_is_what_the_probabilities_show,
    masking_returns_tensors_of_the_promised_types_and_shapes,
)
from ltg_mdlm.testing.objective_checks import (
    losses_and_gradients_are_finite_at_the_ends,
    the_loss_of_a_row_does_not_depend_on_other_rows,
    the_objective_returns_tensors_of_the_promised_types_and_shapes,
)
from ltg_mdlm.testing.plugin_under_test import NotApplicable, Part, PluginUnderTest, Violation, check
from ltg_mdlm.testing.sample_rows import micro_batch_of, supervised_of
from ltg_mdlm.testing.schedule_checks import (
    full_support_means_that_every_mask_rate_is_drawn,
    slopes_are_the_derivatives_of_the_rates,
    the_noise_of_a_row_belongs_to_the_row,
)

VOCABULARY = NUM_SPECIAL + TYPES

TOLERANCE = 2e-3
"""Nats per row: error of the integral over mask rates where a hazard jumps."""

NODES = 4
"""Nodes of the quadrature rule of an interval."""


@dataclass(frozen=True)
class Fineness:
    """Precision of an integral over mask rates."""

    precision: float
    """Nats per row; an interval with a smaller estimated error is not halved."""
    narrowest: float
    """Minimum width of an interval."""


FUSED, POSITION_BY_POSITION = Fineness(1e-5, 1 / 4096), Fineness(1e-3, 1 / 64)
"""For objectives with `weights`, and for those with `loss_terms`, which are evaluated one by one."""


ROWS = toy.batch_of([[row] for row in (TOKENS_SL + NUM_SPECIAL).tolist()], LENGTH + 1)
"""Every sequence with every set of masked positions, after `<s>`."""

MASKED_BT = torch.cat([torch.zeros(len(MASKED_SL), 1, dtype=torch.bool), MASKED_SL], 1)


def toy_language(subject: PluginUnderTest) -> Components:
    """The components of the recipe for a vocabulary with three ordinary types."""
    count_V = torch.zeros(VOCABULARY, dtype=torch.int64)
    share_QV = torch.nn.functional.one_hot(SEQUENCES_QL, TYPES).sum(1) * JOINT_Q.unsqueeze(1)
    count_V[NUM_SPECIAL:] = (share_QV.sum(0) * 100_000).long()
    return subject.components(toy.context(VOCABULARY), toy.statistics(count_V))


@check(
    masking_returns_tensors_of_the_promised_types_and_shapes,
    its_kind_is_what_the_probabilities_show,
    slopes_are_the_derivatives_of_the_rates,
    full_support_means_that_every_mask_rate_is_drawn,
    the_noise_of_a_row_belongs_to_the_row,
    losses_and_gradients_are_finite_at_the_ends,
    the_loss_of_a_row_does_not_depend_on_other_rows,
)
def a_claimed_bound_is_one(subject: PluginUnderTest) -> None:
    """If `bound_for` returns True, no denoiser has an expected loss below the entropy of an enumerated language."""
    components = toy_language(subject)
    slots = [slot for slot in ("objective", "masking", "noise_schedule") if components.providers[slot] == subject.name]
    if not slots:
        raise NotApplicable(f"{subject.name} leaves objective, masking and noise_schedule to others")
    if not components.objective.bound_for(components.masking, components.noise_schedule):
        raise NotApplicable("bound_for returns False for this recipe")
    least = least_expected_loss(components)
    if least < ENTROPY - TOLERANCE:
        raise Violation(
            Part(subject.label, "objective", components.objective).where("bound_for"),
            f"at least {ENTROPY:.4f} nats per row, the entropy of the enumerated language, since bound_for is True",
            f"{least:.4f} for the denoiser that this loss prefers, with {type(components.masking).__name__} and"
            f" {type(components.noise_schedule).__name__}",
        )


def least_expected_loss(components: Components) -> float:
    """Nats per row: expected loss of the best denoiser that knows the noise level, over the draws of the schedule."""
    fineness = POSITION_BY_POSITION if components.objective.needs_logits else FUSED
    return sum(integrated(components, fineness, start, 0.5) for start in (0.0, 0.5))


def integrated(
    components: Components, fineness: Fineness, start: float, width: float, once: float | None = None
) -> float:
    """Adaptive integral over an interval of draws, since hazards may jump at a mask rate."""
    once = expected_loss_over(components, start, width) if once is None else once
    half = width / 2
    halves = [(begin, expected_loss_over(components, begin, half)) for begin in (start, start + half)]
    twice = sum(value for _, value in halves)
    if abs(twice - once) < fineness.precision or half < fineness.narrowest:
        return twice
    return sum(integrated(components, fineness, begin, half, value) for begin, value in halves)


def expected_loss_over(components: Components, start: float, width: float) -> float:
    """The same integral by one Gauss-Legendre rule."""
    draw, measure = quadrature([start, start + width], 1, nodes=NODES)
    step = StepAt(seed=0, step=50, progress=0.5, epoch=0.5, rows=len(draw), draw_B=draw)
    noise = components.noise_schedule.sample(toy.rows_of(ROWS, slice(len(draw))), step)
    return math.fsum(
        share * expected_loss_at(components, rate, slope, step)
        for rate, slope, share in zip(noise.rate_B.tolist(), noise.slope_B.tolist(), measure.tolist(), strict=True)
    )


def expected_loss_at(components: Components, rate: float, slope: float, step: Step) -> float:
    """Expected loss of a row at one noise level, for the best denoiser."""
    masking = components.masking
    noise = replace(toy.noise_at(rate, ROWS), slope_B=torch.full((len(ROWS.row_B),), slope, dtype=torch.float64))
    probability_SL = masking.mask_probability(ROWS, noise, step)[:, 1:].double()
    first_of_each_Q = torch.arange(len(SEQUENCES_QL)) * 2**LENGTH
    probability_QL = probability_SL[first_of_each_Q]
    probability_S = JOINT_Q[SEQUENCE_S] * likelihood_of_masks(probability_QL).flatten()
    supervised = supervised_of(components, micro_batch_of(ROWS, everything_masked(masking, noise, step), noise))
    own_N = supervised.column_N + (masking.predicts == "next") - 1
    if components.objective.needs_logits:
        return least_by_trying(components, supervised, own_N, probability_S, posterior(probability_QL), step)
    weight_N, _ = components.objective.weights(supervised, step)
    return least_cross_entropy(weight_N.double() * probability_S[supervised.row_N], supervised, own_N)


def everything_masked(masking: MaskingStrategy, noise: Noise, step: Step) -> Corrupted:
    """Corruption of every row with its set of masked positions."""
    causal_B = toy.no_causal(ROWS)
    hazard_BT, hazard_by_type_BV = masking.hazard(ROWS, noise, step)
    return Corrupted(
        input_BT=ROWS.ids_BT.masked_fill(MASKED_BT, masking.mask_id),
        labels_BT=labels_for(ROWS, MASKED_BT, causal_B, masking.predicts),
        masked_BT=MASKED_BT,
        realised_rate_B=MASKED_BT.sum(1) / LENGTH,
        causal_B=causal_B,
        hazard_BT=hazard_BT,
        hazard_by_type_BV=hazard_by_type_BV,
    )


def least_cross_entropy(weight_N: Tensor, supervised: Supervised, own_N: Tensor) -> float:
    """The weighted cross-entropy of the distributions that minimise it.

    The model sees a context: the visible tokens and the masked positions. For every masked position of a context, the
    best distribution over types is proportional to the sum of the weights of each type.
    """
    context_S = ((TOKENS_SL + 1) * ~MASKED_SL * (TYPES + 1) ** torch.arange(LENGTH)).sum(1)
    place_N = context_S[supervised.row_N] * LENGTH + own_N
    weight_PV = torch.zeros((TYPES + 1) ** LENGTH * LENGTH, TYPES, dtype=torch.float64)
    weight_PV.index_put_((place_N, supervised.label_N - NUM_SPECIAL), weight_N, accumulate=True)
    share_PV = weight_PV / weight_PV.sum(1, keepdim=True).clamp(min=1e-300)
    return float(-torch.special.xlogy(weight_PV, share_PV).sum())


def least_by_trying(
    components: Components,
    supervised: Supervised,
    own_N: Tensor,
    probability_S: Tensor,
    posterior_SLV: Tensor,
    step: Step,
) -> float:
    """The smaller expected loss of two denoisers: the exact one, and the one that minimises hazard-weighted terms."""
    posterior_NV = posterior_SLV[supervised.row_N, own_N]
    denoisers = [posterior_NV]
    if supervised.hazard_by_type_BV is not None:
        preferred_NV = posterior_NV * supervised.hazard_by_type_BV[supervised.row_N, NUM_SPECIAL:]
        denoisers.append(preferred_NV / preferred_NV.sum(1, keepdim=True).clamp(min=1e-300))
    return min(expected_terms(components, supervised, probability_S, said_NV, step) for said_NV in denoisers)


def expected_terms(
    components: Components, supervised: Supervised, probability_S: Tensor, said_NV: Tensor, step: Step
) -> float:
    """Expectation of the sum of `loss_terms` over rows, computed position by position."""
    logits_NV = torch.full((len(said_NV), VOCABULARY), -80.0, dtype=torch.float64)
    logits_NV[:, NUM_SPECIAL:] = said_NV.clamp(min=1e-30).log()
    seen_N = torch.cat([logits_NV, supervised.label_N.unsqueeze(1), supervised.hazard_N.unsqueeze(1)], 1)
    # Positions with the same inputs have the same term.
    _, like_N = torch.unique(seen_N, dim=0, return_inverse=True)
    probability_U = torch.zeros(int(like_N.max()) + 1, dtype=torch.float64)
    probability_U.index_add_(0, like_N, probability_S[supervised.row_N])
    first_of_U = {like: n for n, like in reversed(list(enumerate(like_N.tolist())))}
    total = 0.0
    for like, n in first_of_U.items():
        one = slice(n, n + 1)
        terms_K = components.objective.loss_terms(logits_NV[one], supervised[one], step)
        total += float(probability_U[like]) * float(terms_K.sum())
    return total


class Unknown(MaskingStrategy):
    """Masking of kind 'other', for which no bound is known."""

    def mask_probability(self, batch: Batch, noise: Noise, step: Step) -> Tensor:
        """Not used: only the attributes of the class are read."""
        return noise.rate_B.float().unsqueeze(1).expand(batch.ids_BT.shape)


class Partial(NoiseSchedule):
    """A schedule without full support."""

    full_support = False

    def rate(self, t: Tensor, progress: float) -> Tensor:
        """Rates of at least 1/2."""
        return (1 + t) / 2

    def slope(self, t: Tensor, progress: float) -> Tensor:
        """The derivative of `rate`."""
        return torch.full_like(t, 0.5)


@check(the_objective_returns_tensors_of_the_promised_types_and_shapes)
def no_bound_is_claimed_where_none_is_known(subject: PluginUnderTest) -> None:
    """`bound_for` returns False for an unknown masking of kind 'other', and for a schedule without full support."""
    components = subject.components()
    part = subject.objective(components)
    unknown = Unknown(components.masking.mask_id)
    if part.component.bound_for(unknown, components.noise_schedule):
        raise Violation(part.where("bound_for"), "False for masking of kind 'other'", "True")
    if part.component.bound_for(components.masking, Partial()):
        raise Violation(part.where("bound_for"), "False for a schedule without full_support", "True")
