"""The slot `row_order`: which rows of an epoch are trained on, and when.

Suffixes: R rows of an epoch, P pieces of documents in these rows; a trailing 1 means one more, as in bounds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.components import Component


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowTable:
    """The rows of one epoch, in the order in which they are trained on if nobody changes it.

    A row consists of pieces of documents.  Pieces are dealt to rows anew in every epoch.
    """

    count: int
    """R, rows of the epoch; the same in every epoch of a stage"""
    seq_len: int
    """tokens per row"""
    bound_R1: NDArray[np.int64]
    """the pieces of row r are those from bound[r] up to, but without, bound[r + 1]"""
    start_P: NDArray[np.int64]
    """position of the piece's first token in `CorpusView.tokens`"""
    length_P: NDArray[np.int32]
    """tokens of the piece, without `<s>` and `</s>`"""
    words_P: NDArray[np.int64]
    """words that begin in the piece"""
    source_P: NDArray[np.int16] | None
    """index of the piece's source in `CorpusView.source_names`; None if sources are unknown"""

    def sum_by_row(self, value_P: NDArray[Any]) -> NDArray[Any]:
        """[R], in the type of the values: the sum over the pieces of every row."""
        return np.add.reduceat(value_P, self.bound_R1[:-1])


class RowOrder(Component, ABC):
    """Chooses the rows of every epoch and their order, such as a curriculum, or rows of high loss.

    The slot is optional: without it, an epoch has every row once, in random order.
    """

    @abstractmethod
    def epoch(self, stage: int, number: int, rows: RowTable, key: tuple[int, int, int]) -> NDArray[np.int64]:
        """int64[rows.count]: the row to train on at every place of the epoch; rows may be repeated or left out.

        Called on every rank, which must return the same, at the start of the step before the first one of the epoch, so
        that its batches can be prepared; at the start of the very first step for the first epoch.  An order may depend
        on the state of the component, and is then saved in checkpoints with it.

        Args:
            stage: index of the stage; a stage has rows of one length (`training.seq_len_schedule`)
            number: index of the epoch within the stage
            rows: the rows of the epoch, in random order
            key: (seed of the run, stage, number), for random numbers: `numpy.random.default_rng(key)`
        """
