"""Batches of packed rows: a function of (seed, step) alone, for any number of ranks and any size of micro-batches.

Suffixes: B rows of a micro-batch, T tokens per row, P pieces of those rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltg_mdlm.core.batch import Batch
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.corpus import Split
from ltg_mdlm.data.packing import EpochOrder, Packing, RowPlan, fill_rows

_VALIDATION_KEY = 0x5EED
"""Key of the order of validation rows, which no setting changes."""


class RowLoader:
    """One rank's share of every global batch; the batches of the next step are built in a background thread."""

    def __init__(
        self,
        split: Split,
        schedule: BatchSchedule,
        *,
        seed: int,
        micro_batch_rows: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        """Rank r of W gets the rows r R // W to (r + 1) R // W of a global batch of R rows.

        Args:
            split: the training split that `schedule` was planned for
            schedule: rows and row length of every step
            seed: seed of the order of the rows
            micro_batch_rows: largest number of rows in a micro-batch
            rank: rank of this process
            world_size: number of processes
            device: device of the batches

        Raises:
            UserError: a global batch has fewer rows than there are ranks.
        """
        if schedule.smallest_batch < world_size:
            raise UserError(
                f"training.global_batch_rows: the smallest global batch has {schedule.smallest_batch} rows for "
                f"{world_size} processes; use fewer processes or larger batches"
            )
        self._split = split
        self._schedule = schedule
        self._seed = seed
        self._micro_batch_rows = micro_batch_rows
        self._rank, self._world_size = rank, world_size
        self._device = torch.device(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._built_ahead: dict[int, Future[list[Batch]]] = {}  # by step; at most one
        # Two epochs in use, and for `words_seen` the epoch that each earlier stage ended in.
        self._order = lru_cache(maxsize=len(schedule.stages) + 2)(self._order_of_epoch)

    def micro_batches(self, step: int) -> list[Batch]:
        """This rank's rows of a step, in micro-batches of nearly equal size."""
        future = self._built_ahead.get(step)
        batches = future.result() if future else self._build(step)
        self._built_ahead.clear()
        if step + 1 < self._schedule.max_steps:
            self._built_ahead[step + 1] = self._thread.submit(self._build, step + 1)
        return [_moved(batch, self._device) for batch in batches]

    def words_seen(self, step: int) -> int:
        """Words of the text in the global batches of the steps 0 to `step`; 0 for step -1."""
        return self._seen(step)[0]

    def tokens_seen(self, step: int) -> int:
        """Tokens without padding in the global batches of the steps 0 to `step`; 0 for step -1."""
        return self._seen(step)[1]

    def epoch(self, step: int) -> float:
        """Passes over the training split before a step."""
        return self._schedule.epoch(step)

    def _seen(self, step: int) -> tuple[int, int]:
        """Words and tokens of all whole epochs up to `step`, and of the rows of the epochs that are not complete."""
        words = tokens = 0
        for stage, rows in enumerate(self._schedule.rows_by_stage(step + 1)):
            plan = self._schedule.stages[stage].plan
            epochs, rest = divmod(rows, plan.rows)
            words += epochs * plan.words
            tokens += epochs * plan.tokens
            if rest:
                order = self._order(stage, epochs)
                words += int(order.words_R1[rest])
                tokens += int(order.tokens_R1[rest])
        return words, tokens

    def _order_of_epoch(self, stage: int, epoch: int) -> EpochOrder:
        return self._schedule.stages[stage].plan.order(self._seed, stage, epoch)

    def _build(self, step: int) -> list[Batch]:
        rows = self._schedule.rows(step)
        share_start, share_stop = (rank * rows // self._world_size for rank in (self._rank, self._rank + 1))
        stage = self._schedule.stage(step)
        plan = self._schedule.stages[stage].plan
        first = self._schedule.first_row_in_stage(step)
        batches = []
        for start, stop in micro_batch_bounds(share_start, share_stop, self._micro_batch_rows):
            parts = []  # a micro-batch takes rows from several epochs where one ends
            for epoch in range((first + start) // plan.rows, (first + stop - 1) // plan.rows + 1):
                before = epoch * plan.rows - first
                parts.append(self._order(stage, epoch).rows(max(start - before, 0), min(stop - before, plan.rows)))
            piece_P, count_B = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            batches.append(_batch(self._split, plan, piece_P, count_B, start, self._device))
        return batches


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The validation rows: the same at every validation and for every seed."""

    batches: list[Batch]
    """This rank's share."""
    rows: int
    """Rows of all ranks together."""


def validation_batches(
    split: Split,
    *,
    seq_len: int,
    micro_batch_rows: int,
    rows: int | None = None,
    packing: Packing = "documents_packed",
    end_of_document: bool = False,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> HeldOut:
    """Pack a validation split and take all its rows, or a fixed random choice of `rows` of them.

    `row_B` counts the chosen rows. The ranks share them as they share a global batch; the share of a rank may be empty.

    Raises:
        UserError: the rows are too short for a token.
    """
    plan = RowPlan(split, seq_len, packing=packing, end_of_document=end_of_document)
    count = plan.rows if rows is None else min(rows, plan.rows)
    order = plan.order(_VALIDATION_KEY)
    device = torch.device(device)
    share_start, share_stop = (r * count // world_size for r in (rank, rank + 1))
    batches = [
        _batch(split, plan, *order.rows(start, stop), start, device)
        for start, stop in micro_batch_bounds(share_start, share_stop, micro_batch_rows)
    ]
    return HeldOut(batches=[_moved(batch, device) for batch in batches], rows=count)


def micro_batch_bounds(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Divide the rows `start` to `stop` into the fewest parts of at most `most` rows; sizes differ by at most one."""
    rows = stop - start
    parts = -(-rows // most)
    return ((start + i * rows // parts, start + (i + 1) * rows // parts) for i in range(parts))


def _batch(
    split: Split,
    plan: RowPlan,
    piece_P: NDArray[np.int64],
    count_B: NDArray[np.int64],
    first_row: int,
    device: torch.device,
) -> Batch:
    """A batch in main memory, page-locked if it will be copied to a GPU."""
    rows = fill_rows(split, plan.pieces, piece_P, count_B, plan.seq_len)
    batch = Batch(
        ids_BT=torch.from_numpy(rows.ids_BT),
        document_BT=torch.from_numpy(rows.document_BT),
        position_BT=torch.from_numpy(rows.position_BT),
        maskable_BT=torch.from_numpy(rows.maskable_BT),
        row_B=torch.arange(first_row, first_row + len(count_B)),
    )
    if device.type == "cuda":
        return batch.map(Tensor.pin_memory)
    return batch


def _moved(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return batch.map(lambda value: value.to(device, non_blocking=True))
