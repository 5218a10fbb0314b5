"""The rows that are being written, and how tokens come to stand in them.

Suffixes: B rows, T tokens per row, N positions, V vocabulary.

Draws from the model's distributions over the vocabulary.

Suffixes: N positions, V vocabulary.

What samplers ask of a model, and how a trained one answers.

Suffixes: B rows, T tokens per row, N positions, V vocabulary.

What a text is to be like before anything is drawn: given tokens and gaps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter

import torch
from torch import Tensor

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.random import gumbel, stream_key
from ltg_mdlm.core.terminal import Advance
from ltg_mdlm.data.tokenizer import BOS, EOS, MASK, NUM_SPECIAL, PAD, SPECIAL_TOKENS, Tokenizer
from ltg_mdlm.inference.sampling_rule import SamplingRule
from ltg_mdlm.inference.trained_model import Denoiser

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


def draw_tokens(logits_NV: Tensor, rule: SamplingRule, visit: int, place_N: Tensor) -> Tensor:
    """int64[N]: one token from softmax(logits / temperature), cut to the nucleus `top_p` and renormalised.

    By the Gumbel-max trick in float64 (see `gumbel`); types with a logit of -inf are never drawn.  The
    noise is a function of (seed, visit, place), whatever else is drawn in the same batch.
    """
    if rule.temperature == 0:
        return logits_NV.argmax(1)
    tempered_NV = _tempered(logits_NV, rule.temperature)
    if rule.top_p < 1:
        tempered_NV = tempered_NV.masked_fill(~nucleus(tempered_NV, rule.top_p), -torch.inf)
    key = stream_key(rule.seed, "tokens", visit)
    return (tempered_NV + gumbel(key, place_N, tempered_NV.shape[1])).argmax(1)


def _tempered(logits_NV: Tensor, temperature: float) -> Tensor:
    """float64[N, V]: the largest is 0, since a temperature next to 0 would make it infinite and its draw undefined."""
    return (logits_NV - logits_NV.amax(1, keepdim=True)).double() / temperature


def nucleus(logits_NV: Tensor, top_p: float) -> Tensor:
    """bool[N, V]: the likeliest types, as few as have at least the probability `top_p` (arXiv 1904.09751)."""
    sorted_NV, order_NV = logits_NV.softmax(1).sort(dim=1, descending=True, stable=True)
    before_NV = sorted_NV.cumsum(1) - sorted_NV
    return torch.zeros_like(logits_NV, dtype=torch.bool).scatter_(1, order_NV, before_NV < top_p)


Readout = Callable[[Tensor, Tensor], Tensor]
"""float32[N, V]: logits of the tokens that stand at (row_N, column_N)."""


Predictor = Callable[[Tensor, Tensor | None, Tensor], Readout]
"""A forward pass over (ids_BT with MASK where hidden, document_BT or None, mask rates [B] to tell the model)."""


def model_predictor(denoiser: Denoiser, *, causal: bool) -> Predictor:
    """Asks the model, in masked or in causal rows; logits are made only where they are read."""
    model, shift = denoiser.model, 1 if causal or denoiser.predicts == "next" else 0

    def predict(ids_BT: Tensor, document_BT: Tensor | None, rate_B: Tensor) -> Readout:
        causal_B = torch.ones_like(rate_B, dtype=torch.bool) if causal else None
        hidden_BTD = model(ids_BT, document_BT, causal_B, denoiser.value(rate_B.float(), causal))
        return lambda row_N, column_N: model.logits(model.head(hidden_BTD[row_N, column_N - shift])).float()

    return predict


GAP = SPECIAL_TOKENS[MASK]


_STAND_IN = "0"
"""Takes the place of a gap while a text is tokenised: pre-tokenisers of the stack set every digit apart."""


@dataclass(frozen=True)
class Template:
    """Token ids of a row, `<s>` first, MASK where a token is to be drawn."""

    ids: tuple[int, ...]

    @property
    def gaps(self) -> tuple[int, ...]:
        """Columns of the tokens to draw."""
        return tuple(column for column, token in enumerate(self.ids) if token == MASK)

    @property
    def is_continuation(self) -> bool:
        """Whether nothing is given behind a gap."""
        return len(self.ids) - self.gaps[0] == len(self.gaps)


def continuation(tokenizer: Tokenizer, prompt: str | None, length: int) -> Template:
    """`length` gaps behind the prompt, or behind nothing; a blank at its end belongs to the first token to be drawn.

    Raises UserError for a prompt without tokens, or of bytes that are no text.
    """
    if prompt is not None:
        _require_unicode("--prompt", prompt)
    given = [] if prompt is None else _without_last_blank(tokenizer, tokenizer.encode(prompt))
    if prompt is not None and not given:
        raise UserError("--prompt: there is no text in it; leave it out to begin with nothing")
    if prompt is not None and GAP in prompt:
        raise UserError(f"--prompt {prompt!r}: a {GAP} is filled in --infill only")
    if length < 1:
        raise UserError(f"--length {length}: give at least one token to draw")
    return Template((BOS, *given, *[MASK] * length))


def _require_unicode(option: str, text: str) -> None:
    """A command line holds bytes; those that the terminal's encoding does not know come as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{option} {text!r}: some of its bytes are no text in the encoding of this terminal") from None


def _without_last_blank(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Training text has blanks at the beginning of tokens; the stack's normaliser puts one behind every line's end."""
    return ids[:-1] if len(ids) > 1 and tokenizer.token_text.bytes_V[ids[-1]] == b" " else ids


def infilling(tokenizer: Tokenizer, text: str) -> Template:
    """The text with one gap for each `<mask>` in it; a blank before a `<mask>` belongs to the token to be drawn.

    Raises UserError for a text without `<mask>`, for bytes that are no text, and for a tokenizer that joins a gap to
    its neighbours.
    """
    _require_unicode("--infill", text)
    pieces = text.split(GAP)
    if len(pieces) == 1:
        raise UserError(f"--infill {text!r}: there is no {GAP} in it; write one for every token to draw")
    stood_in = _STAND_IN.join(pieces)
    ends = set(accumulate(len(piece) + len(_STAND_IN) for piece in pieces[:-1]))
    code = tokenizer.backend.encode(stood_in, add_special_tokens=False)
    ids: list[int] = [BOS]
    for _, group in groupby(zip(code.word_ids, code.ids, code.offsets, strict=True), key=itemgetter(0)):
        _, tokens, offsets = zip(*group, strict=True)
        start, end = offsets[0][0], offsets[-1][1]
        is_gap = end in ends and stood_in[start:end].strip() == _STAND_IN
        ids += [MASK] if is_gap else tokens
    if ids.count(MASK) != len(ends):
        raise UserError(f"--infill {text!r}: this tokenizer joins digits to other characters, so that it has no gaps")
    return Template(tuple(ids))
