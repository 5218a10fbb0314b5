"""Which rows of a global batch are read from left to right, and which are masked.

Shapes: R rows of the global batch.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from ltg_mdlm.api import Mode, RowMode, Step


def causal_rows(share: float, first_row: int, rows: int) -> int:
    """Causal rows of a step that begins at `first_row`: with those of all steps before, floor(share * rows so far).

    `share` is taken for the decimal number that it is written as.
    """
    exact = Fraction(str(share))
    return math.floor(exact * (first_row + rows)) - math.floor(exact * first_row)


class ExactShare(RowMode):
    """A share of causal rows that is exact over any number of steps; a permutation of (seed, step) deals them."""

    def __init__(self, share: float) -> None:
        self._share = share
        modes: list[Mode] = []
        if share < 1:
            modes.append("masked")
        if share > 0:
            modes.append("causal")
        self.modes = frozenset(modes)

    def causal(self, step: Step, device: torch.device) -> Tensor | None:
        count = causal_rows(self._share, step.first_row, step.rows)
        return step.permutation("row_mode", device) < count if count else None
