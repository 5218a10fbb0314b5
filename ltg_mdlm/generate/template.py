"""What a text is to be like before anything is drawn: given tokens and gaps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter

from ltg_mdlm.data.special_tokens import BOS, MASK, SPECIAL_TOKENS
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.errors import UserError

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
