"""What components are given belongs to the caller."""

from __future__ import annotations

from ltg_mdlm.host.slots import Components
from ltg_mdlm.testing.masking_checks import masking_returns_tensors_of_the_promised_types_and_shapes
from ltg_mdlm.testing.objective_checks import (
    corrupted_at,
    random_logits,
    the_objective_returns_tensors_of_the_promised_types_and_shapes,
)
from ltg_mdlm.testing.plugin_under_test import NotApplicable, PluginUnderTest, check
from ltg_mdlm.testing.registration_checks import found
from ltg_mdlm.testing.sample_rows import causal_rows, sample_batch, sample_step, supervised_of, unchanged
from ltg_mdlm.testing.toy import noise_at
from ltg_mdlm.training.recipe import MicroBatch


@check(found, masking_returns_tensors_of_the_promised_types_and_shapes)
def masking_leaves_its_inputs_as_they_are(subject: PluginUnderTest) -> None:
    """Batch, modes, noise and step; the next component works with the same tensors."""
    part, batch = subject.masking(), sample_batch()
    step, noise = sample_step(batch), noise_at(0.005, batch)
    causal_B = causal_rows(batch, step)
    with unchanged(part.where("mask_probability"), batch, noise, step):
        part.component.mask_probability(batch, noise, step)
    with unchanged(part.where("hazard"), batch, noise, step):
        part.component.hazard(batch, noise, step)
    with unchanged(part.where("corrupt"), batch, noise, step, causal_B=causal_B):
        part.component.corrupt(batch, causal_B, noise, step)


@check(found, the_objective_returns_tensors_of_the_promised_types_and_shapes)
def the_objective_leaves_its_inputs_as_they_are(subject: PluginUnderTest) -> None:
    """Batch, corruption, supervised positions and logits."""
    components = subject.components()
    part, batch = subject.objective(components), sample_batch()
    step = sample_step(batch)
    micro_batch = corrupted_at(components, batch, step)
    supervised = supervised_of(components, micro_batch)
    with unchanged(part.where("denominators"), batch, micro_batch.corrupted):
        part.component.denominators(batch, micro_batch.corrupted)
    with unchanged(part.where("group"), supervised):
        part.component.group(supervised)
    if part.component.needs_logits:
        logits_NV = random_logits(supervised)
        with unchanged(part.where("loss_terms"), supervised, logits_NV=logits_NV):
            part.component.loss_terms(logits_NV, supervised, step)
    else:
        with unchanged(part.where("weights"), supervised):
            part.component.weights(supervised, step)


@check(found)
def conditioning_and_schedule_leave_their_inputs_as_they_are(subject: PluginUnderTest) -> None:
    """Batch, step, corruption and noise."""
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
        require_conditioning_leaves(subject, components, corrupted_at(components, batch, step))


def require_conditioning_leaves(subject: PluginUnderTest, components: Components, micro_batch: MicroBatch) -> None:
    """The same for the conditioning's two values."""
    part, rate_B = subject.time_conditioning(components), micro_batch.noise.rate_B.clone()
    with unchanged(part.where("value"), micro_batch.corrupted, micro_batch.noise):
        part.component.value(micro_batch.corrupted, micro_batch.noise)
    with unchanged(part.where("value_for_rate"), rate_B=rate_B):
        part.component.value_for_rate(rate_B)
