"""Checks that train tiny models: finite losses, bit-exact resume, equal results for any number of micro-batches and
processes, and no synchronisation with the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ltg_mdlm.core.components import Component
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.storage.checkpoint import newest_checkpoint
from ltg_mdlm.testing.component_checks import COMPONENT_CHECKS, REGISTRATION_CHECKS
from ltg_mdlm.testing.host_reads import HostRead, cuda_waits_are_errors, no_host_reads_in_a_step
from ltg_mdlm.testing.learned_part_checks import every_learned_part_learns_from_its_own_loss
from ltg_mdlm.testing.optimizer_checks import OPTIMIZER_CHECKS
from ltg_mdlm.testing.plugin_under_test import (
    Check,
    NotApplicable,
    Part,
    PluginUnderTest,
    Violation,
    check,
    innermost_line,
)
from ltg_mdlm.testing.ranks import RankFailed, run_on_ranks
from ltg_mdlm.testing.row_order_checks import a_run_resumed_in_mid_epoch_takes_the_same_rows
from ltg_mdlm.testing.sample_rows import require_equal, unchanged
from ltg_mdlm.testing.training_steps import Steps, take_steps, train_steps, trainer_of
from ltg_mdlm.training.metric_sinks import Row
from ltg_mdlm.training.trainer import Trainer

ROUNDING = 1e-3
"""Relative tolerance for sums in another order, over a few steps of training."""

STEPS = 4
"""Steps of the runs that are compared."""

PATIENCE = 300.0
"""Seconds for two processes to start and train on a busy machine."""


def own_components(subject: PluginUnderTest, trainer: Trainer) -> list[Part[Component]]:
    """The components of the plugin in a run. Raises `NotApplicable` if it has none."""
    parts = subject.own(trainer.recipe.components)
    if not parts:
        raise NotApplicable(f"{subject.name} provides no component")
    return parts


@check(*COMPONENT_CHECKS)
def a_step_is_observed_and_logged_as_scalars(subject: PluginUnderTest) -> None:
    """`observe` does not change its argument. `metrics` returns numbers or tensors of one element, by name."""
    with trainer_of(subject) as (trainer, _):
        observe_a_step(subject, trainer)
        logged: set[str] = set()
        for part in own_components(subject, trainer):
            for key, value in part.component.metrics().items():
                if not isinstance(key, str) or not is_scalar(value):
                    expected = f"a number, or a tensor of one element, for {key!r}"
                    raise Violation(part.where("metrics"), expected, kind(value))
                if key in logged:
                    raise Violation(part.where("metrics"), "a name that no other component of the plugin logs", key)
                logged.add(key)


def observe_a_step(subject: PluginUnderTest, trainer: Trainer, *nll: float) -> None:
    """Let the components observe the next step, without an update of the model.

    `nll` are losses that replace those of the model, repeated in turn; the update of such a step is refused. Raises
    `Violation` if an observation is changed.
    """
    recipe, step = trainer.recipe, next(trainer.steps())
    one_K = torch.ones(len(recipe.components.objective.group_names))
    batches = trainer.run.loader.micro_batches(step.step)
    for micro_batch in (view for batch in batches for view in recipe.corrupt(batch, step)):
        output = trainer.run.loss(micro_batch, one_K, step)
        if nll:
            nll_N = torch.tensor(nll).repeat(len(output.nll_N))[: len(output.nll_N)]
            output = replace(output, nll_N=nll_N)
        where = f"{subject.label}: observe of its components"
        with unchanged(where, micro_batch.batch, output.supervised, correct_N=output.correct_N, nll_N=output.nll_N):
            recipe.observe(step, micro_batch, output)
    recipe.step_end(step, torch.tensor(bool(nll)))


def is_scalar(value: object) -> bool:
    """Whether a metric can be logged."""
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)


def kind(value: object) -> str:
    """Short description of a value."""
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@check(a_step_is_observed_and_logged_as_scalars)
def five_steps_of_training_have_finite_losses(subject: PluginUnderTest) -> None:
    """Losses are finite in the first five steps of training on the built-in corpus."""
    with trainer_of(subject) as (trainer, rows):
        own_components(subject, trainer)
        take_steps(trainer, 5)
        for row in rows.rows:
            if not math.isfinite(float(row["loss"])):
                raise Violation(subject.label, f"a finite loss in step {row['step']}", str(row["loss"]))
        if not any(float(row["loss"]) for row in rows.rows):
            raise Violation(subject.label, "a loss", "0 in all five steps, as with a noise schedule whose slope is 0")


trains = five_steps_of_training_have_finite_losses


@check(trains)
def a_resumed_run_goes_on_bitwise(subject: PluginUnderTest) -> None:
    """A run that is saved and resumed has bitwise the weights and states of an uninterrupted run."""
    with trainer_of(subject) as (straight, _), trainer_of(subject) as (resumed, _):
        own_components(subject, straight)
        take_steps(straight, 3)
        straight.save()
        straight.checkpoints.finish()
        saved = newest_checkpoint(straight.checkpoints.folder)
        assert saved is not None
        state = straight.checkpoints.load(saved)
        for key in straight.recipe.state_dict().keys() - state.components.keys():
            raise Violation(subject.label, f"{key} in the checkpoint", "it is not")
        resumed.restore(state)
        take_steps(straight, 2)
        take_steps(resumed, 2)
        where = f"{subject.label}: state_dict and load_state_dict of its components"
        for key, value in resumed.recipe.state_dict().items():
            require_equal(value, straight.recipe.state_dict()[key], where, f"state {key} after a resume:")
        weights = straight.run.loss.model.state_dict()
        for key, value in resumed.run.loss.model.state_dict().items():
            if not torch.equal(value, weights[key]):
                raise Violation(where, "bitwise the weights of an uninterrupted run", f"{key} differs after a resume")


def require_alike(where: str, one: Steps, other: Steps, how: str) -> None:
    """Raise `Violation` unless two runs have the same losses and states, up to rounding."""
    for row, (a, b) in enumerate(zip(one.losses, other.losses, strict=True)):
        if not math.isclose(a, b, rel_tol=ROUNDING):
            raise Violation(where, f"loss {a:.6f} in step {row + 1}, as without {how}", f"{b:.6f}")
    for key, value in one.state.items():
        same = (
            torch.equal(value, other.state[key])
            if not value.is_floating_point()
            else torch.allclose(value.double(), other.state[key].double(), rtol=ROUNDING, atol=1e-6, equal_nan=True)
        )
        if not same:
            raise Violation(where, f"the state {key} as without {how}", "a different state; sum over the global batch")


@check(trains)
def two_micro_batches_train_what_one_does(subject: PluginUnderTest) -> None:
    """Losses and states do not depend on the number of micro-batches."""
    where = f"{subject.label}: 1 against 2 micro-batches"
    one, two = (train_steps(subject, f"training.micro_batch_rows={rows}", steps=4, dropout=False) for rows in (6, 3))
    if not subject.own(one.components):
        raise NotApplicable(f"{subject.name} provides no component")
    require_alike(where, one, two, "a second micro-batch")


@dataclass(frozen=True)
class CountingRanks(Ranks):
    """A single process that records its calls of `sum_over_ranks`."""

    sums: list[Tensor] = field(default_factory=list)

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Record and return the tensor."""
        self.sums.append(tensor)
        return tensor


@check(trains)
def validation_leaves_the_state_as_it_is(subject: PluginUnderTest) -> None:
    """A validation between two steps changes neither the state of the components nor what is trained afterwards."""
    with trainer_of(subject) as (plain, _), trainer_of(subject) as (validated, _):
        parts = own_components(subject, validated)
        for trainer in (plain, validated):
            take_steps(trainer, 2)
        before = {key: value.clone() for key, value in validated.recipe.state_dict().items()}
        validator = validated.run.validator
        assert validator is not None
        with validated.run.ema.swap():
            validator(0.5, 1.0)
            validator(1.0, validated.run.schedule.epoch(validated.run.schedule.max_steps))  # after the last step
        where = parts[0].where("corrupt") if len(parts) == 1 else f"{subject.label}: its components"
        advice = "count and adapt only if step.training"
        for key, value in validated.recipe.state_dict().items():
            if not torch.equal(value, before[key]):
                raise Violation(where, f"state {key} unchanged by a validation; {advice}", "other values")
        # What was counted in the corruption of a step may act on the state at its end, and on the step after it.
        for trainer in (plain, validated):
            take_steps(trainer, 2)
        states = plain.recipe.state_dict()
        for key, value in validated.recipe.state_dict().items():
            if not torch.equal(value, states[key]):
                found = "other values two steps later"
                raise Violation(where, f"state {key} as without a validation; {advice}", found)
        weights = plain.run.loss.model.state_dict()
        for key, value in validated.run.loss.model.state_dict().items():
            if not torch.equal(value, weights[key]):
                found = f"other weights two steps later, for example {key}"
                raise Violation(where, f"training as without a validation; {advice}", found)


@check(trains)
def saving_and_loading_do_not_communicate(subject: PluginUnderTest) -> None:
    """`state_dict` and `load_state_dict` work if only one rank calls them."""
    ranks = CountingRanks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    with trainer_of(subject, ranks=ranks) as (trainer, _):
        take_steps(trainer, 2)
        for part in own_components(subject, trainer):
            before = len(ranks.sums)
            state = {key: value.clone() for key, value in part.component.state_dict().items()}
            method = "state_dict"
            if len(ranks.sums) == before:
                part.component.load_state_dict(state)
                method = "load_state_dict"
            if len(ranks.sums) != before:
                expected = "no communication, since other ranks may not call it"
                raise Violation(part.where(method), expected, "a call of sum_over_ranks")


@check(trains)
def a_refused_step_leaves_finite_state(subject: PluginUnderTest) -> None:
    """Observations of a refused step contain NaN and infinity. Adaptive state stays finite."""
    with trainer_of(subject) as (trainer, _):
        parts = own_components(subject, trainer)
        take_steps(trainer, 1)
        observe_a_step(subject, trainer, math.nan, math.inf)
        for part in parts:
            for key, value in part.component.state_dict().items():
                if not torch.isfinite(value).all():
                    raise Violation(
                        part.where("observe"),
                        f"state {key} finite after a step whose nll_N is not",
                        f"{float(value[~torch.isfinite(value)][0])}; exclude such values (torch.isfinite)",
                    )


def require_no_waiting(
    subject: PluginUnderTest, trainer: Trainer, watch: Callable[[], AbstractContextManager[None]]
) -> None:
    """Raise `Violation`, with the line, if a step that is not logged waits for the device."""
    own_components(subject, trainer)
    steps = trainer.steps()
    trainer.train_step(next(steps))  # the first step is logged
    step = next(steps)
    try:
        with watch():
            trainer.train_step(step)
    except (HostRead, RuntimeError) as error:
        where = f"{subject.label}: {innermost_line(error)}"
        raise Violation(where, "steps that never read the value of a tensor on the host", str(error)) from error


@check(trains)
def steps_never_read_from_the_device(subject: PluginUnderTest) -> None:
    """Steps that are not logged use no item(), float(), bool(), nonzero or x[mask], which synchronise with a GPU."""
    with trainer_of(subject, "logging.every=100") as (trainer, _):
        require_no_waiting(subject, trainer, no_host_reads_in_a_step)


@check(trains)
def steps_never_wait_for_cuda(subject: PluginUnderTest) -> None:
    """Steps on a GPU do not synchronise, as detected by CUDA, and all tensors are on the right device."""
    if not torch.cuda.is_available():
        raise NotApplicable("there is no CUDA device")
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cuda", 0))
    with trainer_of(subject, "logging.every=100", ranks=ranks) as (trainer, _):
        require_no_waiting(subject, trainer, cuda_waits_are_errors)


@check(two_micro_batches_train_what_one_does)
def two_processes_train_what_one_does(subject: PluginUnderTest) -> None:
    """Two processes have the losses and states of one process, and bitwise the same states on both ranks."""
    alone = train_steps(subject, steps=STEPS, dropout=False)
    if not subject.own(alone.components):
        raise NotApplicable(f"{subject.name} provides no component")
    where = f"{subject.label}: 1 against 2 processes"
    try:
        results = run_on_ranks(
            steps_on_a_rank, 2, subject.name, dict(subject.options), tuple(subject.sets), timeout=PATIENCE
        )
    except RankFailed as error:
        raise Violation(where, f"{STEPS} steps", str(error).strip()) from error
    (rows, first), (_, second) = results
    for key, value in first.items():
        if not torch.equal(value, second[key]):
            raise Violation(
                where,
                f"state {key} equal on every rank",
                "a different state on rank 1; sum with RunContext.sum_over_ranks in step_end before using it",
            )
    require_alike(where, alone, Steps(tuple(rows), alone.components, first), "a second process")


def steps_on_a_rank(
    ranks: Ranks, name: str, options: Mapping[str, Any], sets: Sequence[str]
) -> tuple[Sequence[Row], dict[str, torch.Tensor]]:
    """The logged rows and the states of components on this rank."""
    done = train_steps(PluginUnderTest(name, options, sets), steps=STEPS, ranks=ranks, dropout=False)
    return done.rows, done.state


TRAINING_CHECKS = (
    a_step_is_observed_and_logged_as_scalars,
    five_steps_of_training_have_finite_losses,
    every_learned_part_learns_from_its_own_loss,
    a_resumed_run_goes_on_bitwise,
    two_micro_batches_train_what_one_does,
    two_processes_train_what_one_does,
    a_run_resumed_in_mid_epoch_takes_the_same_rows,
    validation_leaves_the_state_as_it_is,
    saving_and_loading_do_not_communicate,
    a_refused_step_leaves_finite_state,
    steps_never_read_from_the_device,
    steps_never_wait_for_cuda,
)

CHECKS: tuple[Check, ...] = (*REGISTRATION_CHECKS, *COMPONENT_CHECKS, *TRAINING_CHECKS, *OPTIMIZER_CHECKS)
"""All checks, in the order of their verdicts."""
