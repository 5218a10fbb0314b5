"""Checks of claimed likelihood bounds, by enumeration of a small language.

A claimed bound is valid if no denoiser has an expected loss below the entropy of the language. The check computes the
expected loss of the best denoiser over all sequences, everything that the strategy can do to them, and the noise levels
of the schedule.

Shapes: as in `enumeration`; O outcomes: a sequence, the positions chosen for prediction, and the tokens shown; B rows,
one for each outcome; N supervised positions; C contexts, what the model can see from a position; U distinct inputs of
the objective.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ltg_mdlm.core.batch import Batch, Corrupted, Noise, Step, Supervised, Visibility, labels_for, realised_rate
from ltg_mdlm.core.components import MaskingStrategy, NoiseSchedule, Objective
from ltg_mdlm.data.tokenizer import NUM_SPECIAL
from ltg_mdlm.host.slots import Components
from ltg_mdlm.testing import toy
from ltg_mdlm.testing.enumeration import ENTROPY, JOINT_Q, LENGTH, SEQUENCES_QL, TYPES, StepAt, quadrature
from ltg_mdlm.testing.masking_checks import (
    is_overridden,
    its_kind_is_what_choose_and_show_do,
    masks_belong_to_rows_of_the_global_batch,
    the_transition_is_what_choose_and_show_do,
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


FUSED, BY_LOGITS = Fineness(1e-5, 1 / 4096), Fineness(1e-3, 1 / 64)
"""For objectives with `weights`, and for those with `loss_terms`, which take longer."""

LANGUAGE = toy.batch_of([[row] for row in (SEQUENCES_QL + NUM_SPECIAL).tolist()], LENGTH + 1)
"""Every sequence, after `<s>`."""


class Unverified(NotApplicable):
    """The bound cannot be enumerated."""


def components_for_language(subject: PluginUnderTest) -> Components:
    """The components of the recipe for a corpus in the language, which has three types of the toy vocabulary."""
    count_V = torch.zeros(toy.VOCAB, dtype=torch.int64)
    share_QV = torch.nn.functional.one_hot(SEQUENCES_QL, TYPES).sum(1) * JOINT_Q.unsqueeze(1)
    count_V[NUM_SPECIAL : NUM_SPECIAL + TYPES] = (share_QV.sum(0) * 100_000).long()
    statistics = toy.statistics(count_V)
    return subject.components(toy.context(statistics=statistics, corpus=toy.corpus_view()), statistics)


@check(
    masks_belong_to_rows_of_the_global_batch,
    its_kind_is_what_choose_and_show_do,
    the_transition_is_what_choose_and_show_do,
    slopes_are_the_derivatives_of_the_rates,
    full_support_means_that_every_mask_rate_is_drawn,
    the_noise_of_a_row_belongs_to_the_row,
    losses_and_gradients_are_finite_at_the_ends,
    the_loss_of_a_row_does_not_depend_on_other_rows,
)
def a_claimed_bound_is_one(subject: PluginUnderTest) -> None:
    """If `bound_for` returns True, no denoiser has an expected loss below the entropy of an enumerated language.

    `Objective.constant` is part of the loss. A bound for masking of kind "other" without `transition` is unverified.
    """
    components = components_for_language(subject)
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
    fineness = BY_LOGITS if components.objective.needs_logits else FUSED
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
    rows, losses = len(SEQUENCES_QL), []
    for of_node, share in zip(draw, measure.tolist(), strict=True):
        step = StepAt(seed=0, step=50, progress=0.5, epoch=0.5, rows=rows, draw_B=of_node.expand(rows))
        losses.append(share * expected_loss_at(components, components.noise_schedule.sample(LANGUAGE, step), step))
    return math.fsum(losses)


def noise_of(noise: Noise, row_O: Tensor) -> Noise:
    """The noise of these rows."""
    values = {field.name: getattr(noise, field.name) for field in fields(noise)}
    of_rows: dict[str, Any] = {name: None if value is None else value[row_O] for name, value in values.items()}
    return replace(noise, **of_rows)


def expected_loss_at(components: Components, noise: Noise, step: Step) -> float:
    """Expected loss of a row at one noise level, for the best denoiser: the mean over the strategy's views."""
    masking = components.masking
    views = [noise]
    if is_overridden(masking, "corrupt_views"):
        views = [view.noise or noise for view in masking.corrupt_views(LANGUAGE, toy.no_causal(LANGUAGE), noise, step)]
    return math.fsum(expected_loss_of_a_view(components, of_view, step) for of_view in views) / len(views)


def expected_loss_of_a_view(components: Components, noise: Noise, step: Step) -> float:
    """Expected loss of a row in one view, for the best denoiser."""
    masking, objective = components.masking, components.objective
    outcomes = Outcomes.of(masking, noise, step)
    noise = noise_of(noise, outcomes.sequence_O)
    corrupted = outcomes.corrupted(masking, noise, step)
    supervised = supervised_of(components, micro_batch_of(outcomes.batch, corrupted, noise))
    own_N = supervised.column_N + (masking.predicts == "next") - 1
    context_OL = contexts(outcomes.batch, corrupted, predicts_next=masking.predicts == "next")
    context_N, row_N = context_OL[supervised.row_N, own_N], supervised.row_N
    if objective.needs_logits:
        posterior_CV = posterior(context_OL, outcomes)
        loss = least_by_trying(components, supervised, posterior_CV[context_N], outcomes.probability_O, step)
    else:
        weight_N, _ = objective.weights(supervised, step)
        loss = least_cross_entropy(weight_N.double() * outcomes.probability_O[row_N], supervised.label_N, context_N)
    return loss + expected_constant(objective, corrupted, outcomes)


@dataclass(frozen=True)
class Outcomes:
    """Everything that a strategy can do to the sequences of the language at one noise level."""

    sequence_O: Tensor
    """int64: number of the sequence."""
    batch: Batch
    """Its tokens."""
    chosen_BT: Tensor
    """bool: the positions to predict."""
    input_BT: Tensor
    """int64: the tokens that are shown."""
    probability_O: Tensor
    """float64: of the sequence and the outcome together."""

    @classmethod
    def of(cls, masking: MaskingStrategy, noise: Noise, step: Step) -> Outcomes:
        """The outcomes of independent corruptions of the tokens.

        Raises `Unverified` for a strategy whose kind and methods do not say how probable they are.
        """
        chosen_QL = probability_of_choice(masking, noise, step)
        # What can be shown in place of a token of the language, and how often: -1 stands for a token not chosen.
        if masking.kind != "other":
            shown, multiplicity = [-1, masking.mask_id], [1, 1]
            to_QLW = torch.stack([1 - chosen_QL, chosen_QL], 2)
        else:
            to_QLV = masking.transition(LANGUAGE.ids_BT, noise)
            if to_QLV is None:
                raise Unverified(
                    "unverified: masking of kind 'other' defines no transition, and training logs unverified_bound"
                )
            shown, multiplicity, to_QLW = outcomes_of_transition(to_QLV[:, 1:].double(), chosen_QL)
        option_PL = torch.tensor(list(itertools.product(range(len(shown)), repeat=LENGTH)))
        of_option_QPL = torch.stack([to_QLW[:, place, option_PL[:, place]] for place in range(LENGTH)], 2)
        probability_QP = JOINT_Q.unsqueeze(1) * of_option_QPL.prod(2)
        probability_QP = probability_QP * torch.tensor(multiplicity)[option_PL].prod(1)
        q_O, p_O = (probability_QP > 0).nonzero(as_tuple=True)
        batch = replace(toy.rows_of(LANGUAGE, q_O), row_B=torch.arange(len(q_O)))
        shown_OL = torch.tensor(shown)[option_PL[p_O]]
        tokens_OL = batch.ids_BT[:, 1:]
        bos_O1 = batch.ids_BT[:, :1]
        return cls(
            sequence_O=q_O,
            batch=batch,
            chosen_BT=torch.cat([torch.zeros_like(bos_O1, dtype=torch.bool), shown_OL >= 0], 1),
            input_BT=torch.cat([bos_O1, torch.where(shown_OL >= 0, shown_OL, tokens_OL)], 1),
            probability_O=probability_QP[q_O, p_O],
        )

    def corrupted(self, masking: MaskingStrategy, noise: Noise, step: Step) -> Corrupted:
        """What the strategy returns if it chooses and shows what happens in the outcomes."""
        batch, chosen_BT, causal_B = self.batch, self.chosen_BT, toy.no_causal(self.batch)
        step = replace(step, rows=len(batch.row_B))
        with (
            mock.patch.object(masking, "choose", return_value=chosen_BT),
            mock.patch.object(masking, "show", return_value=self.input_BT),
        ):
            result = masking.corrupt(batch, causal_B, noise, step)
        # A strategy may override corrupt without calling the two.
        return replace(
            result,
            input_BT=self.input_BT,
            labels_BT=labels_for(batch, chosen_BT, causal_B, masking.predicts),
            masked_BT=chosen_BT,
            realised_rate_B=realised_rate(batch, chosen_BT),
        )


def probability_of_choice(masking: MaskingStrategy, noise: Noise, step: Step) -> Tensor:
    """float64[Q, L]: the probability that a token is chosen. Raises `Unverified` if the strategy does not state it."""
    if is_overridden(masking, "mask_probability"):
        probability_BT = masking.mask_probability(LANGUAGE, noise, step)
        return probability_BT[:, 1:].double()
    if masking.kind == "uniform":
        return noise.rate_B.unsqueeze(1).expand(SEQUENCES_QL.shape)
    steps = [replace(step, step=number, rows=len(SEQUENCES_QL)) for number in range(8)]
    if all(bool(masking.choose(LANGUAGE, noise, each)[:, 1:].all()) for each in steps):
        return torch.ones(SEQUENCES_QL.shape, dtype=torch.float64)
    raise Unverified("unverified: choose draws tokens with probabilities that no mask_probability states")


def outcomes_of_transition(to_QLV: Tensor, chosen_QL: Tensor) -> tuple[list[int], list[int], Tensor]:
    """Tokens that can be shown (-1: not chosen), how many tokens each stands for, and their probabilities [Q, L, W].

    Only chosen tokens change, so a token that is shown itself was chosen with the rest of its probability. Tokens
    outside the language that every token becomes with the same probability are enumerated once.
    """
    stays_QL = to_QLV.gather(2, (SEQUENCES_QL + NUM_SPECIAL).unsqueeze(2)).squeeze(2)
    itself_QL = (chosen_QL - (1 - stays_QL)).clamp(min=0)
    language = torch.arange(NUM_SPECIAL, NUM_SPECIAL + TYPES)
    others = torch.tensor([v for v in range(to_QLV.shape[2]) if v not in language and (to_QLV[..., v] > 0).any()])
    shown, multiplicity, columns = [-1, *language.tolist()], [1] * (1 + TYPES), [1 - chosen_QL]
    for token in language.tolist():
        columns.append(torch.where(token == SEQUENCES_QL + NUM_SPECIAL, itself_QL, to_QLV[..., token]))
    if len(others):
        distinct, kind_of = torch.unique(to_QLV[..., others].flatten(0, 1), dim=1, return_inverse=True)
        for kind in range(distinct.shape[1]):
            members = others[kind_of == kind]
            shown.append(int(members[0]))
            multiplicity.append(len(members))
            columns.append(to_QLV[..., int(members[0])])
    return shown, multiplicity, torch.stack(columns, 2)


def contexts(batch: Batch, corrupted: Corrupted, *, predicts_next: bool) -> Tensor:
    """int64[O, L]: number of the context of every position, equal where the model sees the same tokens at same places.

    The model sees what a position can reach through the visibility of the columns, in any number of layers.
    """
    shown_BX = corrupted.input_BT
    if corrupted.context_BS is not None:
        shown_BX = torch.cat([shown_BX, corrupted.context_BS], 1)
    width = shown_BX.shape[1]
    reach_BXX = reachable(batch, corrupted.visibility, width)
    first = 0 if predicts_next else 1
    seen = [shown_BX.masked_fill(~reach_BXX[:, first + place], -1) for place in range(LENGTH)]
    numbered = [torch.cat([torch.full_like(rows[:, :1], place), rows], 1) for place, rows in enumerate(seen)]
    _, context = torch.unique(torch.cat(numbered), dim=0, return_inverse=True)
    context_OL: Tensor = context.view(LENGTH, -1).T
    return context_OL


def reachable(batch: Batch, visibility: Visibility | None, width: int) -> Tensor:
    """bool[B, X, X]: the columns that each column sees, directly or through other columns."""
    document_BX = batch.document_BT.repeat(1, width // batch.document_BT.shape[1])
    sees_BXX: Tensor = document_BX.unsqueeze(2) == document_BX.unsqueeze(1)
    if visibility is None:
        return sees_BXX
    group_BX, order_BX, limit_BX = visibility.group_BX, visibility.order_BX, visibility.limit_BX
    sees_BXX = sees_BXX & (
        (group_BX.unsqueeze(2) == group_BX.unsqueeze(1)) | (order_BX.unsqueeze(1) < limit_BX.unsqueeze(2))
    )
    for _ in range(width.bit_length()):
        sees_BXX = (sees_BXX.float() @ sees_BXX.float()) > 0
    return sees_BXX


def posterior(context_OL: Tensor, outcomes: Outcomes) -> Tensor:
    """float64[C, V]: distribution of the token at a position, given its context."""
    posterior_CV = torch.zeros(int(context_OL.max()) + 1, TYPES, dtype=torch.float64)
    token_OL = outcomes.batch.ids_BT[:, 1:] - NUM_SPECIAL
    weight_OL = outcomes.probability_O.unsqueeze(1).expand(token_OL.shape)
    posterior_CV.index_put_((context_OL, token_OL), weight_OL, accumulate=True)
    posterior_CV /= posterior_CV.sum(1, keepdim=True).clamp(min=1e-300)
    return posterior_CV


def least_cross_entropy(weight_N: Tensor, label_N: Tensor, context_N: Tensor) -> float:
    """The weighted cross-entropy of the distributions that minimise it.

    For every context, the best distribution over types is proportional to the sum of the weights of each type.
    """
    weight_CV = torch.zeros(int(context_N.max()) + 1, TYPES, dtype=torch.float64)
    weight_CV.index_put_((context_N, label_N - NUM_SPECIAL), weight_N, accumulate=True)
    share_CV = weight_CV / weight_CV.sum(1, keepdim=True).clamp(min=1e-300)
    return float(-torch.special.xlogy(weight_CV, share_CV).sum())


def least_by_trying(
    components: Components, supervised: Supervised, posterior_NV: Tensor, probability_O: Tensor, step: Step
) -> float:
    """The smaller expected loss of two denoisers: the exact one, and the one that minimises hazard-weighted terms."""
    denoisers = [posterior_NV]
    if supervised.hazard_by_type_BV is not None:
        of_language = slice(NUM_SPECIAL, NUM_SPECIAL + TYPES)
        preferred_NV = posterior_NV * supervised.hazard_by_type_BV[supervised.row_N, of_language]
        denoisers.append(preferred_NV / preferred_NV.sum(1, keepdim=True).clamp(min=1e-300))
    probability_N = probability_O[supervised.row_N]
    return min(expected_terms(components.objective, supervised, probability_N, said, step) for said in denoisers)


@torch.no_grad()
def expected_terms(
    objective: Objective, supervised: Supervised, probability_N: Tensor, said_NV: Tensor, step: Step
) -> float:
    """Expectation of the sum of `loss_terms` over rows, computed position by position."""
    logits_NV = torch.full((len(said_NV), toy.VOCAB), -80.0, dtype=torch.float64)
    logits_NV[:, NUM_SPECIAL : NUM_SPECIAL + TYPES] = said_NV.clamp(min=1e-30).log()
    inputs = [supervised.label_N, supervised.hazard_N, supervised.input_N]
    inputs += [] if supervised.carry_N is None else [supervised.carry_N]
    seen_N = torch.cat([said_NV, torch.stack([value.double() for value in inputs], 1)], 1)
    # Positions with the same inputs have the same term.
    _, like_N = torch.unique(seen_N, dim=0, return_inverse=True)
    distinct = int(like_N.max()) + 1
    first_U = torch.full((distinct,), len(like_N)).scatter_reduce(0, like_N, torch.arange(len(like_N)), "amin")
    probability_U = torch.zeros(distinct, dtype=torch.float64).index_add_(0, like_N, probability_N)
    terms_U = torch.cat(list(terms_one_by_one(objective, logits_NV[first_U], taken(supervised, first_U), step)))
    return float((probability_U * terms_U).sum())


def taken(supervised: Supervised, index_U: Tensor) -> Supervised:
    """The positions with these indices."""
    of_positions = {f.name: getattr(supervised, f.name) for f in fields(supervised) if f.name.endswith("_N")}
    return replace(
        supervised, **{name: value[index_U] for name, value in of_positions.items() if value is not None and len(value)}
    )


def terms_one_by_one(objective: Objective, logits_UV: Tensor, supervised: Supervised, step: Step) -> Iterator[Tensor]:
    """float64: the sum over loss groups of every position's terms, in parts.

    One vectorised call if the objective allows it, which takes a fraction of the time of a call for every position.
    """
    names = [f.name for f in fields(supervised) if f.name.endswith("_N") and getattr(supervised, f.name) is not None]

    def terms(logits_V: Tensor, *values: Tensor) -> Tensor:
        of_position = {name: value.unsqueeze(0) for name, value in zip(names, values, strict=True)}
        one = replace(supervised, **of_position)
        return objective.loss_terms(logits_V.unsqueeze(0), one, step).sum()

    try:
        values = [getattr(supervised, name) for name in names]
        yield torch.func.vmap(terms)(logits_UV, *values).double()
    except RuntimeError:  # the value of a tensor decides about the code, or an operation has no vectorised version
        for u in range(len(logits_UV)):
            one = slice(u, u + 1)
            yield objective.loss_terms(logits_UV[one], supervised[one], step).sum().double().unsqueeze(0)


def expected_constant(objective: Objective, corrupted: Corrupted, outcomes: Outcomes) -> float:
    """Expectation of `Objective.constant` over rows."""
    total = float(objective.constant(outcomes.batch, corrupted))
    if total == 0:
        return 0.0

    def of_row(row: int) -> float:
        index = torch.tensor([row])
        values = {f.name: getattr(corrupted, f.name) for f in fields(corrupted)}
        rows: dict[str, Any] = {name: v[index] for name, v in values.items() if isinstance(v, Tensor)}
        return float(objective.constant(toy.rows_of(outcomes.batch, index), replace(corrupted, **rows)))

    # Usually it depends on the sequence only, not on what happened to it.
    first_Q = {q: row for row, q in reversed(list(enumerate(outcomes.sequence_O.tolist())))}
    constant_Q = torch.tensor([of_row(first_Q[q]) for q in range(len(JOINT_Q))], dtype=torch.float64)
    constant_O = constant_Q[outcomes.sequence_O]
    if not math.isclose(float(constant_O.sum()), total, rel_tol=1e-6):
        constant_O = torch.tensor([of_row(row) for row in range(len(constant_O))], dtype=torch.float64)
    return float((constant_O * outcomes.probability_O).sum())


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
