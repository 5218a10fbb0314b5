"""What a text is to be like before anything is drawn: given tokens and gaps."""

from __future__ import annotations

from dataclasses import dataclass

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
    """`length` gaps behind the prompt, or behind nothing.  Raises UserError for a prompt without tokens."""
    given = [] if prompt is None else tokenizer.encode(prompt)
    if prompt is not None and not given:
        raise UserError("the prompt is empty: leave it out to begin with nothing")
    if length < 1:
        raise UserError(f"--length {length}: give at least one token to draw")
    return Template((BOS, *given, *[MASK] * length))


def infilling(tokenizer: Tokenizer, text: str) -> Template:
    """The text with one gap for each `<mask>` in it.

    Blanks before a `<mask>` belong to the token that will be drawn.

    Raises UserError for a text without `<mask>`, and for a tokenizer that would join a gap to its neighbours.
    """
    pieces = text.split(GAP)
    if len(pieces) == 1:
        raise UserError(f"--infill {text!r}: there is no {GAP} in it; write one for every token to draw")
    code = tokenizer.backend.encode(_STAND_IN.join(pieces), add_special_tokens=False)
    stand_ins, end = set(), 0
    for piece in pieces[:-1]:
        end += len(piece) + len(_STAND_IN)
        stand_ins.add(end)
    words = [word for word, (_, last) in zip(code.words, code.offsets, strict=True) if last in stand_ins]
    ids: list[int] = [BOS]
    last_word = None
    for token, word in zip(code.ids, code.words, strict=True):
        if word not in words:
            ids.append(token)
        elif word != last_word:
            ids.append(MASK)
        last_word = word
    if len(set(words)) != len(stand_ins):
        raise UserError(f"--infill {text!r}: this tokenizer does not set digits apart, so that gaps cannot be placed")
    return Template(tuple(ids))
