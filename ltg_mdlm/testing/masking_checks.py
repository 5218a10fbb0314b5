"""Checks of masking strategies: masks, mask rates, labels and hazards."""

from __future__ import annotations

import dataclasses
from typing import Any

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
    require_equal,
    require_finite,
    require_tensor,
    sample_batch,
    sample_step,
    unchanged,
)

SEVERAL_RATES = (0.02, 0.15, 0.5, 0.9)

DEVIATIONS = 5.0
"""Standard deviations by which a count may differ; a correct plugin exceeds them with probability 1e-6."""


def corrupted(strategy: MaskingStrategy, batch: Batch, step: Step, noise: Noise | None = None) -> Corrupted:
    """Corrupt a batch, by default with mask rates from 0 to 1 over the rows of the global batch."""
    rate_R = (torch.arange(step.rows, dtype=torch.float64) + 1) / step.rows
    noise = noise or toy.noise_at(rate_R[batch.row_B], batch)
    return strategy.corrupt(batch, causal_rows(batch, step), noise, step)


@check(found)
def masking_returns_tensors_of_the_promised_types_and_shapes(subject: PluginUnderTest) -> None:
    """All fields of `Corrupted` have the right types, shapes and devices, and probabilities are in [0, 1]."""
    part, batch = subject.masking(), sample_batch()
    strategy, step = part.component, sample_step(batch)
    require_attributes(part)
    require_probabilities(part, batch, step)
    result, where = corrupted(strategy, batch, step), part.where("corrupt")
    rows, device = len(batch.row_B), batch.ids_BT.device
    shape = (rows, batch.ids_BT.shape[1])
    require_tensor(result.input_BT, where, "input_BT", torch.int64, shape, device)
    require_tensor(result.labels_BT, where, "labels_BT", torch.int64, shape, device)
    require_tensor(result.masked_BT, where, "masked_BT", torch.bool, shape, device)
    require_tensor(result.realised_rate_B, where, "realised_rate_B", torch.float32, (rows,), device)
    require_tensor(result.causal_B, where, "causal_B", torch.bool, (rows,), device)
    for name, expected in (("hazard_BT", shape), ("hazard_by_type_BV", (rows, toy.VOCAB))):
        hazard = getattr(result, name)
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
        probability_BT = part.component.mask_probability(batch, toy.noise_at(rate, batch), step)
        shape, device = tuple(batch.ids_BT.shape), batch.ids_BT.device
        require_tensor(probability_BT, where, "mask_probability", torch.float32, shape, device)
        used = probability_BT[batch.maskable_BT]
        wrong = ~((used >= 0) & (used <= 1))
        if wrong.any():
            raise Violation(where, "probabilities in [0, 1]", f"{float(used[wrong][0]):g} at mask rate {rate:g}")


@check(masking_returns_tensors_of_the_promised_types_and_shapes)
def control_tokens_and_padding_are_never_masked_or_predicted(subject: PluginUnderTest) -> None:
    """Only maskable tokens are masked and only ordinary tokens are labels, at any mask rate."""
    part, batch = subject.masking(), sample_batch()
    step, where = sample_step(batch), part.where("corrupt")
    for rate in ENDS:
        result = corrupted(part.component, batch, step, toy.noise_at(rate, batch))
        wrong_BT = result.masked_BT & ~batch.maskable_BT
        if wrong_BT.any():
            token = int(batch.ids_BT[wrong_BT][0])
            raise Violation(
                where,
                "masked_BT only where maskable_BT",
                f"id {token} ({toy.context().tokens_V[token]}) masked at {first_place(wrong_BT)}, mask rate {rate:g}",
            )
        wrong_BT = (result.labels_BT != IGNORE) & (result.labels_BT < NUM_SPECIAL)
        if wrong_BT.any():
            label = int(result.labels_BT[wrong_BT][0])
            raise Violation(where, "ordinary tokens or IGNORE as labels", f"label {label} at {first_place(wrong_BT)}")


@check(masking_returns_tensors_of_the_promised_types_and_shapes)
def only_masked_tokens_of_masked_rows_are_changed(subject: PluginUnderTest) -> None:
    """The input has `<mask>` or an ordinary token where a token is masked, and is unchanged everywhere else."""
    part, batch = subject.masking(), sample_batch()
    step, where = sample_step(batch), part.where("corrupt")
    result = corrupted(part.component, batch, step)
    causal_B = causal_rows(batch, step)
    require_equal(result.causal_B, causal_B, where, "causal_B as it was given")
    wrong_BT = result.masked_BT & causal_B.unsqueeze(1)
    if wrong_BT.any():
        raise Violation(where, "nothing masked in causal rows", f"masked at {first_place(wrong_BT)}")
    shown_BT = torch.where(result.masked_BT, batch.ids_BT, result.input_BT)
    require_equal(shown_BT, batch.ids_BT, where, "input_BT, where nothing is masked,")
    wrong_BT = result.masked_BT & (result.input_BT != part.component.mask_id) & (result.input_BT < NUM_SPECIAL)
    if wrong_BT.any():
        raise Violation(
            where,
            "<mask> or an ordinary token where masked",
            f"input id {int(result.input_BT[wrong_BT][0])} at {first_place(wrong_BT)}",
        )


@check(masking_returns_tensors_of_the_promised_types_and_shapes)
def labels_are_the_hidden_tokens_where_they_are_predicted(subject: PluginUnderTest) -> None:
    """Labels are the masked tokens, one position earlier if `predicts` is next or the row is causal."""
    part, batch = subject.masking(), sample_batch()
    step = sample_step(batch)
    result = corrupted(part.component, batch, step)
    expected_BT = literal_labels(batch, result.masked_BT, causal_rows(batch, step), part.component.predicts == "next")
    wrong_BT = result.labels_BT != expected_BT
    if wrong_BT.any():
        row = int(wrong_BT.nonzero()[0, 0])
        kind = "causal" if causal_rows(batch, step)[row] else "masked"
        found_label, label = int(result.labels_BT[wrong_BT][0]), int(expected_BT[wrong_BT][0])
        raise Violation(
            part.where("corrupt"),
            f"label {label} at {first_place(wrong_BT)} of labels_BT ({kind} row, predicts {part.component.predicts};"
            " labels_for of the API makes them)",
            str(found_label),
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


@check(masking_returns_tensors_of_the_promised_types_and_shapes)
def the_realised_rate_is_masked_over_maskable(subject: PluginUnderTest) -> None:
    """The realised rate of a row is the fraction of maskable tokens that are masked, or 0 if it has none."""
    part, batch = subject.masking(), sample_batch()
    result = corrupted(part.component, batch, sample_step(batch))
    expected_B = result.masked_BT.sum(1) / batch.maskable_BT.sum(1).clamp(min=1)
    wrong_B = (result.realised_rate_B - expected_B).abs() > 1e-6
    if wrong_B.any():
        row = int(wrong_B.nonzero()[0])
        raise Violation(
            part.where("corrupt"),
            f"realised_rate_B {float(expected_B[row]):.4f} in row {row}",
            f"{float(result.realised_rate_B[row]):.4f}",
        )


@check(masking_returns_tensors_of_the_promised_types_and_shapes)
def the_mask_rate_is_kept_if_keeps_rate_says_so(subject: PluginUnderTest) -> None:
    """With `keeps_rate`, the number of masked tokens of many rows agrees with the mask rate."""
    part = subject.masking()
    if not part.component.keeps_rate:
        raise NotApplicable("keeps_rate is False")
    batch = toy.text_batch(192, 64)
    step = toy.step_for(batch)
    tokens_B = batch.maskable_BT.sum(1)
    for rate in SEVERAL_RATES:
        result = part.component.corrupt(batch, toy.no_causal(batch), toy.noise_at(rate, batch), step)
        off_B = (result.masked_BT & batch.maskable_BT).sum(1) - rate * tokens_B
        binomial = (tokens_B.sum() * rate * (1 - rate)).sqrt()
        # Tokens that are masked together, such as words, have a larger variance. Rows are independent in any case.
        between_rows = (off_B - off_B.mean()).square().sum().sqrt()
        allowed = DEVIATIONS * float(torch.maximum(binomial, between_rows))
        if abs(float(off_B.sum())) > allowed:
            tokens = int(tokens_B.sum())
            raise Violation(
                part.where("mask_probability"),
                f"{rate:.2%} +- {allowed / tokens:.2%} of {tokens} tokens masked, since keeps_rate is True",
                f"{(float(off_B.sum()) / tokens + rate):.2%}",
            )


@check(masking_returns_tensors_of_the_promised_types_and_shapes)
def its_kind_is_what_the_probabilities_show(subject: PluginUnderTest) -> None:
    """Probabilities are gamma (uniform) or equal for all tokens of a type (by_type), and masks are drawn from them."""
    part, batch = subject.masking(), toy.text_batch(64, 48)
    strategy, step, where = part.component, toy.step_for(batch), part.where("mask_probability")
    if strategy.kind == "other":
        raise NotApplicable("kind is 'other', for which any probabilities are valid")
    for rate in SEVERAL_RATES:
        noise = toy.noise_at(rate, batch)
        p_BT = strategy.mask_probability(batch, noise, step)
        p_N, ids_N = p_BT[batch.maskable_BT].double(), batch.ids_BT[batch.maskable_BT]
        first_V = torch.zeros(toy.VOCAB, dtype=torch.float64).scatter(0, ids_N, p_N)
        expected_N = torch.full_like(p_N, rate) if strategy.kind == "uniform" else first_V[ids_N]
        off_N = (p_N - expected_N).abs()
        if off_N.max() > 1e-5:
            worst = int(off_N.argmax())
            raise Violation(
                where,
                f"probability {float(expected_N[worst]):.5f} at mask rate {rate:g}, since kind is {strategy.kind!r}",
                f"{float(p_N[worst]):.5f} for a token of type {int(ids_N[worst])}",
            )
        masked_N = strategy.corrupt(batch, toy.no_causal(batch), noise, step).masked_BT[batch.maskable_BT]
        allowed = DEVIATIONS * float((p_N * (1 - p_N)).sum().sqrt()) + 1
        if abs(float(masked_N.sum() - p_N.sum())) > allowed:
            raise Violation(
                part.where("corrupt"),
                f"{float(p_N.sum()):.0f} +- {allowed:.0f} tokens masked, by mask_probability",
                str(int(masked_N.sum())),
            )


@check(masking_returns_tensors_of_the_promised_types_and_shapes)
def a_step_gives_the_same_masks_whenever_it_is_asked(subject: PluginUnderTest) -> None:
    """Masks depend only on the step and on adaptive state, not on earlier calls."""
    part, batch = subject.masking(), sample_batch()
    step, where = sample_step(batch), part.where("corrupt")
    once = corrupted(part.component, batch, step)
    require_same(corrupted(part.component, batch, step), once, where, "asked twice:")
    corrupted(part.component, batch, dataclasses.replace(step, step=step.step + 1))
    require_same(corrupted(part.component, batch, step), once, where, "asked after another step:")
    fresh = corrupted(subject.masking().component, batch, step)
    require_same(fresh, once, where, "asked of a fresh strategy:")


def require_same(result: Corrupted, expected: Corrupted, where: str, when: str) -> None:
    """Raise `Violation` unless two corruptions are equal."""
    for name in ("masked_BT", "input_BT", "labels_BT", "realised_rate_B"):
        require_equal(getattr(result, name), getattr(expected, name), where, f"{when} {name}")


@check(a_step_gives_the_same_masks_whenever_it_is_asked)
def masks_belong_to_rows_of_the_global_batch(subject: PluginUnderTest) -> None:
    """Masks do not depend on the split into micro-batches and ranks, as with random numbers of `Step.uniform`."""
    part, batch = subject.masking(), sample_batch()
    step, where = sample_step(batch), part.where("corrupt")
    whole = corrupted(part.component, batch, step)
    rows = len(batch.row_B)
    for index in (torch.arange(7), torch.arange(7, 8), torch.arange(8, rows), torch.arange(rows).flip(0)):
        result = corrupted(part.component, toy.rows_of(batch, index), step)
        fields = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)}
        of_rows: dict[str, Any] = {name: value[index] for name, value in fields.items() if isinstance(value, Tensor)}
        expected = dataclasses.replace(whole, **of_rows)
        require_same(result, expected, where, f"rows {int(index[0])} to {int(index[-1])} on their own:")


@check(masking_returns_tensors_of_the_promised_types_and_shapes)
def hazards_are_finite_and_not_negative(subject: PluginUnderTest) -> None:
    """Hazards of maskable tokens are finite and not negative, at every mask rate."""
    part, batch = subject.masking(), sample_batch()
    step, where = sample_step(batch), part.where("hazard")
    for rate in ENDS:
        hazards = part.component.hazard(batch, toy.noise_at(rate, batch), step)
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


@check(masking_returns_tensors_of_the_promised_types_and_shapes)
def masking_leaves_its_inputs_as_they_are(subject: PluginUnderTest) -> None:
    """Batch, modes, noise and step are unchanged, since other components use the same tensors."""
    part, batch = subject.masking(), sample_batch()
    step, noise = sample_step(batch), toy.noise_at(0.005, batch)
    causal_B = causal_rows(batch, step)
    with unchanged(part.where("mask_probability"), batch, noise, step):
        part.component.mask_probability(batch, noise, step)
    with unchanged(part.where("hazard"), batch, noise, step):
        part.component.hazard(batch, noise, step)
    with unchanged(part.where("corrupt"), batch, noise, step, causal_B=causal_B):
        part.component.corrupt(batch, causal_B, noise, step)
