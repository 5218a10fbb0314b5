"""The data that passes between components in a training step.

Names of tensors end in their shape:

| letter | size |
|---|---|
| B | rows of a micro-batch |
| T | tokens per row |
| N | supervised positions of a micro-batch: those with a loss |
| R | rows of the global batch |
| V | token types of the vocabulary |
| D | width of the hidden states |
| K | loss groups |

gamma is the mask rate of a row.  Diffusion time t runs from 0 (clean, gamma = 0) to 1 (all masked, gamma = 1).

All classes are frozen dataclasses with keyword arguments, so a new field never breaks a plugin.
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
    """int64: token ids"""
    document_BT: Tensor
    """int32: index of the document within the row, -1 for padding"""
    position_BT: Tensor
    """int64: position of the token in the corpus, -1 for `<s>` and padding"""
    maskable_BT: Tensor
    """bool: neither padding nor a control token"""
    row_B: Tensor
    """int64: index of the row in the global batch"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimiser step: the progress of training, and the source of the step's random numbers."""

    seed: int
    """`seed` of the run"""
    step: int
    """index of the step, from 0"""
    progress: float
    """step / max_steps, in [0, 1)"""
    epoch: float
    """passes over the training split before this step"""
    rows: int
    """R, rows of the global batch"""
    first_row: int = 0
    """rows of all steps before this one"""
    causal_R: Tensor | None = None
    """bool[R]: rows of the global batch that are trained causally; None if there are none"""

    def uniform(self, batch: Batch, stream: str, cols: int = 1) -> Tensor:
        """float32[B, cols] in (0, 1): a hash of (seed, step, stream, row, column).  See `ltg_mdlm.core.random`."""
        return uniform(stream_key(self.seed, self.step, stream), batch.row_B, cols)

    def permutation(self, stream: str, device: torch.device) -> Tensor:
        """int64[R]: the position of every row of the global batch in a random order of (seed, step, stream)."""
        return permutation(stream_key(self.seed, self.step, stream, "places"), self.rows, device)

    def stratified(self, batch: Batch, stream: str) -> Tensor:
        """float64[B] in (0, 1), stratified over the masked rows of the global batch.

        (0, 1) is divided into as many equal cells as there are masked rows.  A permutation of (seed, step, stream)
        assigns the cells to the rows, and one value is drawn in each cell.  Causal rows have no mask rate; they get an
        unstratified value that nothing uses.
        """
        device = batch.row_B.device
        cell_R = self.permutation(stream, device)
        cells: Tensor | int = self.rows
        if self.causal_R is not None:
            # Sort the masked rows before the causal ones: the causal rows get the cells from the last one on.
            order_R = torch.argsort(cell_R + self.causal_R * self.rows)
            cell_R = torch.empty_like(cell_R)
            cell_R[order_R] = torch.arange(self.rows, device=device)
            cells = self.rows - self.causal_R.sum()
        cell_B = cell_R[batch.row_B]
        offset_B = uniform_open(stream_key(self.seed, self.step, stream, "offset"), batch.row_B)
        return torch.where(cell_B < cells, (cell_B + offset_B) / cells, offset_B)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The noise level of every row."""

    t_B: Tensor
    """float64: diffusion time, in (0, 1)"""
    rate_B: Tensor
    """float64: gamma(t), the share of maskable tokens to mask"""
    slope_B: Tensor
    """float64: |d gamma / dt|"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupted:
    """A corrupted micro-batch: the input of the model and the prediction targets."""

    input_BT: Tensor
    """int64: input ids of the model"""
    labels_BT: Tensor
    """int64: target ids, aligned with the logits; IGNORE where there is no loss"""
    masked_BT: Tensor
    """bool: selected for prediction, whether the input shows `<mask>`, a random token or the token itself"""
    realised_rate_B: Tensor
    """float32: masked / maskable tokens of the row"""
    causal_B: Tensor
    """bool: rows that are trained causally, as passed to `corrupt`"""
    hazard_BT: Tensor | None = None
    """d log p_i / d gamma of every token; None means 1 / rate_B, the hazard of uniform masking"""
    hazard_by_type_BV: Tensor | None = None
    """the hazard that a token of every type would have; only if the probability depends on the type alone"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """The positions of a micro-batch that have a loss."""

    label_N: Tensor
    """int64: id of the target token"""
    row_N: Tensor
    """int64: row within the micro-batch"""
    column_N: Tensor
    """int64: column of the logits; the target token is there, or one column to the right for next-token prediction"""
    causal_N: Tensor
    """bool: in a causal row"""
    masked_N: Tensor
    """bool: the target token itself was selected for masking"""
    rate_N: Tensor
    """float64: gamma of the row"""
    realised_rate_N: Tensor
    """float32: masked / maskable tokens of the row"""
    slope_N: Tensor
    """float64: |d gamma / dt| of the row"""
    hazard_N: Tensor
    """d log p / d gamma of the target token; 1 / rate if the strategy defines no hazard"""
    hazard_by_type_BV: Tensor | None = None
    """as in `Corrupted`; index it with `row_N`"""

    def __getitem__(self, part: slice) -> Supervised:
        """The positions in `part`, with the whole of `hazard_by_type_BV`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Supervised(**{name: v[part] if name.endswith("_N") else v for name, v in values.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Predictions of the model for a training micro-batch: the feedback for adaptive components."""

    step: Step
    """the current step"""
    batch: Batch
    """the rows before corruption"""
    supervised: Supervised
    """the predicted positions"""
    correct_N: Tensor
    """bool: the label has the highest probability"""
    nll_N: Tensor
    """float32: -log p of the label, in nats; not finite where training is not"""


def realised_rate(batch: Batch, masked_BT: Tensor) -> Tensor:
    """float32[B]: masked / maskable tokens; 0 for a row without maskable tokens."""
    return masked_BT.sum(1) / batch.maskable_BT.sum(1).clamp(min=1)


def labels_for(batch: Batch, masked_BT: Tensor, causal_B: Tensor, predicts: Literal["same", "next"]) -> Tensor:
    """int64[B, T]: target ids aligned with the logits, IGNORE where there is no loss.

    Causal rows predict every maskable token one position earlier.  Masked rows predict the masked tokens at their own
    position ("same") or one position earlier ("next").  A token is never predicted from another document.
    """
    target_BT = torch.where(causal_B.unsqueeze(1), batch.maskable_BT, masked_BT)
    same_BT = batch.ids_BT.masked_fill(~target_BT, IGNORE)
    within_document_BT = batch.document_BT[:, 1:] == batch.document_BT[:, :-1]
    next_BT = torch.full_like(same_BT, IGNORE)
    next_BT[:, :-1] = same_BT[:, 1:].masked_fill(~within_document_BT, IGNORE)
    if predicts == "next":
        return next_BT
    return torch.where(causal_B.unsqueeze(1), next_BT, same_BT)
