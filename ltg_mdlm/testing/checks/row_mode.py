"""Row modes: which rows of a global batch are causal."""

from __future__ import annotations

import torch

from ltg_mdlm.api import Step
from ltg_mdlm.testing.checks.registration import found
from ltg_mdlm.testing.subject import PluginUnderTest
from ltg_mdlm.testing.tensors import require_equal, require_tensor
from ltg_mdlm.testing.verdict import check
from ltg_mdlm.testing.violation import Violation

STEPS, ROWS = 200, 64
CPU = torch.device("cpu")


def step_at(index: int) -> Step:
    """One of a run of equal steps."""
    return Step(seed=0, step=index, progress=index / STEPS, epoch=index / STEPS, rows=ROWS, first_row=index * ROWS)


@check(found)
def the_modes_of_a_step_are_a_function_of_the_step(subject: PluginUnderTest) -> None:
    """bool[R] over the global batch or None, whatever was asked before: every rank asks for itself."""
    part = subject.row_mode()
    where = part.where("causal")
    first = [part.component.causal(step_at(index), CPU) for index in range(8)]
    for index in reversed(range(8)):
        causal_R, again_R = first[index], part.component.causal(step_at(index), CPU)
        if (causal_R is None) != (again_R is None):
            raise Violation(where, f"the same answer for step {index} again", "None once, and rows once")
        if causal_R is None or again_R is None:
            continue
        require_tensor(causal_R, where, "causal_R", torch.bool, (ROWS,), CPU)
        require_equal(again_R, causal_R, where, f"step {index} asked again: causal_R")


@check(the_modes_of_a_step_are_a_function_of_the_step)
def rows_are_in_the_modes_that_are_declared(subject: PluginUnderTest) -> None:
    """`modes` tells evaluation what a trained model may be asked for."""
    part = subject.row_mode()
    causal = sum(0 if (c := part.component.causal(step_at(i), CPU)) is None else int(c.sum()) for i in range(STEPS))
    seen = {"causal": causal, "masked": STEPS * ROWS - causal}
    for mode, rows in seen.items():
        if (mode in part.component.modes) != bool(rows):
            declared = ", ".join(sorted(part.component.modes))
            seen_rows = f"{rows} {mode} rows of {STEPS * ROWS}"
            raise Violation(part.where("modes"), f"rows in these modes, and no others: {declared}", seen_rows)
