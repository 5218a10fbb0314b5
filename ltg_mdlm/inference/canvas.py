"""The rows that samplers fill: given tokens and gaps, the model's predictions for them, and draws from these.

Shapes: B rows, T tokens per row, N positions, V vocabulary, R rows of a forward pass.
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
from ltg_mdlm.model.visibility import block_visibility

GAP = SPECIAL_TOKENS[MASK]
"""What stands for a token to draw in the text of an infilling."""

_STAND_IN = "0"
"""Replaces a gap while a text is tokenised: the pre-tokenisers of the stack separate every digit."""

MAX_SAMPLES = 2**16
"""Samples per seed: the number of a sample and a column share the 32 bits of a counter."""

MAX_COLUMNS = 2**16

_POSITIONS_AT_ONCE = 512
"""Positions whose logits are in memory at the same time."""

Readout = Callable[[Tensor, Tensor], Tensor]
"""float32[N, V] logits of the tokens at (row_N, column_N)."""

Predictor = Callable[[Tensor, Tensor | None, Tensor], Readout]
"""A forward pass over (ids_BT with MASK where masked, document_BT or None, mask rates [B] for the conditioning)."""


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
        """Whether there are no given tokens after a gap."""
        return len(self.ids) - self.gaps[0] == len(self.gaps)


def continuation(tokenizer: Tokenizer, prompt: str | None, length: int) -> Template:
    """`length` gaps after the prompt, if there is one; a space at its end becomes part of the first drawn token.

    Raises UserError for a prompt without tokens or that is not valid Unicode, and for a length below 1.
    """
    given: list[int] = []
    if prompt is not None:
        _require_unicode("--prompt", prompt)
        if GAP in prompt:
            raise UserError(f"--prompt {prompt!r}: a {GAP} is filled in --infill only")
        given = tokenizer.encode(prompt)
        if not given:
            raise UserError("--prompt: there is no text in it; leave it out to begin with nothing")
        # In training text, spaces are at the beginning of tokens; the stack's normaliser adds one after every newline.
        if len(given) > 1 and tokenizer.token_text.bytes_V[given[-1]] == b" ":
            given = given[:-1]
    if length < 1:
        raise UserError(f"--length {length}: must be at least 1")
    return Template((BOS, *given, *[MASK] * length))


def infilling(tokenizer: Tokenizer, text: str) -> Template:
    """The text with one gap for each `<mask>` in it; a space before a `<mask>` becomes part of the drawn token.

    Raises UserError for a text without `<mask>` or that is not valid Unicode, and for a tokenizer that merges a gap
    with adjacent characters.
    """
    _require_unicode("--infill", text)
    pieces = text.split(GAP)
    if len(pieces) == 1:
        raise UserError(f"--infill {text!r}: there is no {GAP} in it; write one for every token to draw")
    stood_in = _STAND_IN.join(pieces)
    ends = set(accumulate(len(piece) + len(_STAND_IN) for piece in pieces[:-1]))
    code = tokenizer.backend.encode(stood_in, add_special_tokens=False)
    ids: list[int] = [BOS]
    for _, word in groupby(zip(code.word_ids, code.ids, code.offsets, strict=True), key=itemgetter(0)):
        _, tokens, offsets = zip(*word, strict=True)
        start, end = offsets[0][0], offsets[-1][1]
        is_gap = end in ends and stood_in[start:end].strip() == _STAND_IN
        ids += [MASK] if is_gap else tokens
    if ids.count(MASK) != len(ends):
        raise UserError(
            f"--infill {text!r}: this tokenizer merges digits with other characters, so it does not support gaps"
        )
    return Template(tuple(ids))


def _require_unicode(option: str, text: str) -> None:
    """Raises UserError for lone surrogates: bytes of the command line that are invalid in the terminal's encoding."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{option} {text!r}: some bytes are not valid in the encoding of this terminal") from None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What stays the same while rows are filled."""

    predict: Predictor
    rule: SamplingRule
    ends: bool
    """Whether the model may end a text: it was trained on documents that end in `</s>`."""
    block_length: int = 0
    """Tokens of a block of the model: rows are filled block by block, whatever the sampler.  0: no blocks."""
    advance: Advance = lambda count: None
    """Called with the number of positions that are no longer masked; negative after remasking."""


class Canvas:
    """A batch of rows from one template.

    Attributes:
        sample_B: int64, number of each sample; its random numbers depend on it.
        ids_BT: int64, MASK where masked, PAD after the end of a text.
        gap_BT: bool, tokens that are not given, up to the end of the text.
        masked_BT: bool, not drawn yet, or masked again.
        inside_BT: bool, up to the end of the text.
        drawn_at_BT: int64, the forward pass of the row that drew the token, from 0; -1 for given tokens.
        passes_B: int64, forward passes of each row so far.
    """

    def __init__(self, template: Template, sample_B: Tensor, setting: Setting) -> None:
        self.sample_B, self.setting = sample_B, setting
        ids_T = torch.tensor(template.ids, device=sample_B.device)
        self.ids_BT = ids_T.repeat(len(sample_B), 1)
        self.masked_BT = self.ids_BT == MASK
        self.gap_BT = self.masked_BT.clone()
        self.inside_BT = torch.ones_like(self.masked_BT)
        self.drawn_at_BT = torch.full_like(self.ids_BT, -1)
        self.passes_B = torch.zeros_like(sample_B)
        last_given = max((column for column, token in enumerate(template.ids) if token != MASK), default=0)
        self.may_end_T = torch.arange(len(ids_T), device=ids_T.device) >= last_given

    def masked_share(self, part: slice) -> Tensor:
        """float64[B]: masked tokens, as a share of the tokens of each text in these columns, which exclude `<s>`."""
        return self.masked_BT[:, part].sum(1).double() / self.inside_BT[:, part].sum(1).clamp(min=1)

    def gap_share(self, part: slice) -> Tensor:
        """float64[B]: tokens that are not given, as a share of the tokens of each text in these columns."""
        return self.gap_BT[:, part].sum(1).double() / self.inside_BT[:, part].sum(1).clamp(min=1)

    def forward(self, row_R: Tensor, rate_B: Tensor, width: int | None = None) -> Prediction:
        """Run the model on some rows, conditioned on their mask rates, and cut to the first `width` tokens."""
        inside_RT = self.inside_BT[row_R, :width]
        document_RT = None if bool(inside_RT.all()) else inside_RT.int() - 1
        readout = self.setting.predict(self.ids_BT[row_R, :width], document_RT, rate_B[row_R])
        return Prediction(self, row_R, readout)

    def unmask(self, row_N: Tensor, column_N: Tensor, token_N: Tensor) -> None:
        """Write drawn tokens; a text ends at its first `</s>`, and everything after it is discarded."""
        before = int(self.masked_BT.sum())
        self.ids_BT[row_N, column_N] = token_N
        self.masked_BT[row_N, column_N] = False
        self.drawn_at_BT[row_N, column_N] = self.passes_B[row_N]
        if self.setting.ends:
            is_end_BT = (self.ids_BT == EOS) & self.gap_BT
            after_BT = is_end_BT.int().cumsum(1) - is_end_BT.int() > 0
            self.ids_BT[after_BT] = PAD
            for mask_BT in (self.masked_BT, self.gap_BT, self.inside_BT):
                mask_BT &= ~after_BT
        self.setting.advance(before - int(self.masked_BT.sum()))

    def remask(self, again_BT: Tensor) -> None:
        """Mask drawn tokens again, except `</s>`: the tokens that were discarded after it would not come back."""
        again_BT = again_BT & self.gap_BT & (self.ids_BT != EOS)
        self.ids_BT[again_BT] = MASK
        self.setting.advance(-int((again_BT & ~self.masked_BT).sum()))
        self.masked_BT |= again_BT


class Prediction:
    """The result of one forward pass over some rows of a canvas."""

    def __init__(self, canvas: Canvas, row_R: Tensor, readout: Readout) -> None:
        self._canvas, self._row_R, self._readout = canvas, row_R, readout
        self._index_B = torch.full_like(canvas.sample_B, -1)
        self._index_B[row_R] = torch.arange(len(row_R), device=row_R.device)

    def logits(self, row_N: Tensor, column_N: Tensor) -> Tensor:
        """float32[N, V] at rows and columns of the canvas; -inf for special tokens.

        `</s>` is allowed where a text may end: in models that were trained to end texts, after the last given token.
        """
        logits_NV = self._readout(self._index_B[row_N], column_N)
        is_special_V = torch.arange(logits_NV.shape[1], device=column_N.device) < NUM_SPECIAL
        forbidden_NV = is_special_V.repeat(len(column_N), 1)
        if self._canvas.setting.ends:
            forbidden_NV[:, EOS] = ~self._canvas.may_end_T[column_N]
        return logits_NV.masked_fill(forbidden_NV, -torch.inf)

    def map_logits(self, function: Callable[[Tensor], Tensor], chosen_BT: Tensor) -> Tensor:
        """[N]: `function` of the logits [N, V] at the chosen positions, computed in chunks to save memory."""
        places_N2 = torch.split(chosen_BT.nonzero(), _POSITIONS_AT_ONCE)
        return torch.cat([function(self.logits(*place_n2.unbind(1))) for place_n2 in places_N2])

    def draw(self, chosen_BT: Tensor, number: int) -> None:
        """Draw tokens at the chosen positions, independently of each other, and write them to the canvas.

        `number` is the index of the pass: a token that is drawn again gets other random numbers.
        """
        canvas = self._canvas
        row_N, column_N = chosen_BT.nonzero(as_tuple=True)
        place_N = canvas.sample_B[row_N] * MAX_COLUMNS + column_N
        chunks = zip(*(torch.split(x_N, _POSITIONS_AT_ONCE) for x_N in (row_N, column_N, place_N)), strict=True)
        tokens = [draw_tokens(self.logits(r, c), canvas.setting.rule, number, place_n) for r, c, place_n in chunks]
        canvas.unmask(row_N, column_N, torch.cat(tokens))
        canvas.passes_B[self._row_R] += 1


def draw_tokens(logits_NV: Tensor, rule: SamplingRule, number: int, place_N: Tensor) -> Tensor:
    """int64[N]: one token each from softmax(logits / temperature), restricted to the nucleus `top_p`.

    Uses the Gumbel-max trick in float64 (see `gumbel`); tokens with a logit of -inf are never drawn.  The noise is a
    function of (seed, number, place) and does not depend on what else is in the batch.
    """
    if rule.temperature == 0:
        return logits_NV.argmax(1)
    # The largest logit becomes 0: divided by a temperature close to 0, other values would be infinite.
    scaled_NV = (logits_NV - logits_NV.amax(1, keepdim=True)).double() / rule.temperature
    if rule.top_p < 1:
        scaled_NV = scaled_NV.masked_fill(~nucleus(scaled_NV, rule.top_p), -torch.inf)
    key = stream_key(rule.seed, "tokens", number)
    return (scaled_NV + gumbel(key, place_N, scaled_NV.shape[1])).argmax(1)


def nucleus(logits_NV: Tensor, top_p: float) -> Tensor:
    """bool[N, V]: the smallest set of most likely tokens with a total probability of `top_p` (arXiv 1904.09751)."""
    sorted_NV, order_NV = logits_NV.softmax(1).sort(dim=1, descending=True, stable=True)
    before_NV = sorted_NV.cumsum(1) - sorted_NV
    return torch.zeros_like(logits_NV, dtype=torch.bool).scatter_(1, order_NV, before_NV < top_p)


def model_predictor(denoiser: Denoiser, *, causal: bool) -> Predictor:
    """Run the model on masked or causal rows; logits are computed only at the positions that are read."""
    model, shift = denoiser.model, 1 if causal or denoiser.predicts == "next" else 0

    def predict(ids_BT: Tensor, document_BT: Tensor | None, rate_B: Tensor) -> Readout:
        causal_B = torch.ones_like(rate_B, dtype=torch.bool) if causal else None
        visibility = None
        if denoiser.block_length and not causal:
            one_BT = torch.zeros_like(ids_BT)
            visibility = block_visibility(one_BT if document_BT is None else document_BT, denoiser.block_length)
        hidden_BTD = model(ids_BT, document_BT, causal_B, denoiser.value(rate_B.float(), causal), visibility)
        return lambda row_N, column_N: model.logits(model.head(hidden_BTD[row_N, column_N - shift])).float()

    return predict
