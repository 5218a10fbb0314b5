"""Checks of learned parts: their initial weights are those of the seed, and their own loss trains all of them."""

from __future__ import annotations

import torch

from ltg_mdlm.host.slots import Components
from ltg_mdlm.testing.plugin_under_test import NotApplicable, PluginUnderTest, Violation, check
from ltg_mdlm.testing.registration_checks import found
from ltg_mdlm.testing.training_steps import trainer_of

STEPS = 3
"""Steps in which every learned parameter must get a gradient at least once."""


@check(found)
def learned_parts_begin_with_the_weights_of_the_seed(subject: PluginUnderTest) -> None:
    """Initial weights of the components' modules are drawn from torch's generator, which the host seeds."""
    first, second = (subject.components() for _ in range(2))
    require_learned_parts(subject, first)
    for name, module in first.modules.items():
        weights = second.modules[name].state_dict()
        for key, value in module.state_dict().items():
            if not torch.equal(value, weights[key]):
                expected = f"the same initial {name}.{key} whenever components are built with one seed"
                raise Violation(f"{subject.label}: modules of its components", expected, "other values")


@check(learned_parts_begin_with_the_weights_of_the_seed)
def every_learned_part_learns_from_its_own_loss(subject: PluginUnderTest) -> None:
    """`own_loss` gives every parameter of `modules` a gradient that is finite, and not 0 in all steps."""
    require_learned_parts(subject, subject.components())
    with trainer_of(subject) as (trainer, _):
        recipe, loss = trainer.recipe, trainer.run.loss
        learned = dict(loss.learned_parts.named_parameters())
        moved: set[str] = set()
        for step, _ in zip(trainer.steps(), range(STEPS), strict=False):
            batches = trainer.run.loader.micro_batches(step.step)
            views = [view for batch in batches for view in recipe.corrupt(batch, step)]
            denominators_K = recipe.denominators(views).clamp(min=1)
            for view in views:
                loss(view, denominators_K, step).loss.backward()
            for name, parameter in learned.items():
                if parameter.requires_grad:
                    assert parameter.grad is not None
                    if not torch.isfinite(parameter.grad).all():
                        expected = f"a finite gradient of {name} in step {step.step + 1}"
                        raise Violation(f"{subject.label}: own_loss of its components", expected, "NaN or infinity")
                    if torch.count_nonzero(parameter.grad):
                        moved.add(name)
                else:
                    moved.add(name)
            # A part may begin with weights of zero in its last layer, which let nothing else learn in the first step.
            trainer.run.optimizer.step(step.lr)
            trainer.run.optimizer.zero_grad()
        if idle := learned.keys() - moved:
            raise Violation(
                f"{subject.label}: own_loss of its components",
                f"a gradient of {min(idle)}, which `modules` returns",
                f"0 in the first {STEPS} steps: nothing would ever change it",
            )


def require_learned_parts(subject: PluginUnderTest, components: Components) -> None:
    """Raises `NotApplicable` if no component has learned parts."""
    if not components.modules:
        raise NotApplicable(f"no component of {subject.name} has learned parts")
