"""Checks of visibility and copies: their shapes, and that no prediction sees its own label."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ltg_mdlm.core.batch import IGNORE, Batch, Corrupted, Step, Visibility
from ltg_mdlm.core.components import MaskingStrategy
from ltg_mdlm.data.tokenizer import NUM_SPECIAL
from ltg_mdlm.host.result_checks import ResultChecks
from ltg_mdlm.model.transformer import ModelConfig, Transformer
from ltg_mdlm.testing import toy
from ltg_mdlm.testing.masking_checks import (
    a_step_gives_the_same_masks_whenever_it_is_asked,
    labels_are_the_hidden_tokens_where_they_are_predicted,
    masks_belong_to_rows_of_the_global_batch,
    only_masked_tokens_of_masked_rows_are_changed,
)
from ltg_mdlm.testing.plugin_under_test import NotApplicable, Part, PluginUnderTest, Violation, check
from ltg_mdlm.testing.sample_rows import causal_rows, noise_for, require_equal, sample_batch, sample_step

SIZES = ModelConfig(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=toy.VOCAB,
    max_position_embeddings=64,
    position_bucket_size=8,
    cond_dim=None,
)
"""A token of a copy can reach a prediction through a third token, which takes two layers."""

ROUNDING = 1e-9
"""Logits that differ by less are equal."""


def views_of(part: Part[MaskingStrategy], batch: Batch, step: Step) -> list[Corrupted]:
    """All views of a batch at mask rate 0.4."""
    noise = noise_for(part.component, 0.4, batch)
    return list(part.component.corrupt_views(batch, causal_rows(batch, step), noise, step))


@check(masks_belong_to_rows_of_the_global_batch)
def visibility_and_copies_belong_to_the_rows(subject: PluginUnderTest) -> None:
    """Visibility and copies have the right types and shapes, and do not depend on other rows of the micro-batch."""
    components = subject.components()
    part, batch = subject.masking(components), sample_batch()
    step, where = sample_step(batch), part.where("corrupt")
    views = views_of(part, batch, step)
    if all(view.visibility is None and view.context_BS is None for view in views):
        raise NotApplicable("neither visibility nor context_BS is used")
    ResultChecks(components).views(views, batch)
    index = torch.arange(2, 9)
    for view, alone in zip(views, views_of(part, toy.rows_of(batch, index), step), strict=True):
        for (name, whole), (_, of_rows) in zip(extra_columns(view), extra_columns(alone), strict=True):
            require_equal(of_rows, whole[index], where, f"rows 2 to 8 on their own: {name}")


def extra_columns(view: Corrupted) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of copies and visibility."""
    if view.context_BS is not None:
        yield "context_BS", view.context_BS
    if view.visibility is not None:
        for field in dataclasses.fields(Visibility):
            yield f"visibility.{field.name}", getattr(view.visibility, field.name)


@check(
    a_step_gives_the_same_masks_whenever_it_is_asked,
    only_masked_tokens_of_masked_rows_are_changed,
    labels_are_the_hidden_tokens_where_they_are_predicted,
)
def no_prediction_depends_on_its_own_label(subject: PluginUnderTest) -> None:
    """The logits of a supervised position stay the same when its label changes, in the row and in every copy of it.

    Masked tokens that the input shows as they are, or replaced by others (80/10/10), are exempt.
    """
    part, batch = subject.masking(), toy.rows_of(sample_batch(), torch.tensor([0, 1, 2, 16, 17, 18]))
    step = sample_step(batch)
    torch.manual_seed(0)
    model = Transformer(SIZES).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        views = views_of(part, batch, step)
        logits = [logits_of(model, batch, view) for view in views]
        for target in range(batch.ids_BT.shape[1]):
            changed = with_other_token(batch, target)
            for before, after, logits_BTV in zip(views, views_of(part, changed, step), logits, strict=True):
                difference_BT = (logits_of(model, changed, after) - logits_BTV).abs().amax(2)
                require_independent(part, batch, target, before, after, difference_BT)


def with_other_token(batch: Batch, column: int) -> Batch:
    """The batch with another ordinary token in this column, where there is an ordinary one.

    In the toy vocabulary, both begin a word or neither does.
    """
    ids_BT = batch.ids_BT.clone()
    other_B = (ids_BT[:, column] - NUM_SPECIAL + 2) % (toy.VOCAB - NUM_SPECIAL) + NUM_SPECIAL
    ids_BT[:, column] = torch.where(batch.maskable_BT[:, column], other_B, ids_BT[:, column])
    return dataclasses.replace(batch, ids_BT=ids_BT)


def logits_of(model: Transformer, batch: Batch, view: Corrupted) -> Tensor:
    """float64[B, T, V]: as in training."""
    hidden_BTD = model(
        view.input_BT, batch.document_BT, view.causal_B, None, view.visibility, context_BS=view.context_BS
    )
    return model.logits(model.head(hidden_BTD))


def require_independent(
    part: Part[MaskingStrategy],
    batch: Batch,
    target: int,
    before: Corrupted,
    after: Corrupted,
    difference_BT: Tensor,
) -> None:
    """Raise `Violation` if the logits that predict the token of column `target` differ between the two views.

    Rows whose masks changed with the token are left out: their inputs differ in other places, too.
    """
    shown_BT = before.masked_BT & (before.input_BT != part.component.mask_id)
    # A strategy that shows all of its masked tokens as they are hides them by visibility, and not by replacing them.
    replaces = bool((before.input_BT != batch.ids_BT)[before.masked_BT].any())
    exempt_BT = shown_BT if replaces else torch.zeros_like(shown_BT)
    same_masks_B = (before.masked_BT == after.masked_BT).all(1)
    for row in range(len(difference_BT)):
        shift = 1 if bool(before.causal_B[row]) or part.component.predicts == "next" else 0
        column = target - shift
        if column < 0 or int(before.labels_BT[row, column]) == IGNORE or not same_masks_B[row]:
            continue
        difference = float(difference_BT[row, column])
        if difference > ROUNDING and not exempt_BT[row, target]:
            kind = "causal" if before.causal_B[row] else "masked"
            raise Violation(
                part.where("corrupt"),
                f"logits of column {column} that do not depend on its label, token {target} of the row ({kind} row"
                f" {int(batch.row_B[row])})",
                f"they change by {difference:.2g} with it: the column sees the token itself, or a copy of it,"
                " directly or through another column",
            )
