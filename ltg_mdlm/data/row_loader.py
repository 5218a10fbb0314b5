"""Batches of packed rows: a function of (seed, step) alone, for any number of ranks and any size of micro-batches.

Suffixes: B rows of a micro-batch, T tokens per row, P pieces of those rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltg_mdlm.core.batch import Batch
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.row_order import RowTable
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.corpus import Split
from ltg_mdlm.data.epoch_sampling import EpochSampling
from ltg_mdlm.data.packing import EpochOrder, Packing, RowPlan, fill_rows

Epoch = tuple[int, int]
"""(stage, index within the stage)"""

ChooseRows = Callable[[int, int, RowTable, tuple[int, int, int]], NDArray[np.int64]]
"""As `RowOrder.epoch`."""

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
        micro_batch_rows: int | Sequence[int],
        full_micro_batches: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        sampling: EpochSampling | None = None,
        choose_rows: ChooseRows | None = None,
    ) -> None:
        """Rank r of W gets the rows r R // W to (r + 1) R // W of a global batch of R rows.

        Args:
            split: the training split that `schedule` was planned for
            schedule: rows and row length of every step
            seed: seed of the order of the rows
            micro_batch_rows: largest number of rows in a micro-batch, or one for every stage of the schedule
            full_micro_batches: let all micro-batches of a step but the last have this number of rows; otherwise, the
                rows are divided evenly
            rank: rank of this process
            world_size: number of processes
            device: device of the batches
            sampling: mixture or curriculum; by default every epoch has every piece once, in random order
            choose_rows: gets (stage, epoch, table of the rows, key), and returns the rows to train on, as `RowOrder`

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
        self.micro_batch_rows = (
            [micro_batch_rows] * len(schedule.stages) if isinstance(micro_batch_rows, int) else list(micro_batch_rows)
        )
        """Largest number of rows in a micro-batch of every stage."""
        self.full_micro_batches = full_micro_batches
        """Whether all micro-batches of a step but the last have this number of rows."""
        self._rank, self._world_size = rank, world_size
        self._device = torch.device(device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self.words_before = 0
        """Words that were seen under other settings, by a run that this one continues"""
        self._sampling, self._choose_rows = sampling, choose_rows
        self._built_ahead: dict[int, Future[list[Batch]]] = {}  # by step; at most one
        # Two epochs in use, and for `words_seen` the epoch that each earlier stage ended in.
        self._order = lru_cache(maxsize=len(schedule.stages) + 2)(self._order_of_epoch)
        self._chosen_R: dict[Epoch, NDArray[np.int64]] = {}  # of the epochs that are not over
        self._counts: dict[Epoch, tuple[int, int]] = {}  # words and tokens before epochs that are not all alike

    def micro_batches(self, step: int) -> list[Batch]:
        """This rank's rows of a step, in micro-batches.

        Those of the next step are built meanwhile; the rows of its epochs are chosen now, on this thread. With
        `choose_rows`, steps follow each other, from step 0 or from the one that `load_state_dict` restored.
        """
        if self._choose_rows is not None:
            self._choose({**self._rows_of_epochs(step), **self._rows_of_epochs(step + 1)})
        future = self._built_ahead.get(step)
        batches = future.result() if future else self._build(step)
        self._built_ahead.clear()
        if step + 1 < self._schedule.max_steps:
            self._built_ahead[step + 1] = self._thread.submit(self._build, step + 1)
        return [_moved(batch, self._device) for batch in batches]

    def words_seen(self, step: int) -> int:
        """Words of the text in the global batches of the steps 0 to `step`, and `words_before`."""
        return self.words_before + self._seen(step)[0]

    def tokens_seen(self, step: int) -> int:
        """Tokens without padding in the global batches of the steps 0 to `step`; 0 for step -1."""
        return self._seen(step)[1]

    def epoch(self, step: int) -> float:
        """Passes over the training split before a step."""
        return self._schedule.epoch(step)

    @property
    def is_uniform(self) -> bool:
        """Whether every epoch has every piece once, in random order."""
        return self._sampling is None and self._choose_rows is None

    def state_dict(self, step: int) -> dict[str, Tensor]:
        """What the loader needs to resume after `step` steps: chosen rows, and counts before the epochs in use.

        Empty if every epoch has every piece once: then all is a function of the settings.
        """
        if self.is_uniform:
            return {}
        in_use = sorted({**self._rows_of_epochs(step - 1), **self._rows_of_epochs(step)})
        counts = [[*epoch, *self._seen_before(*epoch)] for epoch in in_use]
        state = {"counts": torch.tensor(counts, dtype=torch.int64).view(-1, 4)}
        if self._sampling is not None:
            state["digest"] = torch.tensor(list(bytes.fromhex(self._sampling.digest)), dtype=torch.uint8)
        for (stage, epoch), chosen_R in self._chosen_R.items():
            state[f"rows/{stage}/{epoch}"] = torch.from_numpy(chosen_R)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            UserError: the difficulties of the documents have changed since then.
        """
        if self.is_uniform or not state:  # a run with uniform epochs saves no state
            return
        if self._sampling is not None and bytes(state["digest"].tolist()).hex() != self._sampling.digest:
            raise UserError(
                "data.curriculum: the scores of the documents are not those with which this run was started; restore"
                " the file, or choose another run folder with --out"
            )
        # Batches may have been built before, to measure their time.
        self._built_ahead.clear()
        self._order.cache_clear()
        self._chosen_R = {}
        self._counts = {(stage, epoch): (words, tokens) for stage, epoch, words, tokens in state["counts"].tolist()}
        for name, chosen in state.items():
            if name.startswith("rows/"):
                _, stage, epoch = name.split("/")
                self._chosen_R[int(stage), int(epoch)] = chosen.numpy().copy()

    def _seen(self, step: int) -> tuple[int, int]:
        """Words and tokens of the rows of the steps 0 to `step`."""
        words = tokens = 0
        if self.is_uniform:
            for stage, rows in enumerate(self._schedule.rows_by_stage(step + 1)):
                plan = self._schedule.stages[stage].plan
                epochs, rest = divmod(rows, plan.rows)
                words += epochs * plan.words
                tokens += epochs * plan.tokens
                if rest:
                    order = self._order(stage, epochs)
                    words += int(order.words_R1[rest])
                    tokens += int(order.tokens_R1[rest])
        elif step >= 0:
            (stage, epoch), place = list(self._rows_of_epochs(step).items())[-1]
            order, rows = self._order(stage, epoch), self._schedule.rows(step) - place
            words, tokens = self._seen_before(stage, epoch)
            words += int(order.words_R1[rows])
            tokens += int(order.tokens_R1[rows])
        return words, tokens

    def _seen_before(self, stage: int, epoch: int) -> tuple[int, int]:
        """Words and tokens of the rows before an epoch, if epochs differ in them."""
        first = stage, epoch
        missing = []
        while first not in self._counts and first != (0, 0):
            missing.append(first)
            ends = self._schedule.stages[first[0] - 1]
            first = (first[0], first[1] - 1) if first[1] else (first[0] - 1, -(-ends.rows // ends.plan.rows) - 1)
        words, tokens = self._counts.get(first, (0, 0))
        for following in reversed(missing):
            order, of_stage = self._order(*first), self._schedule.stages[first[0]]
            rows = min(of_stage.rows - first[1] * of_stage.plan.rows, of_stage.plan.rows)
            words, tokens = words + int(order.words_R1[rows]), tokens + int(order.tokens_R1[rows])
            self._counts[following] = words, tokens
            first = following
        return words, tokens

    def _order_of_epoch(self, stage: int, epoch: int) -> EpochOrder:
        order = self._order_before_choice(stage, epoch)
        if self._choose_rows is None:
            return order
        return self._schedule.stages[stage].plan.rearranged(order, self._chosen_R[stage, epoch])

    def _order_before_choice(self, stage: int, epoch: int) -> EpochOrder:
        if self._sampling is not None:
            return self._sampling.order(stage, epoch)
        return self._schedule.stages[stage].plan.order(self._seed, stage, epoch)

    def _choose(self, epochs: Collection[Epoch]) -> None:
        """Let `choose_rows` choose the rows of these epochs, and forget those of earlier ones."""
        assert self._choose_rows is not None
        for stage, epoch in sorted(epochs):
            if (stage, epoch) not in self._chosen_R:
                table = self._schedule.stages[stage].plan.table(self._order_before_choice(stage, epoch))
                self._chosen_R[stage, epoch] = self._choose_rows(stage, epoch, table, (self._seed, stage, epoch))
            self._seen_before(stage, epoch)  # while the rows of the epoch before it are known
        self._chosen_R = {epoch: self._chosen_R[epoch] for epoch in epochs}

    def _rows_of_epochs(self, step: int) -> dict[Epoch, int]:
        """The epochs from which a step takes rows, and the place of each one's first row in the global batch.

        The place is negative if the epoch began in an earlier step. Empty before the first and after the last step.
        """
        if not 0 <= step < self._schedule.max_steps:
            return {}
        stage, first = self._schedule.stage(step), self._schedule.first_row_in_stage(step)
        of_epoch = self._schedule.stages[stage].plan.rows
        epochs = range(first // of_epoch, (first + self._schedule.rows(step) - 1) // of_epoch + 1)
        return {(stage, epoch): epoch * of_epoch - first for epoch in epochs}

    def _build(self, step: int) -> list[Batch]:
        rows = self._schedule.rows(step)
        share_start, share_stop = (rank * rows // self._world_size for rank in (self._rank, self._rank + 1))
        stage = self._schedule.stage(step)
        plan, most = self._schedule.stages[stage].plan, self.micro_batch_rows[stage]
        epochs = self._rows_of_epochs(step)
        batches = []
        for start, stop in micro_batch_bounds(share_start, share_stop, most, full=self.full_micro_batches):
            parts = []  # a micro-batch takes rows from several epochs where one ends
            for epoch, before in epochs.items():
                if before < stop and start < before + plan.rows:
                    parts.append(self._order(*epoch).rows(max(start - before, 0), min(stop - before, plan.rows)))
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


def micro_batch_bounds(start: int, stop: int, most: int, *, full: bool = False) -> Iterator[tuple[int, int]]:
    """Divide the rows `start` to `stop` into the fewest parts of at most `most` rows.

    If `full`, all parts but the last have `most` rows.  Otherwise, their sizes differ by at most one.
    """
    if full:
        return ((first, min(first + most, stop)) for first in range(start, stop, most))
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
        source_BT=None if rows.source_BT is None else torch.from_numpy(rows.source_BT),
    )
    if device.type == "cuda":
        return batch.map(Tensor.pin_memory)
    return batch


def _moved(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return batch.map(lambda value: value.to(device, non_blocking=True))
