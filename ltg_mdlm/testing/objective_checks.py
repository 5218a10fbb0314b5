"""Checks of objectives: groups, weights and denominators, independent of the split of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ltg_mdlm.core.batch import Step, Supervised
from ltg_mdlm.core.components import Objective
from ltg_mdlm.testing.masking_checks import masks_belong_to_rows_of_the_global_batch
from ltg_mdlm.testing.plugin_under_test import Part, PluginUnderTest, Violation, check
from ltg_mdlm.testing.registration_checks import found
from ltg_mdlm.testing.sample_rows import (
    all_masked,
    corrupted_at,
    noise_at_the_ends,
    require_finite,
    require_tensor,
    sample_batch,
    sample_step,
    supervised_of,
    unchanged,
)
from ltg_mdlm.testing.toy import VOCAB, noise_at, rows_of

SPLITS = (slice(0, 5), slice(5, 6), slice(6, None))
"""Rows of the sample batch that are tested as micro-batches."""


@check(found)
def the_objective_returns_tensors_of_the_promised_types_and_shapes(subject: PluginUnderTest) -> None:
    """Groups are int64[N] in [0, K), denominators float32[K], weights float32[N] or loss terms float32[K]."""
    components = subject.components()
    part, batch = subject.objective(components), sample_batch()
    objective, step = part.component, sample_step(batch)
    groups = len(objective.group_names)
    micro_batch = all_masked(components, batch, noise_at(0.3, batch), step)
    supervised = supervised_of(components, micro_batch)
    shape, device = tuple(supervised.label_N.shape), batch.ids_BT.device
    group_N = objective.group(supervised)
    require_tensor(group_N, part.where("group"), "group", torch.int64, shape, device)
    if ((group_N < 0) | (group_N >= groups)).any():
        low, high = int(group_N.min()), int(group_N.max())
        raise Violation(part.where("group"), f"0 .. {groups - 1}, one for each of group_names", f"{low} .. {high}")
    denominators = objective.denominators(batch, micro_batch.corrupted)
    require_tensor(denominators, part.where("denominators"), "denominators", torch.float32, (groups,), device)
    constant = objective.constant(batch, micro_batch.corrupted)
    require_tensor(constant, part.where("constant"), "constant", torch.float64, (), device)
    if objective.needs_logits:
        terms = objective.loss_terms(random_logits(supervised), supervised, step)
        require_tensor(terms, part.where("loss_terms"), "loss_terms", torch.float32, (groups,), device)
        return
    nll_weight_N, z_weight_N = objective.weights(supervised, step)
    require_tensor(nll_weight_N, part.where("weights"), "nll weight", torch.float32, shape, device)
    if z_weight_N is not None:
        require_tensor(z_weight_N, part.where("weights"), "z weight", torch.float32, shape, device)


def random_logits(supervised: Supervised, scale: float = 1.0) -> Tensor:
    """float32[N, V] that require gradients."""
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(len(supervised.label_N), VOCAB, generator=generator)).requires_grad_()


@check(the_objective_returns_tensors_of_the_promised_types_and_shapes)
def losses_and_gradients_are_finite_at_the_ends(subject: PluginUnderTest) -> None:
    """Losses and gradients are finite at mask rates near 0 and 1, at steep and flat slopes, and for large logits."""
    components = subject.components()
    part, batch = subject.objective(components), sample_batch()
    step = sample_step(batch)
    where = part.where("loss_terms" if part.component.needs_logits else "weights")
    for noise in noise_at_the_ends(batch):
        at = f"mask rate {float(noise.rate_B[0]):g}, slope {float(noise.slope_B[0]):g}"
        supervised = supervised_of(components, all_masked(components, batch, noise, step))
        logits_NV = random_logits(supervised, scale=50.0)
        loss = loss_of(part.component, logits_NV, supervised, step, where, at)
        loss.backward()  # type: ignore[no-untyped-call]
        assert logits_NV.grad is not None
        require_finite(loss.detach(), where, f"loss at {at}")
        require_finite(logits_NV.grad, where, f"gradients at {at}")


def loss_of(objective: Objective, logits_NV: Tensor, supervised: Supervised, step: Step, where: str, at: str) -> Tensor:
    """Scalar: sum of the loss over groups, before the division by denominators."""
    if objective.needs_logits:
        return objective.loss_terms(logits_NV, supervised, step).sum()
    nll_weight_N, z_weight_N = objective.weights(supervised, step)
    require_finite(nll_weight_N, where, f"weights at {at}")
    nll_N = torch.nn.functional.cross_entropy(logits_NV, supervised.label_N, reduction="none")
    loss = (nll_weight_N * nll_N).sum()
    return loss if z_weight_N is None else loss + (z_weight_N * logits_NV.logsumexp(1).square()).sum()


@check(the_objective_returns_tensors_of_the_promised_types_and_shapes, masks_belong_to_rows_of_the_global_batch)
def denominators_are_positive_and_add_up_over_micro_batches(subject: PluginUnderTest) -> None:
    """Denominators of micro-batches and views sum to that of the whole batch, so that losses are no means of means."""
    components = subject.components()
    part, batch = subject.objective(components), sample_batch()
    step, where = sample_step(batch), part.where("denominators")
    whole = corrupted_at(components, batch, step)
    whole_K = torch.stack([part.component.denominators(view.batch, view.corrupted) for view in whole]).sum(0)
    group_N = torch.cat([part.component.group(supervised_of(components, view)) for view in whole])
    used_K = group_N.bincount(minlength=len(whole_K)) > 0
    if not (whole_K[used_K] > 0).all():
        raise Violation(where, "more than 0 for every group with supervised positions", str(whole_K.tolist()))
    parts = [view for rows in SPLITS for view in corrupted_at(components, rows_of(batch, rows), step)]
    shares = [part.component.denominators(m.batch, m.corrupted) for m in parts]
    if not torch.allclose(torch.stack(shares).sum(0), whole_K, rtol=1e-5):
        raise Violation(
            where,
            f"denominators of micro-batches that add up to {whole_K.tolist()}, that of the whole batch",
            " + ".join(str(share.tolist()) for share in shares),
        )


@check(the_objective_returns_tensors_of_the_promised_types_and_shapes, masks_belong_to_rows_of_the_global_batch)
def the_loss_of_a_row_does_not_depend_on_other_rows(subject: PluginUnderTest) -> None:
    """Weights, or loss terms, are the same in a micro-batch and in the whole batch."""
    components = subject.components()
    part, batch = subject.objective(components), sample_batch()
    step = sample_step(batch)
    micro_batches = [corrupted_at(components, rows_of(batch, rows), step) for rows in (slice(None), *SPLITS)]
    for view in zip(*micro_batches, strict=True):
        whole, *parts = (supervised_of(components, micro_batch) for micro_batch in view)
        if part.component.needs_logits:
            require_terms_add_up(part, whole, step)
            continue
        weight_N = torch.cat([part.component.weights(supervised, step)[0] for supervised in parts])
        expected_N = part.component.weights(whole, step)[0]
        wrong_N = ~torch.isclose(weight_N, expected_N, rtol=1e-5)
        if wrong_N.any():
            raise Violation(
                part.where("weights"),
                f"weight {float(expected_N[wrong_N][0]):.6g} in a micro-batch, as in the whole batch",
                f"{float(weight_N[wrong_N][0]):.6g}; divide in denominators, which are summed over the global batch",
            )


def require_terms_add_up(part: Part[Objective], supervised: Supervised, step: Step) -> None:
    """Check that `loss_terms` of slices of the positions add up to that of all positions."""
    logits_NV = random_logits(supervised).detach()
    whole_K = part.component.loss_terms(logits_NV, supervised, step)
    middle = len(logits_NV) // 3
    added_K = sum(
        part.component.loss_terms(logits_NV[rows], supervised[rows], step)
        for rows in (slice(0, middle), slice(middle, None))
    )
    if not torch.allclose(torch.as_tensor(added_K), whole_K, rtol=1e-4):
        raise Violation(
            part.where("loss_terms"),
            f"terms of two slices that add up to {whole_K.tolist()}, those of all positions",
            str(torch.as_tensor(added_K).tolist()),
        )


@check(the_objective_returns_tensors_of_the_promised_types_and_shapes)
def the_objective_leaves_its_inputs_as_they_are(subject: PluginUnderTest) -> None:
    """Batch, corruption, supervised positions and logits are unchanged."""
    components = subject.components()
    part, batch = subject.objective(components), sample_batch()
    step = sample_step(batch)
    micro_batch = corrupted_at(components, batch, step)[0]
    supervised = supervised_of(components, micro_batch)
    with unchanged(part.where("denominators"), batch, micro_batch.corrupted):
        part.component.denominators(batch, micro_batch.corrupted)
        part.component.constant(batch, micro_batch.corrupted)
    with unchanged(part.where("group"), supervised):
        part.component.group(supervised)
    if part.component.needs_logits:
        logits_NV = random_logits(supervised)
        with unchanged(part.where("loss_terms"), supervised, logits_NV=logits_NV):
            part.component.loss_terms(logits_NV, supervised, step)
    else:
        with unchanged(part.where("weights"), supervised):
            part.component.weights(supervised, step)
