"""Checks of optimisers: shapes, refusal, resume, equal steps on all ranks, and no synchronisation with the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import ResultError
from ltg_mdlm.core.optimizer import Optimizer
from ltg_mdlm.core.random import stream_key
from ltg_mdlm.host.discovery import find
from ltg_mdlm.host.plugin_host import hooks_of, import_plugin
from ltg_mdlm.host.run_context import model_config
from ltg_mdlm.model.transformer import Transformer
from ltg_mdlm.storage.named_tensors import copy_named
from ltg_mdlm.testing import toy
from ltg_mdlm.testing.component_checks import REGISTRATION_CHECKS
from ltg_mdlm.testing.host_reads import HostRead, NoHostReads
from ltg_mdlm.testing.plugin_under_test import (
    NotApplicable,
    PluginUnderTest,
    Violation,
    check,
    innermost_line,
    line_of,
)
from ltg_mdlm.testing.ranks import RankFailed, run_on_ranks
from ltg_mdlm.testing.training_steps import take_steps, trainer_of
from ltg_mdlm.training.parameter_groups import parameter_groups

HOOK = "ltg_mdlm_optimizer"

LR = 0.01

PATIENCE = 300.0
"""Seconds for two processes to start on a busy machine."""


@dataclass(frozen=True)
class Trial:
    """The optimiser of the plugin on a small model, with gradients that are a function of the step."""

    subject: PluginUnderTest
    optimizer: Optimizer
    model: Transformer
    rank: int

    @staticmethod
    def of(subject: PluginUnderTest, rank: int = 0) -> Trial:
        """A newly built model and optimiser.  Raises `NotApplicable` if the plugin provides none."""
        host = subject.host(selecting(subject))
        host.build(toy.context(rank=rank), toy.statistics(toy.zipfian_counts()))
        torch.manual_seed(0)
        model = Transformer(model_config(host.config, toy.VOCAB, conditioned=True))
        optimizer = host.optimizer(parameter_groups(model, 0.1))
        assert optimizer is not None
        return Trial(subject, optimizer, model, rank)

    def where(self, method: str) -> str:
        """Plugin, hook, class, method and line, for messages."""
        owner = type(self.optimizer)
        return f"{self.subject.label}: {owner.__name__}.{method} of {HOOK} ({line_of(owner, method)})"

    def step(self, number: int, *, ok: bool = True, spoilt: bool = False) -> None:
        """Take a step, which is refused without `ok`, and if a gradient is `spoilt` by NaN."""
        generator = torch.Generator().manual_seed(number)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        if spoilt:
            next(self.model.parameters()).grad.fill_(math.nan)  # type: ignore[union-attr]
        # As in a training step, in which dropout differs between ranks.
        torch.manual_seed(stream_key(0, number, self.rank, "dropout")[0])
        self.optimizer.step(LR, torch.tensor(ok))

    def tensors(self) -> dict[str, Tensor]:
        """Copies of all parameters and of the state, by name."""
        named = {f"parameter {name}": p.detach() for name, p in self.model.named_parameters()}
        named |= {f"state {name}": t for name, t in self.optimizer.state_dict().items() if "refused" not in name}
        return {name: tensor.clone() for name, tensor in named.items()}

    def require_same(
        self, method: str, expected: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> None:
        """Raise `Violation` unless all tensors are equal; NaN differs from itself."""
        for name, tensor in before.items():
            if not torch.equal(tensor, after[name]):
                raise Violation(self.where(method), expected, f"{name} differs")


def selecting(subject: PluginUnderTest) -> str:
    """The setting that selects the plugin's optimiser.  Raises `NotApplicable` if it provides none."""
    if HOOK not in hooks_of(import_plugin(find(subject.name))):
        raise NotApplicable(f"{subject.name} provides no optimiser")
    return f"optimizer.name={subject.name}"


@check(*REGISTRATION_CHECKS)
def an_optimiser_keeps_names_shapes_and_types(subject: PluginUnderTest) -> None:
    """In three steps of training, updates have the shapes and types of the parameters, and so has the state."""
    with trainer_of(subject, selecting(subject)) as (trainer, _):
        optimizer = trainer.run.optimizer
        try:
            take_steps(trainer, 3)
        except ResultError as error:
            where = f"{subject.label}: {type(optimizer).__name__} of {HOOK} ({line_of(type(optimizer))})"
            raise Violation(
                where, "tensors like the parameter, and like the state of `initial_state`", str(error)
            ) from None
        for name, parameter in trainer.run.loss.model.named_parameters():
            if not parameter.isfinite().all():
                where = f"{subject.label}: {type(optimizer).__name__}.update of {HOOK}"
                raise Violation(where, "finite parameters after three steps", f"{name} is not finite")


keeps_shapes = an_optimiser_keeps_names_shapes_and_types


@check(keeps_shapes)
def a_refused_update_changes_nothing(subject: PluginUnderTest) -> None:
    """Parameters and state are bitwise unchanged by updates with NaN, and by updates that are refused otherwise."""
    trial = Trial.of(subject)
    trial.step(0)
    before = trial.tensors()
    trial.step(1, ok=False)
    trial.step(2, spoilt=True)
    expected = "nothing changed by a refused update; do not modify arguments in place"
    trial.require_same("new_state", expected, before, trial.tensors())


@check(keeps_shapes)
def a_resumed_optimiser_continues_bitwise(subject: PluginUnderTest) -> None:
    """An optimiser that is restored from its named state takes bitwise the steps of an uninterrupted one."""
    straight, resumed = Trial.of(subject), Trial.of(subject)
    for number in range(3):
        straight.step(number)
    copy_named(resumed.optimizer.state_dict(), straight.optimizer.state_dict(), "the state")
    resumed.model.load_state_dict(straight.model.state_dict())
    for number in range(3, 5):
        straight.step(number)
        resumed.step(number)
    expected = "bitwise the steps of an uninterrupted run; return all state from new_state"
    straight.require_same("update", expected, straight.tensors(), resumed.tensors())


@check(keeps_shapes)
def an_optimiser_takes_the_same_steps_on_every_rank(subject: PluginUnderTest) -> None:
    """Two processes with equal gradients have bitwise equal parameters and state."""
    trial = Trial.of(subject)
    try:
        results = run_on_ranks(
            steps_on_a_rank, 2, subject.name, dict(subject.options), tuple(subject.sets), timeout=PATIENCE
        )
    except RankFailed as error:
        raise Violation(trial.where("update"), "three steps in two processes", str(error).strip()) from error
    trial.require_same("update", "equal steps on every rank; draw no random numbers", *results)


def steps_on_a_rank(ranks: Ranks, name: str, options: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Tensor]:
    """Parameters and state of this rank after three steps."""
    trial = Trial.of(PluginUnderTest(name, options, sets), ranks.rank)
    for number in range(3):
        trial.step(number)
    return trial.tensors()


@check(keeps_shapes)
def an_optimiser_never_reads_from_the_device(subject: PluginUnderTest) -> None:
    """Updates use no item(), float(), bool(), nonzero or x[mask], which synchronise with a GPU."""
    trial = Trial.of(subject)
    trial.step(0)
    try:
        with NoHostReads():
            trial.step(1)
    except HostRead as error:
        where = f"{subject.label}: {innermost_line(error)}"
        raise Violation(where, "updates that never read the value of a tensor on the host", str(error)) from error


OPTIMIZER_CHECKS = (
    an_optimiser_keeps_names_shapes_and_types,
    a_refused_update_changes_nothing,
    a_resumed_optimiser_continues_bitwise,
    an_optimiser_takes_the_same_steps_on_every_rank,
    an_optimiser_never_reads_from_the_device,
)
"""The checks of plugins that provide an optimiser."""
