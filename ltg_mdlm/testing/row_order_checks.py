"""Checks of row orders: the rows exist, and every rank and every resumed run takes the same ones."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from ltg_mdlm.core.batch import Batch
from ltg_mdlm.core.row_order import RowOrder
from ltg_mdlm.storage.checkpoint import newest_checkpoint
from ltg_mdlm.testing import toy
from ltg_mdlm.testing.plugin_under_test import Part, PluginUnderTest, Violation, check
from ltg_mdlm.testing.registration_checks import found
from ltg_mdlm.testing.training_steps import take_steps, trainer_of
from ltg_mdlm.training.trainer import Trainer

EPOCHS = ((0, 0), (0, 1), (1, 0), (1, 7))
"""Stages and epochs that orders are asked for."""

SHORT_EPOCHS = ("training.global_batch_rows=100",)
"""Settings with which an epoch has two to three steps."""


def ask(part: Part[RowOrder], stage: int, number: int) -> Any:
    """The order of an epoch of the toy corpus with the seed 0."""
    return part.component.epoch(stage, number, toy.row_table(), (0, stage, number))


@check(found)
def a_row_order_names_rows_that_exist(subject: PluginUnderTest) -> None:
    """`epoch` returns int64[rows.count], and every value is the number of a row."""
    part = subject.row_order()
    for stage, number in EPOCHS:
        rows, row_R = toy.row_table(), ask(part, stage, number)
        expected = f"a NumPy array int64[{rows.count}] for epoch {number} of stage {stage}"
        if not isinstance(row_R, np.ndarray):
            raise Violation(part.where("epoch"), expected, type(row_R).__name__)
        if row_R.dtype != np.int64 or row_R.shape != (rows.count,):
            raise Violation(part.where("epoch"), expected, f"{row_R.dtype}{list(row_R.shape)}")
        if len(wrong := np.flatnonzero((row_R < 0) | (row_R >= rows.count))):
            raise Violation(
                part.where("epoch"), f"rows from 0 to {rows.count - 1}", f"row {row_R[wrong[0]]} at place {wrong[0]}"
            )


@check(a_row_order_names_rows_that_exist)
def a_row_order_is_a_function_of_its_arguments(subject: PluginUnderTest) -> None:
    """The same epoch has the same order whenever it is asked for, and the table of rows is not changed."""
    part, again = subject.row_order(), subject.row_order()
    for stage, number in EPOCHS:
        first = ask(part, stage, number)
        for other in (part, again):
            rows = toy.row_table()
            before = copy.deepcopy(rows)
            row_R = other.component.epoch(stage, number, rows, (0, stage, number))
            expected = f"the same rows for the same epoch {number} of stage {stage}; draw random numbers from `key`"
            if not np.array_equal(row_R, first):
                place = int(np.flatnonzero(row_R != first)[0])
                raise Violation(
                    part.where("epoch"), expected, f"row {row_R[place]} instead of {first[place]} at {place}"
                )
            for name in ("bound_R1", "start_P", "length_P", "words_P", "source_P"):
                if not np.array_equal(getattr(rows, name), getattr(before, name)):
                    raise Violation(part.where("epoch"), f"RowTable.{name} unchanged", "it was changed in place")


@check(a_row_order_is_a_function_of_its_arguments)
def a_row_order_is_the_same_on_every_rank(subject: PluginUnderTest) -> None:
    """Every rank of a run takes its rows from the same order."""
    parts = [
        subject.row_order(subject.components(toy.context(rank=rank, world_size=2, sum_over_ranks=lambda x: 2 * x)))
        for rank in (0, 1)
    ]
    for stage, number in EPOCHS:
        first, second = (ask(part, stage, number) for part in parts)
        if not np.array_equal(first, second):
            place = int(np.flatnonzero(first != second)[0])
            raise Violation(
                parts[0].where("epoch"),
                f"the same order on ranks 0 and 1 for epoch {number} of stage {stage}",
                f"rows {first[place]} and {second[place]} at place {place}",
            )


@check(a_row_order_is_the_same_on_every_rank)
def a_run_resumed_in_mid_epoch_takes_the_same_rows(subject: PluginUnderTest) -> None:
    """A run that is saved and resumed within an epoch has the rows of an uninterrupted run, also in later epochs."""
    part = subject.row_order()

    def next_rows(trainer: Trainer, steps: int) -> list[torch.Tensor]:
        places = []
        for _ in range(steps):
            batches: list[Batch] = trainer.run.loader.micro_batches(trainer.next_step)
            places.append(torch.cat([batch.position_BT for batch in batches]))
            take_steps(trainer, 1)
        return places

    with trainer_of(subject, *SHORT_EPOCHS) as (straight, _), trainer_of(subject, *SHORT_EPOCHS) as (resumed, _):
        take_steps(straight, 3)
        straight.save()
        straight.checkpoints.finish()
        saved = newest_checkpoint(straight.checkpoints.folder)
        assert saved is not None
        resumed.restore(straight.checkpoints.load(saved))
        for step, (expected, rows) in enumerate(zip(next_rows(straight, 5), next_rows(resumed, 5), strict=True), 4):
            if not torch.equal(expected, rows):
                raise Violation(
                    part.where("epoch"),
                    f"the rows of an uninterrupted run in step {step}, after a resume from step 3",
                    "other rows; what the order depends on belongs into state_dict",
                )
