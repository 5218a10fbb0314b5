"""The data that passes between components in a training step.

Names of tensors end in their shape:

| letter | size |
|---|---|
| B | rows of a micro-batch |
| T | tokens per row |
| S | further columns of a row that hold copies of it: a multiple of T |
| X | all columns of a row, T + S |
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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ltg_mdlm.core.random import integers, permutation, stream_key, uniform, uniform_open
from ltg_mdlm.model.visibility import Visibility as Visibility

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
    """int64: position of the token in the corpus; -1 for `<s>` and padding, and for all tokens in validation"""
    maskable_BT: Tensor
    """bool: neither padding nor a control token"""
    row_B: Tensor
    """int64: index of the row in the global batch"""
    source_BT: Tensor | None = None
    """int16: index of the token's source in `CorpusView.source_names`, -1 for padding; None if sources are unknown"""

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """A batch with `function` applied to every tensor, such as a choice of rows or a move to a device."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed: dict[str, Any] = {name: function(value) for name, value in values.items() if value is not None}
        return dataclasses.replace(self, **changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimiser step: the progress of training, and the source of the step's random numbers."""

    seed: int
    """`seed` of the run"""
    step: int
    """index of the step, from 0; 0 in validation"""
    progress: float
    """step / max_steps, in [0, 1); 1 in the validation after the last step"""
    epoch: float
    """passes over the training split before this step"""
    rows: int
    """R, rows of the global batch"""
    first_row: int = 0
    """rows of all steps before this one"""
    causal_R: Tensor | None = None
    """bool[R]: rows of the global batch that are trained causally; None if there are none"""
    lr: float = 0.0
    """learning rate of the update; 0 in validation"""
    training: bool = True
    """False in validation, whose rows are not those of training"""
    branch: tuple[str, ...] = ()
    """names added to every stream; see `branched`"""

    def branched(self, name: str) -> Step:
        """The same step with separate random streams.

        Two draws from one stream return the same values, so each view of a row needs a branch of its own.
        """
        return dataclasses.replace(self, branch=(*self.branch, name))

    def _key(self, *stream: str) -> tuple[int, int]:
        return stream_key(self.seed, self.step, *stream, *self.branch)

    def uniform(self, batch: Batch, stream: str, cols: int = 1) -> Tensor:
        """float32[B, cols] in (0, 1): a hash of (seed, step, stream, row, column).  See `ltg_mdlm.core.random`."""
        return uniform(self._key(stream), batch.row_B, cols)

    def integers(self, batch: Batch, stream: str, cols: int, n: int) -> Tensor:
        """int64[B, cols], uniform in 0 .. n - 1, for n up to 2^31: a hash as in `uniform`."""
        return integers(self._key(stream), batch.row_B, cols, n)

    def permutation(self, stream: str, device: torch.device) -> Tensor:
        """int64[R]: the position of every row of the global batch in a random order of (seed, step, stream)."""
        return permutation(self._key(stream, "places"), self.rows, device)

    def stratified(self, batch: Batch, stream: str, cols: int = 1) -> Tensor:
        """float64[B] in (0, 1), stratified over the masked rows of the global batch; float64[B, cols] if cols > 1.

        (0, 1) is divided into as many equal cells as there are masked rows.  A permutation of (seed, step, stream)
        assigns the cells to the rows, and one value is drawn in each cell.  Every column is stratified by a permutation
        of its own.  Causal rows have no mask rate; they get an unstratified value that nothing uses.
        """
        if cols > 1:
            columns = [self.stratified(batch, f"{stream}/{column}") for column in range(cols)]
            return torch.stack(columns, dim=1)
        device = batch.row_B.device
        cell_R = self.permutation(stream, device)
        cells: int | Tensor = self.rows
        if self.causal_R is not None:
            # Sort the masked rows before the causal ones: the causal rows get the cells from the last one on.
            order_R = torch.argsort(cell_R + self.causal_R * self.rows)
            cell_R = torch.empty_like(cell_R)
            cell_R[order_R] = torch.arange(self.rows, device=device)
            cells = self.rows - self.causal_R.sum()
        cell_B = cell_R[batch.row_B]
        offset_B = uniform_open(self._key(stream, "offset"), batch.row_B)
        return torch.where(cell_B < cells, (cell_B + offset_B) / cells, offset_B)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnd(Step):
    """A step whose optimiser update is over."""

    refused: Tensor
    """bool scalar on the device: the update was refused because loss or gradient was not finite"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The noise level of every row."""

    t_B: Tensor
    """float64: diffusion time, in (0, 1)"""
    rate_B: Tensor
    """float64: gamma(t), the share of maskable tokens to mask"""
    slope_B: Tensor
    """float64: |d gamma / dt|"""
    rate_BT: Tensor | None = None
    """float64: mask rate of every token, in place of the row's; only for strategies that declare `reads_token_rates`"""
    slope_BT: Tensor | None = None
    """float64: |d rate / dt| of every token; given exactly if `rate_BT` is"""


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
    """float32: masked / maskable tokens of the row; the share of predicted tokens if a strategy predicts them all"""
    causal_B: Tensor
    """bool: rows that are trained causally, as passed to `corrupt`"""
    hazard_BT: Tensor | None = None
    """d log p_i / d gamma of every token; None means 1 / rate, the hazard of uniform masking"""
    hazard_by_type_BV: Tensor | None = None
    """the hazard that a token of every type would have; only if the probability depends on the type alone"""
    noise: Noise | None = None
    """noise of this view, for objective and conditioning; None: that of the schedule"""
    carry_BT: Tensor | None = None
    """whatever a strategy hands its objective for every token, in any type; arrives as `Supervised.carry_N`"""
    visibility: Visibility | None = None
    """None: every token of the document is visible, in causal rows every earlier one"""
    context_BS: Tensor | None = None
    """int64: further whole copies of the row, as the model sees them; column x has place and document of x mod T.
    Needs a `visibility`, which says who sees the copies, and an inactive time conditioning"""


def _no_values() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


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
    """float64: gamma of the row, or of the token if the schedule has rates per token"""
    realised_rate_N: Tensor
    """float32: masked / maskable tokens of the row"""
    slope_N: Tensor
    """float64: |d gamma / dt| of the row, or of the token"""
    hazard_N: Tensor
    """d log p / d gamma of the target token; 1 / rate if the strategy defines no hazard"""
    hazard_by_type_BV: Tensor | None = None
    """as in `Corrupted`; index it with `row_N`"""
    input_N: Tensor = field(default_factory=_no_values)
    """int64: the token that the model was shown in place of the target"""
    position_N: Tensor = field(default_factory=_no_values)
    """int64: position of the target token in the corpus, -1 if it has none"""
    global_row_N: Tensor = field(default_factory=_no_values)
    """int64: row in the global batch"""
    carry_N: Tensor | None = None
    """`Corrupted.carry_BT` of the target token"""

    def __getitem__(self, part: slice) -> Supervised:
        """The positions in `part`, with the whole of `hazard_by_type_BV`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Supervised(
            **{name: v[part] if name.endswith("_N") and v is not None else v for name, v in values.items()}
        )


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
    noise: Noise | None = None
    """noise of the rows in this view"""


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
