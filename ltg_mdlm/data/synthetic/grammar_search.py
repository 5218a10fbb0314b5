"""Every way that the generator of the built-in corpus can go, instead of one drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from ltg_mdlm.data.synthetic.grammar_chance import Chance

T = TypeVar("T")


class DeadEnd(Exception):
    """No choice is left, or one was made that the generator would have drawn again."""


class Search(Chance):
    """A source of chance whose draws are branches: `outcomes` runs a function once for every way through them."""

    def __init__(self) -> None:
        self._path: list[int] = []
        self._widths: list[int] = []
        self._place = 0

    def coin(self, probability: float) -> bool:
        """Both sides that can fall."""
        return probability >= 1 if probability in (0, 1) else bool(self.choose(2))

    def number(self, low: int, high: int) -> int:
        """Every integer from `low` to `high`."""
        return low + self.choose(high - low + 1)

    def pick(self, options: Sequence[T]) -> T:
        """Every option."""
        return options[self.choose(len(options))]

    def weighted(self, options: Mapping[T, float]) -> T:
        """Every key."""
        return self.pick(list(options))

    def until(self, draw: Callable[[], T], accepted: Callable[[T], bool]) -> T:
        """Every draw that is accepted."""
        drawn = draw()
        if not accepted(drawn):
            raise DeadEnd
        return drawn

    def outcomes(self, run: Callable[[], T]) -> list[T]:
        """What `run` returns on all ways that do not end dead; `run` may ask for the outcomes of parts of itself."""
        outer = self._path, self._widths, self._place
        self._path, self._widths = [], []
        found = []
        try:
            while True:
                self._place = 0
                with suppress(DeadEnd):
                    found.append(run())
                if not self._turn():
                    return found
        finally:
            self._path, self._widths, self._place = outer

    def choose(self, count: int) -> int:
        """A number below `count`, every one on some way.  Raises DeadEnd if there is none."""
        if count < 2:
            if count == 0:
                raise DeadEnd
            return 0
        if self._place == len(self._path):
            self._path.append(0)
            self._widths.append(count)
        self._place += 1
        return self._path[self._place - 1]

    @property
    def way(self) -> tuple[int, ...]:
        """The choices made since the run began, where there was one."""
        return tuple(self._path[: self._place])

    def _turn(self) -> bool:
        """Go on to the next way; False if that was the last."""
        del self._path[self._place :], self._widths[self._place :]
        while self._path and self._path[-1] + 1 == self._widths[-1]:
            self._path.pop()
            self._widths.pop()
        if self._path:
            self._path[-1] += 1
        return bool(self._path)
