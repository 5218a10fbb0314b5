"""Time conditionings: what the model is told, and the module that takes it in."""

from __future__ import annotations

import torch

from ltg_mdlm.testing.checks.registration import found
from ltg_mdlm.testing.rows import all_masked, causal_rows, noise_at_the_ends, sample_batch, sample_step
from ltg_mdlm.testing.subject import PluginUnderTest
from ltg_mdlm.testing.tensors import require_finite, require_tensor
from ltg_mdlm.testing.verdict import check
from ltg_mdlm.testing.violation import NotApplicable, Violation

COND_DIM = 12


@check(found)
def the_model_is_told_a_finite_value_and_zero_in_causal_rows(subject: PluginUnderTest) -> None:
    """float32[B] at every noise level, or None if inactive."""
    components = subject.components()
    part, batch = subject.time_conditioning(components), sample_batch()
    step, where = sample_step(batch), part.where("value")
    causal_B = causal_rows(batch, step)
    for noise in noise_at_the_ends(batch):
        value_B = part.component.value(all_masked(components, batch, noise, step).corrupted, noise)
        if not part.component.active:
            if value_B is not None:
                raise Violation(where, "None, since active is False", "a tensor")
            continue
        require_tensor(value_B, where, "value", torch.float32, (len(batch.row_B),), batch.ids_BT.device)
        assert value_B is not None
        require_finite(value_B, where, f"value at mask rate {float(noise.rate_B[0]):g}")
        if value_B[causal_B].any():
            row = int((causal_B & (value_B != 0)).nonzero()[0])
            raise Violation(where, "0 for causal rows", f"{float(value_B[row]):g} in row {row}, which is causal")


@check(found)
def every_mask_rate_has_a_value_for_evaluation(subject: PluginUnderTest) -> None:
    """`value_for_rate` is float32[B] and finite from 0 to 1, both included; None if inactive."""
    part = subject.time_conditioning()
    where, rate_B = part.where("value_for_rate"), torch.tensor([0.0, 1e-6, 0.5, 1.0])
    for dtype in (torch.float32, torch.float64):
        value_B = part.component.value_for_rate(rate_B.to(dtype))
        if not part.component.active:
            if value_B is not None:
                raise Violation(where, "None, since active is False", "a tensor")
            continue
        require_tensor(value_B, where, "value", torch.float32, (len(rate_B),), rate_B.device)
        assert value_B is not None
        wrong_B = ~torch.isfinite(value_B)
        if wrong_B.any():
            raise Violation(
                where, f"a finite value for mask rate {float(rate_B[wrong_B][0]):g}", f"{float(value_B[wrong_B][0])}"
            )


@check(every_mask_rate_has_a_value_for_evaluation)
def the_embedding_maps_values_to_vectors(subject: PluginUnderTest) -> None:
    """float[B] to [B, cond_dim], differentiable."""
    part = subject.time_conditioning()
    if not part.component.active:
        raise NotApplicable("active is False: the model has no conditioning")
    where, value_B = part.where("embedding"), part.component.value_for_rate(torch.tensor([0.0, 0.3, 1.0]))
    embedding = part.component.embedding(COND_DIM)
    vector_BC = embedding(value_B)
    require_tensor(vector_BC, where, "embedding(cond_dim)(value_B)", torch.float32, (3, COND_DIM), torch.device("cpu"))
    require_finite(vector_BC.detach(), where, "vectors")
    if not any(p.requires_grad for p in embedding.parameters()):
        return
    vector_BC.sum().backward()
    for name, parameter in embedding.named_parameters():
        if parameter.grad is not None:
            require_finite(parameter.grad, where, f"gradient of {name}")
