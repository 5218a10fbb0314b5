"""Checks of masking strategies: masks, mask rates, labels, views and hazards.

Shapes: as in `core.batch`; S steps.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ltg_mdlm.core.batch import IGNORE, Batch, Corrupted, Noise, Step
from ltg_mdlm.core.components import MaskingStrategy
from ltg_mdlm.data.tokenizer import NUM_SPECIAL
from ltg_mdlm.testing import toy
from ltg_mdlm.testing.plugin_under_test import NotApplicable, Part, PluginUnderTest, Violation, check
from ltg_mdlm.testing.registration_checks import found
from ltg_mdlm.testing.sample_rows import (
    ENDS,
    causal_rows,
    describe,
    first_place,
    noise_for,
    require_equal,
    require_finite,
    require_tensor,
    sample_batch,
    sample_step,
    unchanged,
    with_token_rates,
)

SEVERAL_RATES = (0.02, 0.15, 0.5, 0.9)

MANY_STEPS = 24
"""Steps whose masks are compared with the probabilities that a strategy claims."""

DISTANCES = (1, 2, 3, 5)
"""Distances of two tokens whose masks must be independent."""

DEVIATIONS = 5.0
"""Standard deviations by which a count may differ; a correct plugin exceeds them with probability 1e-6."""


def is_overridden(strategy: MaskingStrategy, method: str) -> bool:
    """Whether the plugin defines this method of its strategy."""
    return getattr(type(strategy), method) is not getattr(MaskingStrategy, method)


def where_masks_are_made(part: Part[MaskingStrategy]) -> str:
    """The outermost method of the plugin that makes masks and inputs, for messages."""
    methods = ("corrupt_views", "corrupt", "show", "choose", "mask_probability")
    return part.where(next((name for name in methods if is_overridden(part.component, name)), "corrupt"))


def views_of(
    part: Part[MaskingStrategy], batch: Batch, step: Step, noise: Noise | None = None
) -> list[tuple[str, Corrupted]]:
    """(where, corruption) of every view, by default with mask rates from 0 to 1 over the rows of the global batch."""
    rate_R = (torch.arange(step.rows, dtype=torch.float64) + 1) / step.rows
    noise = with_token_rates(part.component, noise or toy.noise_at(rate_R[batch.row_B], batch), batch)
    causal_B = torch.zeros_like(batch.row_B, dtype=torch.bool) if step.causal_R is None else causal_rows(batch, step)
    views, where = part.component.corrupt_views(batch, causal_B, noise, step), where_masks_are_made(part)
    if not (isinstance(views, Sequence) and views and all(isinstance(view, Corrupted) for view in views)):
        found = f"{len(views)} views" if isinstance(views, Sequence) else describe(views)
        raise Violation(where, "a list of at least one Corrupted", found)
    return [(where if len(views) == 1 else f"{where}, view {number}", v) for number, v in enumerate(views, 1)]


@check(found)
def masking_returns_tensors_of_the_promised_types_and_shapes(subject: PluginUnderTest) -> None:
    """All fields of `Corrupted` have the right types, shapes and devices, and probabilities are in [0, 1]."""
    part, batch = subject.masking(), sample_batch()
    strategy, step = part.component, sample_step(batch)
    require_attributes(part)
    if is_overridden(strategy, "mask_probability"):
        require_probabilities(part, batch, step)
    rows, device = len(batch.row_B), batch.ids_BT.device
    shape = (rows, batch.ids_BT.shape[1])
    for where, view in views_of(part, batch, step):
        require_tensor(view.input_BT, where, "input_BT", torch.int64, shape, device)
        require_tensor(view.labels_BT, where, "labels_BT", torch.int64, shape, device)
        require_tensor(view.masked_BT, where, "masked_BT", torch.bool, shape, device)
        require_tensor(view.realised_rate_B, where, "realised_rate_B", torch.float32, (rows,), device)
        require_tensor(view.causal_B, where, "causal_B", torch.bool, (rows,), device)
        if view.carry_BT is not None and view.carry_BT.shape != shape:
            raise Violation(where, f"carry_BT None or {list(shape)}", describe(view.carry_BT))
        if view.noise is not None:
            for name in ("t_B", "rate_B", "slope_B"):
                require_tensor(getattr(view.noise, name), where, f"noise.{name}", torch.float64, (rows,), device)
        for name, expected in (("hazard_BT", shape), ("hazard_by_type_BV", (rows, toy.VOCAB))):
            hazard = getattr(view, name)
            if hazard is not None and (hazard.shape != expected or not hazard.is_floating_point()):
                raise Violation(where, f"{name} None or floating-point {list(expected)}", describe(hazard))


def require_attributes(part: Part[MaskingStrategy]) -> None:
    """Check the attributes that the host reads."""
    strategy, known = part.component, {"kind": ("uniform", "by_type", "other"), "predicts": ("same", "next")}
    for name, values in known.items():
        if getattr(strategy, name) not in values:
            raise Violation(part.where(name), f"{name} one of {', '.join(values)}", repr(getattr(strategy, name)))
    if getattr(strategy, "mask_id", None) != toy.context().mask_id:
        raise Violation(
            part.where("__init__"), "mask_id as in the RunContext", repr(getattr(strategy, "mask_id", "none"))
        )


def require_probabilities(part: Part[MaskingStrategy], batch: Batch, step: Step) -> None:
    """Check that `mask_probability` is float32[B, T], and in [0, 1] for maskable tokens."""
    where = part.where("mask_probability")
    for rate in ENDS:
        probability_BT = part.component.mask_probability(batch, noise_for(part.component, rate, batch), step)
        shape, device = tuple(batch.ids_BT.shape), batch.ids_BT.device
        require_tensor(probability_BT, where, "mask_probability", torch.float32, shape, device)
        used = probability_BT[batch.maskable_BT]
        wrong = ~((used >= 0) & (used <= 1))
        if wrong.any():
            raise Violation(where, "probabilities in [0, 1]", f"{float(used[wrong][0]):g} at mask rate {rate:g}")


@check(masking_returns_tensors_of_the_promised_types_and_shapes)
def some_tokens_are_masked(subject: PluginUnderTest) -> None:
    """Some tokens are masked at mask rates up to 0.9; otherwise the checks of masks would check nothing."""
    part, batch = subject.masking(), toy.text_batch(192, 64)
    step = toy.step_for(batch)
    for rate in SEVERAL_RATES:
        if any(view.masked_BT.any() for _, view in views_of(part, batch, step, toy.noise_at(rate, batch))):
            return
    raise Violation(
        where_masks_are_made(part),
        f"some of {int(batch.maskable_BT.sum())} tokens masked at mask rates {', '.join(map(str, SEVERAL_RATES))};"
        " if masking depends on files or a corpus, make them for the vocabulary of ltg_mdlm.testing.toy",
        "none",
    )


masks = some_tokens_are_masked


@check(masks)
def control_tokens_and_padding_are_never_masked_or_predicted(subject: PluginUnderTest) -> None:
    """Only maskable tokens are masked and only ordinary tokens are labels, at any mask rate."""
    part, batch = subject.masking(), sample_batch()
    step = sample_step(batch)
    for rate in ENDS:
        for where, view in views_of(part, batch, step, toy.noise_at(rate, batch)):
            wrong_BT = view.masked_BT & ~batch.maskable_BT
            if wrong_BT.any():
                token = int(batch.ids_BT[wrong_BT][0])
                name, place = toy.context().tokens_V[token], first_place(wrong_BT)
                found = f"id {token} ({name}) masked at {place}, mask rate {rate:g}"
                raise Violation(where, "masked_BT only where maskable_BT", found)
            wrong_BT = (view.labels_BT != IGNORE) & (view.labels_BT < NUM_SPECIAL)
            if wrong_BT.any():
                label = int(view.labels_BT[wrong_BT][0])
                found = f"label {label} at {first_place(wrong_BT)}"
                raise Violation(where, "ordinary tokens or IGNORE as labels", found)


@check(masks)
def only_masked_tokens_of_masked_rows_are_changed(subject: PluginUnderTest) -> None:
    """The input has `<mask>` or an ordinary token where a token is masked, and is unchanged everywhere else."""
    part, batch = subject.masking(), sample_batch()
    step = sample_step(batch)
    causal_B = causal_rows(batch, step)
    for where, view in views_of(part, batch, step):
        require_equal(view.causal_B, causal_B, where, "causal_B as it was given")
        wrong_BT = view.masked_BT & causal_B.unsqueeze(1)
        if wrong_BT.any():
            raise Violation(where, "nothing masked in causal rows", f"masked at {first_place(wrong_BT)}")
        shown_BT = torch.where(view.masked_BT, batch.ids_BT, view.input_BT)
        require_equal(shown_BT, batch.ids_BT, where, "input_BT, where nothing is masked,")
        wrong_BT = view.masked_BT & (view.input_BT != part.component.mask_id) & (view.input_BT < NUM_SPECIAL)
        if wrong_BT.any():
            found = f"input id {int(view.input_BT[wrong_BT][0])} at {first_place(wrong_BT)}"
            raise Violation(where, "<mask> or an ordinary token where masked", found)


@check(masks)
def labels_are_the_hidden_tokens_where_they_are_predicted(subject: PluginUnderTest) -> None:
    """Labels are the masked tokens, one position earlier if `predicts` is next or the row is causal."""
    part, batch = subject.masking(), sample_batch()
    step = sample_step(batch)
    causal_B, predicts = causal_rows(batch, step), part.component.predicts
    for where, view in views_of(part, batch, step):
        expected_BT = literal_labels(batch, view.masked_BT, causal_B, predicts == "next")
        wrong_BT = view.labels_BT != expected_BT
        if wrong_BT.any():
            kind = "causal" if causal_B[int(wrong_BT.nonzero()[0, 0])] else "masked"
            raise Violation(
                where,
                f"label {int(expected_BT[wrong_BT][0])} at {first_place(wrong_BT)} of labels_BT ({kind} row, predicts"
                f" {predicts}; labels_for of the API makes them)",
                str(int(view.labels_BT[wrong_BT][0])),
            )


def literal_labels(batch: Batch, masked_BT: Tensor, causal_B: Tensor, predicts_next: bool) -> Tensor:
    """int64[B, T]: the expected labels, computed position by position."""
    labels_BT = torch.full_like(batch.ids_BT, IGNORE)
    for b, causal in enumerate(causal_B.tolist()):
        shift = 1 if causal or predicts_next else 0
        target_T = batch.maskable_BT[b] if causal else masked_BT[b]
        for column in target_T.nonzero().flatten().tolist():
            place = column - shift
            if place >= 0 and batch.document_BT[b, place] == batch.document_BT[b, column]:
                labels_BT[b, place] = batch.ids_BT[b, column]
    return labels_BT


@check(masks)
def the_realised_rate_is_masked_over_maskable(subject: PluginUnderTest) -> None:
    """The realised rate of a row is the fraction of maskable tokens that are masked, or 0 if it has none."""
    part, batch = subject.masking(), sample_batch()
    for where, view in views_of(part, batch, sample_step(batch)):
        expected_B = view.masked_BT.sum(1) / batch.maskable_BT.sum(1).clamp(min=1)
        wrong_B = (view.realised_rate_B - expected_B).abs() > 1e-6
        if wrong_B.any():
            row = int(wrong_B.nonzero()[0])
            expected = f"realised_rate_B {float(expected_B[row]):.4f} in row {row}"
            raise Violation(where, expected, f"{float(view.realised_rate_B[row]):.4f}")


@check(masks)
def the_mask_rate_is_kept_if_keeps_rate_says_so(subject: PluginUnderTest) -> None:
    """With `keeps_rate`, the number of masked tokens of many rows agrees with the mask rate, or that of the view."""
    part = subject.masking()
    if not part.component.keeps_rate:
        raise NotApplicable("keeps_rate is False")
    batch = toy.text_batch(192, 64)
    step = toy.step_for(batch)
    tokens_B, tokens = batch.maskable_BT.sum(1), int(batch.maskable_BT.sum())
    for rate in SEVERAL_RATES:
        noise = noise_for(part.component, rate, batch)
        for where, view in views_of(part, batch, step, noise):
            rate_B = (view.noise or noise).rate_B
            off_B = (view.masked_BT & batch.maskable_BT).sum(1) - rate_B * tokens_B
            binomial = (tokens_B * rate_B * (1 - rate_B)).sum().sqrt()
            # Tokens that are masked together, such as words, have a larger variance. Rows are independent in any case.
            between_rows = (off_B - off_B.mean()).square().sum().sqrt()
            allowed, kept = DEVIATIONS * float(torch.maximum(binomial, between_rows)), float(rate_B.mean())
            if abs(float(off_B.sum())) > allowed:
                raise Violation(
                    where,
                    f"{kept:.2%} +- {allowed / tokens:.2%} of {tokens} tokens masked, since keeps_rate is True",
                    f"{(float(off_B.sum()) / tokens + kept):.2%}",
                )


@check(masks)
def its_kind_is_what_the_probabilities_show(subject: PluginUnderTest) -> None:
    """`mask_probability` is gamma (kind uniform), or equal for all tokens of a type (by_type)."""
    part, batch = subject.masking(), toy.text_batch(64, 48)
    strategy, step = part.component, toy.step_for(batch)
    if strategy.kind == "other":
        raise NotApplicable("kind is 'other', for which any probabilities are valid")
    if not is_overridden(strategy, "mask_probability"):
        raise NotApplicable("choose states no probabilities; its masks are checked next")
    for rate in SEVERAL_RATES:
        p_BT = strategy.mask_probability(batch, noise_for(strategy, rate, batch), step)
        p_N, ids_N = p_BT[batch.maskable_BT].double(), batch.ids_BT[batch.maskable_BT]
        first_V = torch.zeros(toy.VOCAB, dtype=torch.float64).scatter(0, ids_N, p_N)
        expected_N = torch.full_like(p_N, rate) if strategy.kind == "uniform" else first_V[ids_N]
        off_N = (p_N - expected_N).abs()
        if off_N.max() > 1e-5:
            worst = int(off_N.argmax())
            raise Violation(
                part.where("mask_probability"),
                f"probability {float(expected_N[worst]):.5f} at mask rate {rate:g}, since kind is {strategy.kind!r}",
                f"{float(p_N[worst]):.5f} for a token of type {int(ids_N[worst])}",
            )


@check(its_kind_is_what_the_probabilities_show)
def its_kind_is_what_choose_and_show_do(subject: PluginUnderTest) -> None:
    """Kinds uniform and by_type mask tokens independently of each other, and show `<mask>` for all of them.

    The masks of many steps are compared with the probabilities, by type and by place in the row. Masks of neighbours,
    of rows and of steps must be uncorrelated, and the masked tokens per row vary as independent ones do.
    """
    part, batch = subject.masking(), toy.text_batch(64, 48)
    strategy, steps = part.component, steps_of(toy.step_for(batch))
    if strategy.kind == "other":
        raise NotApplicable("kind is 'other', which claims nothing about masks")
    since = f"since kind is {strategy.kind!r}"
    for rate in SEVERAL_RATES:
        noise = noise_for(strategy, rate, batch)
        by_step = [views_of(part, batch, step, noise) for step in steps]
        for number, (where, first) in enumerate(by_step[0]):
            views = [by_view[number][1] for by_view in by_step]
            for view in views:
                wrong_BT = view.masked_BT & (view.input_BT != strategy.mask_id)
                if wrong_BT.any():
                    raise Violation(
                        where,
                        f"<mask> in place of every masked token, {since}; a strategy that shows others is of kind"
                        " 'other', and states its bound with transition",
                        f"id {int(view.input_BT[wrong_BT][0])} for a token of type {int(batch.ids_BT[wrong_BT][0])}",
                    )
            masked_SBT = torch.stack([view.masked_BT for view in views]).double()
            p_SBT = claimed_probability(strategy, batch, first.noise or noise, steps, masked_SBT)
            at = f"at mask rate {float((first.noise or noise).rate_B[0]):g}, {since}"
            require_counts(where, batch, masked_SBT, p_SBT, at)
            require_independence(where, batch, masked_SBT, p_SBT, at)


def steps_of(step: Step) -> list[Step]:
    """Many steps with the same progress, so that curricula and schedules do not change."""
    return [dataclasses.replace(step, step=number) for number in range(MANY_STEPS)]


@torch.no_grad()
def claimed_probability(
    strategy: MaskingStrategy, batch: Batch, noise: Noise, steps: Sequence[Step], masked_SBT: Tensor
) -> Tensor:
    """float64[S, B, T]: probabilities by the strategy's kind; estimated for each type if `choose` states none."""
    if is_overridden(strategy, "mask_probability"):
        return torch.stack([strategy.mask_probability(batch, noise, step).double() for step in steps])
    if strategy.kind == "uniform":
        return noise.rate_B[None, :, None].expand(masked_SBT.shape)
    ids_N = batch.ids_BT[batch.maskable_BT]
    share_N = masked_SBT.mean(0)[batch.maskable_BT]
    total_V, count_V = torch.zeros(2, toy.VOCAB, dtype=torch.float64).unbind(0)
    total_V.index_add_(0, ids_N, share_N)
    count_V.index_add_(0, ids_N, torch.ones_like(share_N))
    return (total_V / count_V.clamp(min=1))[batch.ids_BT].expand(masked_SBT.shape)


def require_counts(
    where: str, batch: Batch, happened_SBT: Tensor, p_SBT: Tensor, at: str, what: str = "masked"
) -> None:
    """Raise `Violation` unless counts agree with probabilities, for every type of token and every place in a row."""
    column_BT = torch.arange(batch.ids_BT.shape[1]).expand(batch.ids_BT.shape)
    for name, group_BT in (("type", batch.ids_BT), ("column", column_BT)):
        group_N = group_BT[batch.maskable_BT]
        found_G, expected_G, variance_G = torch.zeros(3, int(group_N.max()) + 1, dtype=torch.float64).unbind(0)
        for sums_G, values_SBT in (
            (found_G, happened_SBT),
            (expected_G, p_SBT),
            (variance_G, p_SBT * (1 - p_SBT)),
        ):
            sums_G.index_add_(0, group_N, values_SBT.sum(0)[batch.maskable_BT])
        allowed_G = DEVIATIONS * variance_G.clamp(min=0).sqrt() + 1
        wrong_G = (found_G - expected_G).abs() > allowed_G
        if wrong_G.any():
            g = int(((found_G - expected_G).abs() / allowed_G).argmax())
            tokens = len(happened_SBT) * int((group_N == g).sum())
            raise Violation(
                where,
                f"{float(expected_G[g]):.0f} +- {float(allowed_G[g]):.0f} of {tokens} tokens of {name} {g} {what} {at}",
                f"{float(found_G[g]):.0f}",
            )


def require_independence(
    where: str, batch: Batch, happened_SBT: Tensor, p_SBT: Tensor, at: str, what: str = "masks"
) -> None:
    """Raise `Violation` unless what happened to tokens is uncorrelated, and their number per row varies accordingly."""
    variance_SBT = p_SBT * (1 - p_SBT) * batch.maskable_BT
    off_SBT = (happened_SBT - p_SBT) * batch.maskable_BT

    def require_uncorrelated(others: str, pairs: Callable[[Tensor], Tensor]) -> None:
        product = pairs(variance_SBT).clamp(min=0)
        deviation, scale = float(product.sum().sqrt()), float(product.sqrt().sum())
        if deviation < 1:  # hardly anything varies at this mask rate
            return
        correlation, allowed = float(pairs(off_SBT).sum()) / scale, DEVIATIONS * deviation / scale
        if abs(correlation) > allowed + 0.01:
            raise Violation(
                where, f"correlation 0 +- {allowed:.3f} of the {what} of {others} {at}", f"{correlation:.3f}"
            )

    for distance in DISTANCES:
        others = "neighbouring tokens" if distance == 1 else f"tokens {distance} places apart"
        require_uncorrelated(others, lambda x, d=distance: x[:, :, d:] * x[:, :, :-d])  # type: ignore[misc]
    require_uncorrelated("tokens at one place of two rows", lambda x: x[:, 1:] * x[:, :-1])
    require_uncorrelated("a token in two steps", lambda x: x[1:] * x[:-1])
    variance_SB = variance_SBT.sum(2)
    excess, scale = float((off_SBT.sum(2).square() - variance_SB).sum()), float((2 * variance_SB.square()).sum().sqrt())
    if abs(excess) > DEVIATIONS * scale + 0.01 * float(variance_SB.sum()):
        mean = float(variance_SB.mean())
        found = max(mean + excess / variance_SB.numel(), 0.0) ** 0.5
        raise Violation(
            where,
            f"standard deviation {mean**0.5:.2f} of the {what} per row, that of independent tokens, {at}",
            f"{found:.2f}",
        )


@check(masks)
def the_transition_is_what_choose_and_show_do(subject: PluginUnderTest) -> None:
    """`transition` has the probabilities, float64[B, T, V], with which every token is shown in place of each token."""
    part, batch = subject.masking(), toy.text_batch(64, 48)
    strategy, steps = part.component, steps_of(toy.step_for(batch))
    if not is_overridden(strategy, "transition"):
        raise NotApplicable("the strategy defines no transition")
    where = part.where("transition")
    for rate in SEVERAL_RATES:
        noise, at = noise_for(strategy, rate, batch), f"at mask rate {rate:g}, by transition"
        to_BTV = strategy.transition(batch.ids_BT, noise)
        require_tensor(
            to_BTV, where, "transition", torch.float64, (*batch.ids_BT.shape, toy.VOCAB), batch.ids_BT.device
        )
        assert to_BTV is not None
        used_NV = to_BTV[batch.maskable_BT]
        if (used_NV < 0).any() or (used_NV.sum(1) - 1).abs().max() > 1e-6:
            total = float(used_NV.sum(1)[(used_NV.sum(1) - 1).abs().argmax()])
            raise Violation(where, "probabilities that sum to 1 for every token", f"sum {total:g}, {at}")
        shown_SBT = torch.stack([views_of(part, batch, step, noise)[0][1].input_BT for step in steps])
        for token in (strategy.mask_id, *range(NUM_SPECIAL, toy.VOCAB)):
            p_SBT = to_BTV[..., token].expand(shown_SBT.shape)
            require_counts(where, batch, (shown_SBT == token).double(), p_SBT, at, f"shown as {token}")
        stays_SBT = to_BTV.gather(2, batch.ids_BT.unsqueeze(2)).squeeze(2).expand(shown_SBT.shape)
        require_independence(where, batch, (shown_SBT == batch.ids_BT).double(), stays_SBT, at, "changes")


@check(masks)
def views_of_a_row_have_draws_of_their_own(subject: PluginUnderTest) -> None:
    """If a strategy has several views, no two of them mask the same tokens."""
    part, batch = subject.masking(), toy.text_batch(12, 48)
    views = views_of(part, batch, toy.step_for(batch), toy.noise_at(0.5, batch))
    if len(views) == 1:
        raise NotApplicable("one view of every row")
    for (first, (where, a)), (second, (_, b)) in itertools.combinations(enumerate(views, 1), 2):
        same_B = (a.masked_BT == b.masked_BT).all(1) & (a.input_BT == b.input_BT).all(1)
        if same_B.any():
            raise Violation(
                where,
                "views with masks of their own; draw them with step.branched, or from the masks of another view",
                f"views {first} and {second} are equal in {int(same_B.sum())} of {len(same_B)} rows",
            )


@check(masks)
def a_step_gives_the_same_masks_whenever_it_is_asked(subject: PluginUnderTest) -> None:
    """Masks depend only on the step and on adaptive state, not on earlier calls."""
    part, batch = subject.masking(), sample_batch()
    step = sample_step(batch)
    once = views_of(part, batch, step)
    require_same(views_of(part, batch, step), once, "asked twice:")
    views_of(part, batch, dataclasses.replace(step, step=step.step + 1))
    require_same(views_of(part, batch, step), once, "asked after another step:")
    require_same(views_of(subject.masking(), batch, step), once, "asked of a fresh strategy:")


def require_same(
    result: list[tuple[str, Corrupted]], expected: list[tuple[str, Corrupted]], when: str, index_B: Tensor | None = None
) -> None:
    """Raise `Violation` unless the views are equal, or equal to the rows `index_B` of what is expected."""
    if len(result) != len(expected):
        raise Violation(expected[0][0], f"{when} {len(expected)} views", str(len(result)))
    for (where, view), (_, whole) in zip(result, expected, strict=True):
        for name in ("masked_BT", "input_BT", "labels_BT", "realised_rate_B", "carry_BT", "context_BS"):
            value, whole_value = getattr(view, name), getattr(whole, name)
            if value is not None and whole_value is not None:
                rows = whole_value if index_B is None else whole_value[index_B]
                require_equal(value, rows, where, f"{when} {name}")


@check(a_step_gives_the_same_masks_whenever_it_is_asked)
def masks_belong_to_rows_of_the_global_batch(subject: PluginUnderTest) -> None:
    """Masks do not depend on the split into micro-batches and ranks, as with random numbers of `Step.uniform`."""
    part, batch = subject.masking(), sample_batch()
    step, rows = sample_step(batch), len(batch.row_B)
    whole = views_of(part, batch, step)
    for index in (torch.arange(7), torch.arange(7, 8), torch.arange(8, rows), torch.arange(rows).flip(0)):
        of_rows = views_of(part, toy.rows_of(batch, index), step)
        require_same(of_rows, whole, f"rows {int(index[0])} to {int(index[-1])} on their own:", index)


@check(masks)
def hazards_are_finite_and_not_negative(subject: PluginUnderTest) -> None:
    """Hazards of maskable tokens are finite and not negative, at every mask rate."""
    part, batch = subject.masking(), sample_batch()
    step, where = sample_step(batch), part.where("hazard")
    for rate in ENDS:
        hazards = part.component.hazard(batch, noise_for(part.component, rate, batch), step)
        if hazards[0] is None and hazards[1] is None:
            raise NotApplicable("hazard is 1 / rate, the default")
        everywhere_BV = torch.ones(1, 1, dtype=torch.bool)
        for hazard, used in zip(hazards, (batch.maskable_BT, everywhere_BV), strict=True):
            if hazard is None:
                continue
            hazard_N = hazard[used.expand(hazard.shape)]
            require_finite(hazard_N, where, f"hazard at mask rate {rate:g}")
            if (hazard_N < 0).any():
                raise Violation(where, "hazards of at least 0", f"{float(hazard_N.min()):g} at mask rate {rate:g}")


@check(masks)
def masking_leaves_its_inputs_as_they_are(subject: PluginUnderTest) -> None:
    """Batch, modes, noise and step are unchanged, since other components use the same tensors."""
    part, batch = subject.masking(), sample_batch()
    step, noise = sample_step(batch), noise_for(part.component, 0.005, batch)
    causal_B = causal_rows(batch, step)
    if is_overridden(part.component, "mask_probability"):
        with unchanged(part.where("mask_probability"), batch, noise, step):
            part.component.mask_probability(batch, noise, step)
    with unchanged(part.where("hazard"), batch, noise, step):
        part.component.hazard(batch, noise, step)
    with unchanged(where_masks_are_made(part), batch, noise, step, causal_B=causal_B):
        part.component.corrupt_views(batch, causal_B, noise, step)
