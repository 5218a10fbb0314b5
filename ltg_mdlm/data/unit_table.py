"""A memory of what a tokenizer makes of each unit of text (see `boundaries`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from ltg_mdlm.data.boundaries import is_plain_unit, is_unit, join_unsafe, split_words

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
