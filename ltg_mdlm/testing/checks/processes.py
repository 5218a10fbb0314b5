"""Two processes against one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ltg_mdlm.distributed import Ranks
from ltg_mdlm.metrics import Row
from ltg_mdlm.testing.checks.training import NO_DROPOUT, require_alike, two_micro_batches_train_what_one_does
from ltg_mdlm.testing.ranks import RankFailed, run_on_ranks
from ltg_mdlm.testing.subject import PluginUnderTest
from ltg_mdlm.testing.training import Steps, train_steps
from ltg_mdlm.testing.verdict import check
from ltg_mdlm.testing.violation import NotApplicable, Violation

STEPS = 4
PATIENCE = 300.0
"""Seconds: two processes that start on a busy machine."""


@check(two_micro_batches_train_what_one_does)
def two_processes_train_what_one_does(subject: PluginUnderTest) -> None:
    """Losses and states of two gloo ranks are those of one process, and equal on both, bit by bit."""
    alone = train_steps(subject, NO_DROPOUT, steps=STEPS)
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
                "rank 1 has another; sum with RunContext.sum_over_ranks in step_end before using it",
            )
    require_alike(where, alone, Steps(tuple(rows), alone.components, first), "a second process")


def steps_on_a_rank(
    ranks: Ranks, name: str, options: Mapping[str, Any], sets: Sequence[str]
) -> tuple[Sequence[Row], dict[str, torch.Tensor]]:
    """The logged rows and the states of components, as this rank has them."""
    done = train_steps(PluginUnderTest(name, options, sets), NO_DROPOUT, steps=STEPS, ranks=ranks)
    return done.rows, done.state
