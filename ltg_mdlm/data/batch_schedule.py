"""The rows of every step: pure arithmetic, known before training begins.

Training has stages with different row lengths. Within a stage the steps take the rows of its epochs one after the
other, a global batch per step. A new stage begins with a new epoch, packed at its own row length.

Suffixes: S steps, K configured stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.config import MAX_STEPS
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.corpus import Split
from ltg_mdlm.data.packing import Packing, RowPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Consecutive steps with one row length."""

    seq_len: int
    first_step: int
    steps: int
    rows: int
    """Rows of all its steps."""
    plan: RowPlan
    """The rows of an epoch."""

    @property
    def epochs(self) -> float:
        return self.rows / self.plan.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The whole training in numbers. Tokens and words are exact for whole epochs, and proportional for parts."""

    epochs: float
    rows: int
    tokens: int
    """Tokens without padding."""
    words: int
    tokens_by_length: tuple[tuple[int, int], ...]
    """(row length, tokens) of each stage."""


class BatchSchedule:
    """Row length and rows of the global batch of every step.

    Attributes:
        max_steps: number of steps
        stages: the stages that have at least one step, in order
    """

    def __init__(
        self,
        plans: Mapping[int, RowPlan],
        *,
        stages: Sequence[tuple[float, int]],
        global_batch_rows: int,
        max_steps: int | None = None,
        epochs: float | None = None,
        ramp: tuple[float, float] | None = None,
    ) -> None:
        """Plan `max_steps` steps, or as many whole steps as `epochs` passes over the training split allow.

        Args:
            plans: the rows of an epoch, by row length
            stages: (progress, row length) at which each stage begins; the first begins at 0
            global_batch_rows: rows per step at the first row length; other lengths have the same number of tokens
            max_steps: number of steps; exclusive with `epochs`
            epochs: passes over the training split, summed over the stages
            ramp: (start, until): the batch grows linearly from this share of its size to its full size at this progress

        Raises:
            UserError: `epochs` is less than one global batch, or more than `MAX_STEPS` of them.
        """
        assert (max_steps is None) != (epochs is None)
        assert stages[0][0] == 0
        self._plans = [plans[length] for _, length in stages]
        self._begins = [Fraction(str(progress)) for progress, _ in stages]
        self._batch_rows_K = global_batch_rows * np.array([stages[0][1] / length for _, length in stages])
        self._ramp = ramp
        self.max_steps = max_steps if max_steps is not None else self._steps_for(float(epochs or 0))
        stage_S, self._rows_S = self._plan_steps(self.max_steps)
        self._first_row_S = np.cumsum(self._rows_S) - self._rows_S
        self.stages = []
        for k in np.unique(stage_S).tolist():
            first, last = np.searchsorted(stage_S, [k, k + 1]).tolist()
            rows = int(self._rows_S[first:last].sum())
            plan = self._plans[k]
            self.stages.append(Stage(seq_len=plan.seq_len, first_step=first, steps=last - first, rows=rows, plan=plan))

    @classmethod
    def plan(
        cls,
        split: Split,
        *,
        stages: Sequence[tuple[float, int]],
        global_batch_rows: int,
        max_steps: int | None = None,
        epochs: float | None = None,
        ramp: tuple[float, float] | None = None,
        packing: Packing = "documents_packed",
        end_of_document: bool = False,
    ) -> BatchSchedule:
        """Pack a split at every row length and plan the steps. The other arguments are those of `BatchSchedule`."""
        lengths = {length for _, length in stages}
        plans = {length: RowPlan(split, length, packing=packing, end_of_document=end_of_document) for length in lengths}
        return cls(
            plans, stages=stages, global_batch_rows=global_batch_rows, max_steps=max_steps, epochs=epochs, ramp=ramp
        )

    def _plan_steps(self, max_steps: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64[S], int64[S]: configured stage, and rows of the global batch, of each of `max_steps` steps."""
        step_S = np.arange(max_steps)
        first_step_K = [math.ceil(progress * max_steps) for progress in self._begins]
        stage_S = np.searchsorted(first_step_K, step_S, side="right") - 1
        start, until = self._ramp or (1.0, 0.0)
        grown_S = np.minimum(step_S / (until * max_steps), 1) if until else np.ones(max_steps)
        rows_S = np.rint(self._batch_rows_K[stage_S] * (start + (1 - start) * grown_S))
        return stage_S, np.maximum(rows_S, 1).astype(np.int64)

    def _steps_for(self, epochs: float) -> int:
        """The largest number of steps that makes at most `epochs` passes, by bisection."""

        def epochs_in(max_steps: int) -> float:
            stage_S, rows_S = self._plan_steps(max_steps)
            rows_K = np.bincount(stage_S, weights=rows_S, minlength=len(self._plans))
            return float(sum(rows / plan.rows for rows, plan in zip(rows_K, self._plans, strict=True)))

        if epochs_in(1) > epochs:
            first = self._plan_steps(1)[1][0]
            raise UserError(
                f"training.epochs: {epochs:g} epochs are less than one step: an epoch has {self._plans[0].rows:,} rows,"
                f" the first global batch {first:,}; lower training.global_batch_rows"
            )
        low, high = 1, 2
        while epochs_in(high) <= epochs:
            if high > MAX_STEPS:
                raise UserError(f"training.epochs: {epochs:g} epochs are more than {MAX_STEPS:,} steps")
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if epochs_in(middle) <= epochs else (low, middle)
        return low

    def stage(self, step: int) -> int:
        """Index in `stages` of the stage of a step."""
        return sum(stage.first_step <= step for stage in self.stages) - 1

    def seq_len(self, step: int) -> int:
        """Tokens per row of a step."""
        return self.stages[self.stage(step)].seq_len

    def rows(self, step: int) -> int:
        """Rows of the global batch of a step."""
        return int(self._rows_S[step])

    def first_row(self, step: int) -> int:
        """Rows of all earlier steps."""
        return int(self._first_row_S[step])

    def first_row_in_stage(self, step: int) -> int:
        """Rows of the earlier steps of the same stage."""
        return self.first_row(step) - self.first_row(self.stages[self.stage(step)].first_step)

    def rows_by_stage(self, steps: int) -> list[int]:
        """Rows of each stage in the first `steps` steps."""
        done = [min(max(steps - stage.first_step, 0), stage.steps) for stage in self.stages]
        return [
            int(self._rows_S[stage.first_step : stage.first_step + count].sum())
            for stage, count in zip(self.stages, done, strict=True)
        ]

    def equal_micro_batches(self, stage: int, most: int, *, world_size: int, overhead: float) -> int:
        """Rows, at most `most`, of micro-batches that are all of one size, for every rank and every step of a stage.

        The last micro-batch of a step is filled up, so a growing global batch should be divided into smaller ones.
        Steps with a share of s rows per rank take about ceil(s / rows) (rows + overhead): the rows with the least sum
        over the stage, out of even divisions of the largest share.
        """
        first_step, steps = self.stages[stage].first_step, self.stages[stage].steps
        share_S = -(-self._rows_S[first_step : first_step + steps] // world_size)
        largest = int(share_S.max())
        fewest = -(-largest // most)
        sizes = [-(-largest // parts) for parts in range(fewest, 4 * fewest + 1)]
        return min(sizes, key=lambda rows: float((-(-share_S // rows) * (rows + overhead)).sum()))

    def epoch(self, step: int) -> float:
        """Passes over the training split before a step; for `max_steps`, those of the whole training."""
        rows = self.rows_by_stage(step)
        return float(sum(count / stage.plan.rows for count, stage in zip(rows, self.stages, strict=True)))

    @property
    def smallest_batch(self) -> int:
        """Rows of the smallest global batch."""
        return int(self._rows_S.min())

    def totals(self) -> Totals:
        """Epochs, rows, tokens and words of the whole training."""
        tokens = tuple((stage.seq_len, round(stage.epochs * stage.plan.tokens)) for stage in self.stages)
        return Totals(
            epochs=self.epoch(self.max_steps),
            rows=int(self._rows_S.sum()),
            tokens=sum(count for _, count in tokens),
            words=round(sum(stage.epochs * stage.plan.words for stage in self.stages)),
            tokens_by_length=tokens,
        )

    def describe(self, *, uniform: bool = True) -> list[str]:
        """The arithmetic of each stage and of the whole training, as lines for the terminal.

        Tokens and words are approximate for a part of an epoch, and if epochs are not `uniform`, because of a mixture,
        a curriculum or a plugin.
        """
        exact = uniform and all(float(stage.epochs).is_integer() for stage in self.stages)
        about = "" if exact else "about "
        lines = []
        for number, stage in enumerate(self.stages, 1):
            rows_S = self._rows_S[stage.first_step : stage.first_step + stage.steps]
            batch = f"{rows_S[0]:,}" if rows_S.min() == rows_S.max() else f"{rows_S[0]:,} to {rows_S[-1]:,}"
            plan = stage.plan
            epoch = f"{plan.rows:,} rows ({plan.non_pad_share:.1%} tokens), {plan.rows / rows_S.mean():,.1f} steps"
            steps = f"{stage.steps:,} steps of {batch} rows of {stage.seq_len}"
            lines.append(f"stage {number}: {steps}; an epoch: {epoch}; {stage.epochs:.2f} epochs")
        totals = self.totals()
        lines.append(
            f"in total {self.max_steps:,} steps, {totals.epochs:.2f} epochs, {totals.rows:,} rows, "
            f"{about}{totals.tokens:,} tokens, {about}{totals.words:,} words"
        )
        return lines
