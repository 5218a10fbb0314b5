"""The rows that are being written, and how tokens come to stand in them.

Suffixes: B rows, T tokens per row, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltg_mdlm.data.special_tokens import EOS, MASK, NUM_SPECIAL, PAD
from ltg_mdlm.generate.categorical import draw_tokens
from ltg_mdlm.generate.predictor import Predictor, Readout
from ltg_mdlm.generate.rule import SamplingRule
from ltg_mdlm.generate.template import Template
from ltg_mdlm.progress import Advance

MOST_SAMPLES = 2**16
"""Samples of one seed: number and column share the 32 bits of a counter."""
MOST_COLUMNS = 2**16
_READ_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What does not change while rows are written."""

    predict: Predictor
    rule: SamplingRule
    ends: bool
    """The model was trained on documents that end in `</s>`, so it may end a text."""
    advance: Advance = lambda count: None
    """Told how many positions are hidden no longer."""


class Canvas:
    """A batch of rows from one template.

    Attributes:
        sample_B: number of each sample, which its random numbers depend on
        ids_BT: int64, MASK where hidden, PAD behind the end of a text
        gap_BT: bool, to be drawn and not behind the end of the text
        hidden_BT: bool, not drawn yet, or hidden again
        inside_BT: bool, not behind the end of the text
        drawn_at_BT: int64, the forward pass of the row that fixed the token, from 0; -1 for given tokens
        passes_B: int64, forward passes of each row so far
    """

    def __init__(self, template: Template, sample_B: Tensor, setting: Setting) -> None:
        self.sample_B, self.setting = sample_B, setting
        ids_T = torch.tensor(template.ids, device=sample_B.device)
        self.ids_BT = ids_T.repeat(len(sample_B), 1)
        self.hidden_BT = self.ids_BT == MASK
        self.gap_BT = self.hidden_BT.clone()
        self.inside_BT = torch.ones_like(self.hidden_BT)
        self.drawn_at_BT = torch.full_like(self.ids_BT, -1)
        self.passes_B = torch.zeros_like(sample_B)
        self._may_end_T = torch.arange(len(ids_T), device=ids_T.device) >= max(
            (column for column, token in enumerate(template.ids) if token != MASK), default=0
        )

    @property
    def share_hidden_B(self) -> Tensor:
        """float64: of the tokens of each text, `<s>` aside."""
        return self.hidden_BT.sum(1).double() / (self.inside_BT.sum(1) - 1)

    @property
    def share_drawn_B(self) -> Tensor:
        """float64: tokens that are not given, of the tokens of each text, `<s>` aside."""
        return self.gap_BT.sum(1).double() / (self.inside_BT.sum(1) - 1)

    def look(self, row_R: Tensor, rate_B: Tensor, width: int | None = None) -> Look:
        """A forward pass over some rows, cut to `width` tokens, in which the model is told the rates of those rows."""
        inside_RT = self.inside_BT[row_R, :width]
        document_RT = None if bool(inside_RT.all()) else inside_RT.int() - 1
        readout = self.setting.predict(self.ids_BT[row_R, :width], document_RT, rate_B[row_R])
        return Look(self, row_R, readout)

    def write(self, row_N: Tensor, column_N: Tensor, token_N: Tensor) -> None:
        """Put tokens where they belong; a text ends at its first `</s>`."""
        before = int(self.hidden_BT.sum())
        self.ids_BT[row_N, column_N] = token_N
        self.hidden_BT[row_N, column_N] = False
        self.drawn_at_BT[row_N, column_N] = self.passes_B[row_N]
        if self.setting.ends:
            self._end()
        self.setting.advance(before - int(self.hidden_BT.sum()))

    def hide(self, again_BT: Tensor) -> None:
        """Mask tokens again, but for a `</s>`: what was given up behind it would not come back."""
        again_BT = again_BT & self.gap_BT & (self.ids_BT != EOS)
        self.ids_BT[again_BT] = MASK
        self.setting.advance(-int((again_BT & ~self.hidden_BT).sum()))
        self.hidden_BT |= again_BT

    def _end(self) -> None:
        """Give up everything behind the first `</s>`."""
        is_end_BT = (self.ids_BT == EOS) & self.gap_BT
        behind_BT = is_end_BT.int().cumsum(1) - is_end_BT.int() > 0
        self.ids_BT[behind_BT] = PAD
        for mask_BT in (self.hidden_BT, self.gap_BT, self.inside_BT):
            mask_BT &= ~behind_BT

    def forbidden(self, column_N: Tensor, vocab_size: int) -> Tensor:
        """bool[N, V]: special types, but for `</s>` where a text may end: not before a given token."""
        type_V = torch.arange(vocab_size, device=column_N.device)
        forbidden_NV = (type_V < NUM_SPECIAL).repeat(len(column_N), 1)
        if self.setting.ends:
            forbidden_NV[:, EOS] = ~self._may_end_T[column_N]
        return forbidden_NV


class Look:
    """What a model said about some rows of a canvas."""

    def __init__(self, canvas: Canvas, row_R: Tensor, readout: Readout) -> None:
        self.canvas, self.row_R, self._readout = canvas, row_R, readout
        self._place_B = torch.full_like(canvas.sample_B, -1)
        self._place_B[row_R] = torch.arange(len(row_R), device=row_R.device)

    def logits(self, row_N: Tensor, column_N: Tensor) -> Tensor:
        """float32[N, V] for tokens in these rows of the canvas; -inf for what must not be drawn."""
        logits_NV = self._readout(self._place_B[row_N], column_N)
        return logits_NV.masked_fill(self.canvas.forbidden(column_N, logits_NV.shape[1]), -torch.inf)

    def each(self, chosen_BT: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
        """[N]: `measure` of the logits at all chosen positions, not all of them in memory at once."""
        row_N, column_N = chosen_BT.nonzero(as_tuple=True)
        parts = zip(torch.split(row_N, _READ_AT_ONCE), torch.split(column_N, _READ_AT_ONCE), strict=True)
        return torch.cat([measure(self.logits(row_n, column_n)) for row_n, column_n in parts])

    def fill(self, chosen_BT: Tensor, visit: int) -> None:
        """Draw the tokens at the chosen positions, independently of each other, and end this pass of the rows.

        `visit` numbers the passes of a row, so that a token that is drawn again is drawn with other noise.
        """
        canvas, rule = self.canvas, self.canvas.setting.rule
        row_N, column_N = chosen_BT.nonzero(as_tuple=True)
        place_N = canvas.sample_B[row_N] * MOST_COLUMNS + column_N
        parts = zip(*(torch.split(x_N, _READ_AT_ONCE) for x_N in (row_N, column_N, place_N)), strict=True)
        tokens = [draw_tokens(self.logits(r, c), rule, visit, place_n) for r, c, place_n in parts]
        canvas.write(row_N, column_N, torch.cat(tokens))
        canvas.passes_B[self.row_R] += 1
