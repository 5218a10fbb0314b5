"""Checks of what a plugin registers, of time conditionings and of row modes."""

from __future__ import annotations

import inspect

import torch

from ltg_mdlm.core.batch import Step
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.host.discovery import find
from ltg_mdlm.host.plugin_host import hooks_of, import_plugin
from ltg_mdlm.testing.plugin_under_test import NotApplicable, PluginUnderTest, Violation, check, line_of
from ltg_mdlm.testing.sample_rows import (
    all_masked,
    causal_rows,
    corrupted_at,
    noise_at_the_ends,
    require_equal,
    require_finite,
    require_tensor,
    sample_batch,
    sample_step,
    unchanged,
)

UNKNOWN = "no_such_option_of_any_plugin"

COND_DIM = 12
"""Width of the embeddings that are tested."""

STEPS, EPOCHS, ROWS = 200, 10, 64
"""Steps and epochs of a run, and rows of its global batches, for row modes."""

CPU = torch.device("cpu")


@check()
def it_is_found_by_its_entry_point_and_fills_what_it_registers(subject: PluginUnderTest) -> None:
    """The metadata names the plugin, its class can be imported, its hooks exist and return components."""
    where = f"plugin {subject.name!r}, entry-point group ltg_mdlm"
    try:
        subject.components()
    except UserError as error:
        raise Violation(where, "a plugin that can be selected and built", str(error)) from error


found = it_is_found_by_its_entry_point_and_fills_what_it_registers


@check(found)
def an_unknown_option_is_refused(subject: PluginUnderTest) -> None:
    """A misspelt option is an error and is not ignored."""
    try:
        subject.host(f"plugins.{subject.name}.{UNKNOWN}=1")
    except UserError:
        return
    model = import_plugin(find(subject.name)).options_model
    where = f"{subject.label}: {model.__name__} ({line_of(model)})"
    raise Violation(
        where, f"an error for plugins.{subject.name}.{UNKNOWN}", "accepted; keep extra='forbid' of PluginOptions"
    )


@check(found)
def every_option_is_described(subject: PluginUnderTest) -> None:
    """Every option has a description, which `plugins show` prints."""
    model = import_plugin(find(subject.name)).options_model
    if not model.model_fields:
        raise NotApplicable(f"{subject.name} has no options")
    without = [name for name, field in model.model_fields.items() if not (field.description or "").strip()]
    if without:
        where = f"{subject.label}: {model.__name__} ({line_of(model)})"
        raise Violation(where, "Field(..., description=...) for every option", f"none for {', '.join(without)}")


@check(found)
def the_plugin_and_its_hooks_are_described(subject: PluginUnderTest) -> None:
    """The plugin and every component have a docstring; that of their module is enough."""
    plugin_class = import_plugin(find(subject.name))
    where = f"{subject.label}: {plugin_class.__name__} ({line_of(plugin_class)})"
    if not _described(plugin_class):
        raise Violation(where, "a docstring of the class or its module", "none")
    for part in subject.own(subject.components()):
        hook = getattr(plugin_class, f"ltg_mdlm_{part.slot}", None)
        if not _described(type(part.component)) and not inspect.getdoc(hook):
            name = type(part.component).__name__
            raise Violation(part.where("__init__"), f"a docstring of {name}, its module, or the hook", "none")
    if not hooks_of(plugin_class):
        raise Violation(where, "at least one method marked @hookimpl", "none: the plugin does nothing")


def _described(owner: type) -> bool:
    """Whether a class itself, or its module, has a docstring. That of a base class does not count."""
    module = inspect.getmodule(owner)
    return bool((owner.__dict__.get("__doc__") or "").strip() or (module and (module.__doc__ or "").strip()))


@check(found)
def the_model_is_told_a_finite_value_and_zero_in_causal_rows(subject: PluginUnderTest) -> None:
    """`value` is a finite float32[B] at every noise level and 0 in causal rows, or None if inactive."""
    components = subject.components()
    part, batch = subject.time_conditioning(components), sample_batch()
    step, where = sample_step(batch), part.where("value")
    causal_B = causal_rows(batch, step)
    for noise in noise_at_the_ends(batch):
        conditioning_B = part.component.value(all_masked(components, batch, noise, step).corrupted, noise)
        if not part.component.active:
            if conditioning_B is not None:
                raise Violation(where, "None, since active is False", "a tensor")
            continue
        require_tensor(conditioning_B, where, "value", torch.float32, (len(batch.row_B),), batch.ids_BT.device)
        assert conditioning_B is not None
        require_finite(conditioning_B, where, f"value at mask rate {float(noise.rate_B[0]):g}")
        if conditioning_B[causal_B].any():
            row = int((causal_B & (conditioning_B != 0)).nonzero()[0])
            raise Violation(where, "0 for causal rows", f"{float(conditioning_B[row]):g} in row {row}, which is causal")


@check(found)
def every_mask_rate_has_a_value_for_evaluation(subject: PluginUnderTest) -> None:
    """`value_for_rate` is a finite float32[B] for mask rates from 0 to 1, both included, or None if inactive."""
    part = subject.time_conditioning()
    where, rate_B = part.where("value_for_rate"), torch.tensor([0.0, 1e-6, 0.5, 1.0])
    for dtype in (torch.float32, torch.float64):
        conditioning_B = part.component.value_for_rate(rate_B.to(dtype))
        if not part.component.active:
            if conditioning_B is not None:
                raise Violation(where, "None, since active is False", "a tensor")
            continue
        require_tensor(conditioning_B, where, "value", torch.float32, (len(rate_B),), rate_B.device)
        assert conditioning_B is not None
        wrong_B = ~torch.isfinite(conditioning_B)
        if wrong_B.any():
            raise Violation(
                where,
                f"a finite value for mask rate {float(rate_B[wrong_B][0]):g}",
                f"{float(conditioning_B[wrong_B][0])}",
            )


@check(every_mask_rate_has_a_value_for_evaluation)
def the_embedding_maps_values_to_vectors(subject: PluginUnderTest) -> None:
    """`embedding` maps float[B] to [B, cond_dim], with finite values and gradients."""
    part = subject.time_conditioning()
    if not part.component.active:
        raise NotApplicable("active is False: the model has no conditioning")
    where, conditioning_B = part.where("embedding"), part.component.value_for_rate(torch.tensor([0.0, 0.3, 1.0]))
    embedding = part.component.embedding(COND_DIM)
    vector_BC = embedding(conditioning_B)
    require_tensor(
        vector_BC, where, "embedding(cond_dim)(conditioning_B)", torch.float32, (3, COND_DIM), torch.device("cpu")
    )
    require_finite(vector_BC.detach(), where, "vectors")
    if not any(p.requires_grad for p in embedding.parameters()):
        return
    vector_BC.sum().backward()
    for name, parameter in embedding.named_parameters():
        if parameter.grad is not None:
            require_finite(parameter.grad, where, f"gradient of {name}")


@check(found)
def conditioning_and_schedule_leave_their_inputs_as_they_are(subject: PluginUnderTest) -> None:
    """Batch, step, corruption and noise are unchanged."""
    components, batch = subject.components(), sample_batch()
    own = {slot for slot in ("noise_schedule", "time_conditioning") if components.providers[slot] == subject.name}
    if not own:
        raise NotApplicable(f"{subject.name} leaves noise_schedule and time_conditioning to others")
    step = sample_step(batch)
    if "noise_schedule" in own:
        schedule = subject.noise_schedule(components)
        with unchanged(schedule.where("sample"), batch, step):
            schedule.component.sample(batch, step)
    if "time_conditioning" in own:
        part, micro_batch = subject.time_conditioning(components), corrupted_at(components, batch, step)[0]
        rate_B = micro_batch.noise.rate_B.clone()
        with unchanged(part.where("value"), micro_batch.corrupted, micro_batch.noise):
            part.component.value(micro_batch.corrupted, micro_batch.noise)
        with unchanged(part.where("value_for_rate"), rate_B=rate_B):
            part.component.value_for_rate(rate_B)


def step_at(index: int) -> Step:
    """A step of a run in which all steps have the same number of rows."""
    progress = index / STEPS
    return Step(seed=0, step=index, progress=progress, epoch=EPOCHS * progress, rows=ROWS, first_row=index * ROWS)


@check(found)
def the_modes_of_a_step_are_a_function_of_the_step(subject: PluginUnderTest) -> None:
    """`causal` is bool[R] over the global batch or None, and does not depend on earlier calls."""
    part = subject.row_mode()
    where = part.where("causal")
    first = [part.component.causal(step_at(index), CPU) for index in range(8)]
    for index in reversed(range(8)):
        causal_R, again_R = first[index], part.component.causal(step_at(index), CPU)
        if (causal_R is None) != (again_R is None):
            raise Violation(where, f"the same answer for step {index} again", "None in one call, and rows in the other")
        if causal_R is None or again_R is None:
            continue
        require_tensor(causal_R, where, "causal_R", torch.bool, (ROWS,), CPU)
        require_equal(again_R, causal_R, where, f"step {index} asked again: causal_R")


@check(the_modes_of_a_step_are_a_function_of_the_step)
def rows_are_in_the_modes_that_are_declared(subject: PluginUnderTest) -> None:
    """`modes`, which decides how a model is evaluated, lists exactly the modes of its rows."""
    part = subject.row_mode()
    causal = sum(0 if (c := part.component.causal(step_at(i), CPU)) is None else int(c.sum()) for i in range(STEPS))
    seen = {"causal": causal, "masked": STEPS * ROWS - causal}
    for mode, rows in seen.items():
        if (mode in part.component.modes) != bool(rows):
            declared = ", ".join(sorted(part.component.modes))
            seen_rows = f"{rows} {mode} rows of {STEPS * ROWS}"
            raise Violation(part.where("modes"), f"rows in these modes, and no others: {declared}", seen_rows)
