"""Batches of packed rows: a function of (seed, step) alone, for any number of ranks and any size of micro-batches.

Suffixes: B rows of a micro-batch, T tokens per row, P pieces of those rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ltg_mdlm.core.batch import Batch
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.corpus import Split
from ltg_mdlm.data.packing import EpochOrder, Packing, RowPlan, fill_rows

_VALIDATION_KEY = 0x5EED  # an order that no setting changes


class RowLoader:
    """One rank's share of every global batch."""

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
        """Rank r of W gets rows [r R // W, (r + 1) R // W) of a step's global batch of R rows.

        Args:
            split: the training split that `schedule` was planned for
            schedule: rows and row length of every step
            seed: of the order of the rows
            micro_batch_rows: rows of a micro-batch, at most
            rank: of this process
            world_size: number of processes
            device: where the batches are wanted

        Raises UserError if some global batch has fewer rows than there are ranks.
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
        self._ahead: tuple[int, Future[list[Batch]]] | None = None
        # Two epochs in use, and one half-read epoch at the end of each earlier stage for `words_seen`.
        self._order = lru_cache(maxsize=len(schedule.stages) + 2)(self._order_of_epoch)

    def micro_batches(self, step: int) -> list[Batch]:
        """The rank's rows of a step, in micro-batches of nearly equal size; the next step's are made meanwhile."""
        is_ready = self._ahead is not None and self._ahead[0] == step
        batches = self._ahead[1].result() if self._ahead is not None and is_ready else self._build(step)
        self._ahead = (step + 1, self._thread.submit(self._build, step + 1)) if self._is_step(step + 1) else None
        return [_moved(batch, self._device) for batch in batches]

    def words_seen(self, step: int) -> int:
        """Words of the text in the global batches of all steps up to `step`, itself included; 0 for step -1."""
        return self._seen(step, lambda plan: plan.words, lambda order: order.words_R1)

    def tokens_seen(self, step: int) -> int:
        """Tokens other than padding in the global batches of all steps up to `step`, itself included."""
        return self._seen(step, lambda plan: plan.tokens, lambda order: order.tokens_R1)

    def epoch(self, step: int) -> float:
        """Passes over the training split before a step."""
        return self._schedule.epoch(step)

    def _seen(
        self, step: int, in_epoch: Callable[[RowPlan], int], before: Callable[[EpochOrder], NDArray[np.int64]]
    ) -> int:
        """Sum over whole epochs and, in the order of the last epoch, over its first rows."""
        total = 0
        for index, rows in enumerate(self._schedule.rows_by_stage(step + 1)):
            plan = self._schedule.stages[index].plan
            epochs, rest = divmod(rows, plan.rows)
            total += epochs * in_epoch(plan)
            total += int(before(self._order(index, epochs))[rest]) if rest else 0
        return total

    def _is_step(self, step: int) -> bool:
        return step < self._schedule.max_steps

    def _order_of_epoch(self, stage: int, epoch: int) -> EpochOrder:
        return self._schedule.stages[stage].plan.order(self._seed, stage, epoch)

    def _build(self, step: int) -> list[Batch]:
        rows = self._schedule.rows(step)
        start, stop = (rank * rows // self._world_size for rank in (self._rank, self._rank + 1))
        stage = self._schedule.stage(step)
        first = self._schedule.first_row_in_stage(step)
        plan = self._schedule.stages[stage].plan
        batches = []
        for begin, end in micro_batch_bounds(start, stop, self._micro_batch_rows):
            piece_P, count_B = self._pieces(stage, first + begin, first + end)
            batches.append(_batch(self._split, plan, piece_P, count_B, begin, self._device))
        return batches

    def _pieces(self, stage: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64[P], int64[B]: pieces of the rows `start` to `stop` of a stage, and how many each row has."""
        rows = self._schedule.stages[stage].plan.rows
        parts = []
        for epoch in range(start // rows, (stop - 1) // rows + 1):
            first, last = max(start - epoch * rows, 0), min(stop - epoch * rows, rows)
            parts.append(self._order(stage, epoch).rows(first, last))
        piece_P, count_B = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return piece_P, count_B


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The validation rows: the same at every validation, whatever the seed."""

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
    """Pack a validation split, and take all its rows or a fixed random choice of `rows` of them.

    `row_B` counts the chosen rows, and the ranks share them as they share a global batch; a rank's share may be empty.
    Raises UserError for rows too short to hold a token.
    """
    plan = RowPlan(split, seq_len, packing=packing, end_of_document=end_of_document)
    count = plan.rows if rows is None else min(rows, plan.rows)
    order = plan.order(_VALIDATION_KEY)
    start, stop = (r * count // world_size for r in (rank, rank + 1))
    batches = [
        _batch(split, plan, *order.rows(begin, end), begin, torch.device(device))
        for begin, end in micro_batch_bounds(start, stop, micro_batch_rows)
    ]
    return HeldOut(batches=[_moved(batch, torch.device(device)) for batch in batches], rows=count)


def micro_batch_bounds(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Divide the rows `start` to `stop` into the fewest parts of at most `most` rows, their sizes differing by one."""
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
    """A batch in main memory, page-locked if it is to go to a GPU."""
    rows = fill_rows(split, plan.pieces, piece_P, count_B, plan.seq_len)
    batch = Batch(
        ids_BT=torch.from_numpy(rows.ids_BT),
        document_BT=torch.from_numpy(rows.document_BT),
        position_BT=torch.from_numpy(rows.position_BT),
        maskable_BT=torch.from_numpy(rows.maskable_BT),
        row_B=torch.arange(first_row, first_row + len(count_B)),
    )
    return (
        Batch(**{f.name: getattr(batch, f.name).pin_memory() for f in fields(batch)})
        if device.type == "cuda"
        else batch
    )


def _moved(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return Batch(**{f.name: getattr(batch, f.name).to(device, non_blocking=True) for f in fields(batch)})
