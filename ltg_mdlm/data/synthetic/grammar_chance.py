"""The source of chance of the built-in corpus."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """Draws that are the same for the same seed in every process, on every platform and in every Python version.

    Of the methods of `random.Random` only `random` is stable between versions, so everything here is made from it; a
    string seed is hashed with SHA-512, whatever PYTHONHASHSEED is.
    """

    def __init__(self, seed: str) -> None:
        self.uniform = random.Random(seed).random

    def coin(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def number(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.number(0, len(options) - 1)]

    def weighted(self, options: Mapping[T, float]) -> T:
        """A key of `options`, with a probability proportional to its value."""
        left = self.uniform() * sum(options.values())
        for option, weight in options.items():
            left -= weight
            if left < 0:
                return option
        return option  # where the weights' sum was rounded

    def until(self, draw: Callable[[], T], accepted: Callable[[T], bool]) -> T:
        """The first draw that is accepted."""
        while True:
            drawn = draw()
            if accepted(drawn):
                return drawn
