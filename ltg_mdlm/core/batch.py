"""Everything a plugin may import: the hook markers, the data that passes between components, and their base classes.

Shapes are suffixes: B rows, T tokens per row, N supervised positions, V vocabulary, R rows of the global batch,
D width, K loss groups.  `gamma` is a row's mask rate; t runs from 0 (clean, gamma = 0) to 1 (all masked, gamma = 1).

Hooks register components once, at start-up; the training loop then calls only methods of the components.  Methods take
dataclasses, so that a new field never breaks a plugin.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ltg_mdlm.core.random import permutation, stream_key, uniform, uniform_open

IGNORE = -100
"""Label of a position without loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Packed rows: one micro-batch of this rank."""

    ids_BT: Tensor
    """int64"""
    document_BT: Tensor
    """int32: document within the row, -1 for padding"""
    position_BT: Tensor
    """int64: place of the token in the corpus, -1 for `<s>` and padding"""
    maskable_BT: Tensor
    """bool: neither padding nor a control token"""
    row_B: Tensor
    """int64: index of the row in the global batch"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimiser step: where training stands, and the source of its random numbers."""

    seed: int
    """The run's `seed`."""
    step: int
    """From 0."""
    progress: float
    """step / max_steps, in [0, 1)"""
    epoch: float
    """Passes over the training split before this step."""
    rows: int
    """Rows of the global batch."""
    first_row: int = 0
    """Rows of all steps before this one."""
    causal_R: Tensor | None = None
    """bool[R]: rows of the global batch that are trained causally; None when there are none."""

    def uniform(self, batch: Batch, stream: str, cols: int = 1) -> Tensor:
        """float32[B, cols] in (0, 1): hash of (seed, step, stream, row, column), see `ltg_mdlm.core.random`."""
        return uniform(stream_key(self.seed, self.step, stream), batch.row_B, cols)

    def permutation(self, stream: str, device: torch.device) -> Tensor:
        """int64[R]: the place of every row of the global batch in a random order of (seed, step, stream)."""
        return permutation(stream_key(self.seed, self.step, stream, "places"), self.rows, device)

    def stratified(self, batch: Batch, stream: str) -> Tensor:
        """float64[B] in (0, 1): one draw in each of n equal cells, n the masked rows of the *global* batch.

        A permutation of (seed, step, stream) deals the cells to the rows.  Causal rows, which have no mask rate, get an
        unstratified draw that nothing uses.
        """
        cell_R, count = self._cells(stream, batch.row_B.device)
        offset_B = uniform_open(stream_key(self.seed, self.step, stream, "offset"), batch.row_B)
        cell_B = cell_R[batch.row_B]
        return torch.where(cell_B < count, (cell_B + offset_B) / count, offset_B)

    def _cells(self, stream: str, device: torch.device) -> tuple[Tensor, Tensor | int]:
        """int64[R] cell of every row (causal rows are dealt the cells behind the last one), and the number of cells."""
        place_R = self.permutation(stream, device)
        if self.causal_R is None:
            return place_R, self.rows
        key_R = place_R + self.causal_R * self.rows
        cell_R = torch.empty_like(place_R)
        cell_R[torch.argsort(key_R)] = torch.arange(self.rows, device=device)
        return cell_R, self.rows - self.causal_R.sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The noise level of every row."""

    t_B: Tensor
    """float64 in (0, 1)"""
    rate_B: Tensor
    """float64: gamma, the share of maskable tokens to mask"""
    slope_B: Tensor
    """float64: |d gamma / dt|"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupted:
    """A micro-batch as the model sees it, and what it shall predict."""

    input_BT: Tensor
    """int64: what the model reads"""
    labels_BT: Tensor
    """int64: aligned with the logits; IGNORE where there is no loss"""
    masked_BT: Tensor
    """bool: chosen for prediction, whatever its input now shows (`<mask>`, a random token or itself)"""
    realised_rate_B: Tensor
    """float32: masked / maskable tokens of the row"""
    causal_B: Tensor
    """bool: rows that are trained causally, as they were given to `corrupt`"""
    hazard_BT: Tensor | None = None
    """d log p_i / d gamma of every token; None stands for 1 / rate_B, the hazard of uniform masking"""
    hazard_by_type_BV: Tensor | None = None
    """The hazard every token type would have; only for strategies whose probability depends on the type alone"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """The positions with a loss, gathered from a micro-batch."""

    label_N: Tensor
    """int64: the token to predict."""
    row_N: Tensor
    """Row within the micro-batch."""
    column_N: Tensor
    """Column of the logits; the predicted token stands there, or one further right for next-token prediction."""
    causal_N: Tensor
    """bool: in a causal row."""
    masked_N: Tensor
    """bool: the predicted token itself was chosen for masking."""
    rate_N: Tensor
    """float64: gamma of the row."""
    realised_rate_N: Tensor
    """float32: masked / maskable tokens of the row."""
    slope_N: Tensor
    """float64: |d gamma / dt| of the row."""
    hazard_N: Tensor
    """d log p / d gamma of the predicted token; 1 / rate where the strategy gives none."""
    hazard_by_type_BV: Tensor | None = None
    """As in `Corrupted`; indexed by `row_N`."""

    def __getitem__(self, part: slice) -> Supervised:
        """The positions of `part`; the per-row table stays whole."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Supervised(**{name: v[part] if name.endswith("_N") else v for name, v in values.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the model made of a micro-batch: feedback for adaptive strategies."""

    step: Step
    """The step it was part of."""
    batch: Batch
    """The clean rows."""
    supervised: Supervised
    """The positions the model was asked for."""
    correct_N: Tensor
    """bool: the label was the likeliest token"""
    nll_N: Tensor
    """float32: -log p of the label, in nats; not finite where training is not"""


def realised_rate(batch: Batch, masked_BT: Tensor) -> Tensor:
    """float32[B]: masked / maskable tokens; 0 for a row without maskable tokens."""
    return masked_BT.sum(1) / batch.maskable_BT.sum(1).clamp(min=1)


def labels_for(batch: Batch, masked_BT: Tensor, causal_B: Tensor, predicts: Literal["same", "next"]) -> Tensor:
    """int64[B, T]: the original ids where there is a loss, aligned with the logits, IGNORE elsewhere.

    Causal rows predict every maskable token one position earlier; masked rows predict the masked tokens at their own
    position ("same") or one position earlier ("next").  A target never lies in another document.
    """
    target_BT = torch.where(causal_B.unsqueeze(1), batch.maskable_BT, masked_BT)
    own_BT = batch.ids_BT.masked_fill(~target_BT, IGNORE)
    within_BT = batch.document_BT[:, 1:] == batch.document_BT[:, :-1]
    next_BT = torch.full_like(own_BT, IGNORE)
    next_BT[:, :-1] = own_BT[:, 1:].masked_fill(~within_BT, IGNORE)
    if predicts == "next":
        return next_BT
    return torch.where(causal_B.unsqueeze(1), next_BT, own_BT)
