"""Places at which a text can be cut without changing its tokens.

The tokenizer of the stack (`tokenizer.untrained_tokenizer`) splits a text into parts that it encodes independently. No
part extends across a space or a line break that has visible characters on both sides: the normaliser puts a space
before the text and after each line break, NFKC never composes across a space, and each alternative of the regex
matches a space only as its first character or within a run of white space. So the tokens of a text are the tokens of
its *units*, one after the other:

    "a cat.\\nIt  sat"  ->  "a", "cat.\\n", "It  sat"

The space at a cut belongs to no unit, because the tokenizer puts one before every text. A line break belongs to the
unit that it ends.

Text without blanks, such as Chinese, can also be cut at a *joint*: before a punctuation mark after a letter that has no
case. There the regex always ends a match, since it takes a mark only as the first character before letters. No blank
stands at a joint, so the tokens of the text that follows are those without the space that the normaliser adds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

WHITE_SPACE = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u180e\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""What Python takes for white space, and U+180E, which was white space in older versions of Unicode."""

NORMALISED_TO_SPACE = (
    "\xa8\xaf\xb4\xb8\u02d8\u02d9\u02da\u02db\u02dc\u02dd\u037a\u0384\u0385\u1fbd\u1fbf\u1fc0\u1fc1\u1fcd\u1fce\u1fcf"
    "\u1fdd\u1fde\u1fdf\u1fed\u1fee\u1ffd\u1ffe\u2017\u203e\u309b\u309c\ufc5e\ufc5f\ufc60\ufc61\ufc62\ufc63\ufe49\ufe4a"
    "\ufe4b\ufe4c\ufe70\ufe72\ufe74\ufe76\ufe78\ufe7a\ufe7c\ufe7e\uffe3"
)
"""Visible characters that NFKC turns into a space and a combining mark, such as the acute accent U+00B4."""

_BEFORE = rf"[^{WHITE_SPACE}]"
_AFTER = rf"(?=[^{WHITE_SPACE}{NORMALISED_TO_SPACE}])"
_CUT = re.compile(rf" (?<={_BEFORE} ){_AFTER}|(?<={_BEFORE}\n){_AFTER}")


def split_units(text: str) -> list[str]:
    """The units of a text, which may itself be a part made by `cut`."""
    return _CUT.split(text.removesuffix(" "))


_JOINT = re.compile(r"(?<=[^\W\d_])[!,.:;?、。〈《「『【〔！，．：；？（“‘…·،؛؟।၊။។]")

_JOINT_WINDOW = 1 << 12
"""Characters that are searched for a joint at once."""


def cut(text: str, limit: int, *, after: str = "\n ", joints: bool = False) -> Iterator[str]:
    """Divide a text into parts of at most `limit` characters; the parts concatenate to `text`.

    A part ends with one of the characters of `after`, if possible with the first, or else with `joints` at a joint. A
    text in which no such cut is safe for more than `limit` characters is not divided any further.
    """
    start = 0
    while len(text) - start > limit:
        stop = start + limit
        at = next(filter(None, (_last_cut(text, blank, start, stop) for blank in after)), 0)
        at = at or (_last_joint(text, start, stop) if joints else 0)
        if not at:
            break
        yield text[start:at]
        start = at
    yield text[start:]


def _last_cut(text: str, blank: str, start: int, stop: int) -> int:
    """The end of the longest part of `text[start:stop]` that can be cut off after `blank`, 0 if there is none."""
    at = text.rfind(blank, start + 1, stop)
    while at > 0:
        if text[at - 1] not in WHITE_SPACE and text[at + 1 : at + 2] not in WHITE_SPACE + NORMALISED_TO_SPACE:
            return at + 1
        at = text.rfind(blank, start + 1, at)
    return 0


def _last_joint(text: str, start: int, stop: int) -> int:
    """The last joint in `text[start:stop]`, 0 if there is none."""
    while stop > start + 1:
        first = max(start + 1, stop - _JOINT_WINDOW)
        marks = [match.start() for match in _JOINT.finditer(text, first, stop)]
        for at in reversed(marks):
            if unicodedata.category(text[at - 1]) == "Lo" and text[at - 1] not in NORMALISED_TO_SPACE:
                return at
        stop = first
    return 0
