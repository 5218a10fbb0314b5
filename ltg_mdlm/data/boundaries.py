"""Where a text can be cut without changing its tokens.

The tokenizer of the stack (see `tokenizer`) works on pieces that never reach across a plain space or a line
break with visible characters on both sides: its normaliser puts a space before the text and after each line break,
NFKC never composes across a space, and each alternative of its regex takes a space only as its first character
or as part of a run of blanks.  Hence the tokens of a text are the tokens of its *units*, one after the other:

    "a cat.\nIt  sat"  ->  "a", "cat.\n", "It  sat"

A unit is a run of text between two safe cuts.  Nearly all units are single words, few are distinct, and a table
of their tokens replaces almost all the work of the tokenizer (see `unit_table`).

A memory of what a tokenizer makes of each unit of text (see `boundaries`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

_PLAIN_UNIT = re.compile(r"[!-~](?:[\t\v\f!-~]*[!-~])?\n?")


_ALSO_BLANK = "\u180e"  # white space in the older Unicode tables that a regex engine may carry, but not in Python's


def is_solid(character: str, *, end: int = 0) -> bool:
    """Whether the character shows, also after NFKC; `end` is 0 for its first normalised character, -1 for its last."""
    normalised = unicodedata.normalize("NFKC", character)[end]
    return not normalised.isspace() and normalised not in _ALSO_BLANK


def split_words(text: str) -> list[str]:
    """Cut at every space and after every line break, safe or not; also at a blank at the very end of `text`."""
    units = text.replace("\n", "\n ").split(" ")
    if text[-1:] in (" ", "\n"):
        units.pop()
    return units


def is_plain_unit(word: str) -> bool:
    """Whether a part made by `split_words` is a unit of characters that NFKC keeps.

    Among them, white space to Python is exactly what is white space to the tokenizer.
    """
    return _PLAIN_UNIT.fullmatch(word) is not None


def is_unit(word: str) -> bool:
    """Whether both ends of a part made by `split_words` are safe cuts, and no further cut is inside."""
    if is_plain_unit(word):
        return True
    body = word.removesuffix("\n")
    return bool(body) and " " not in body and "\n" not in body and is_solid(body[0]) and is_solid(body[-1], end=-1)


def join_unsafe(words: Sequence[str]) -> list[str]:
    """Undo the cuts of `split_words` that are not safe: the units of the text."""
    units: list[list[str]] = []
    previous_ends_safely = False
    for word in words:
        safe = is_unit(word)
        if safe and previous_ends_safely:
            units.append([word])
        elif units:
            units[-1].append(word)
        else:
            units = [[word]]
        previous_ends_safely = safe
    return [join_units(parts) for parts in units]


def join_units(units: Sequence[str]) -> str:
    """The text that `split_words` or a safe cut has divided."""
    return " ".join(units).replace("\n ", "\n")


def plain_unit_ends(units: Sequence[str], bytes_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of tokens up to the end of each plain unit, where `bytes_N` are the lengths of the tokens of them all.

    Normalisation keeps plain characters, so a unit's tokens are the bytes of a space and of the unit.
    """
    end_U = np.cumsum([1 + len(unit) for unit in units], dtype=np.int64)
    return np.searchsorted(np.cumsum(bytes_N), end_U) + 1


def cut(text: str, limit: int, *, behind: str = "\n ") -> Iterator[str]:
    """Parts of at most `limit` characters, as far as there are safe cuts; they concatenate to `text`.

    A part ends with one of the blanks `behind`, the first of them if possible.
    """
    start = 0
    while len(text) - start > limit:
        stop = start + limit
        at = next(filter(None, (_last_cut(text, blank, start, stop) for blank in behind)), 0)
        if not at:
            break
        yield text[start:at]
        start = at
    yield text[start:]


def _last_cut(text: str, blank: str, start: int, stop: int) -> int:
    """Largest safe cut behind a `blank` in `text[start:stop]`, 0 if there is none."""
    at = text.rfind(blank, start + 1, stop)
    while at > 0:
        if at + 1 < len(text) and is_solid(text[at - 1], end=-1) and is_solid(text[at + 1]):
            return at + 1
        at = text.rfind(blank, start + 1, at)
    return 0


Value = TypeVar("Value")


_REMEMBERED = 1 << 17


class UnitTable(Generic[Value]):
    """Gives the values of a text's units, asking for those of new units only.

    Few of the units of a text are new, so that nearly all the work is looking up words in a dictionary. The memory
    is bounded: it is emptied when it holds more than some 130,000 units.
    """

    def __init__(
        self, of_plain: Callable[[list[str]], Iterable[Value]], of_other: Callable[[list[str]], Iterable[Value]]
    ) -> None:
        """The two functions give the values of several units: of plain ones (`is_plain_unit`), and of any others."""
        self._of_plain = of_plain
        self._of_other = of_other
        self._values: dict[str, Value] = {}

    def values(self, text: str) -> Iterator[Value]:
        """The values of the units of `text`, in order."""
        words = split_words(text)
        if len(self._values) > _REMEMBERED:
            self._values.clear()
        new = set(words).difference(self._values)
        if all(map(is_unit, new)):
            self._remember(new)
            return map(self._values.__getitem__, words)
        units = join_unsafe(words)
        # Not remembered: with blanks inside, too rare; with an unsafe end, a unit at the end of this text only.
        unusual = [unit for unit in units if not is_unit(unit)]
        self._remember(set(units).difference(self._values, unusual))
        here = dict(zip(unusual, self._of_other(unusual), strict=True))
        return (here[unit] if unit in here else self._values[unit] for unit in units)

    def _remember(self, units: Iterable[str]) -> None:
        plain: list[str] = []
        other: list[str] = []
        for unit in units:
            (plain if is_plain_unit(unit) else other).append(unit)
        self._values.update(zip(plain, self._of_plain(plain), strict=True))
        self._values.update(zip(other, self._of_other(other), strict=True))
