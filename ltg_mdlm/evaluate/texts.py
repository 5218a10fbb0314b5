"""What evaluation asks of a model: how likely texts are, and which of several is the most likely."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Text(NamedTuple):
    """A text of which the end is scored, given the beginning: `prefix + completion`, joined as they are."""

    prefix: str
    completion: str


class NextWord(NamedTuple):
    """A word, and the text that it comes after, without the space between them."""

    context: str
    word: str


class TextScore(NamedTuple):
    """What a model makes of a text's completion."""

    log_likelihood: float
    """Sum over the completion's tokens, in nats; for the diffusion bound, minus the bound."""
    tokens: int
    """Tokens of the completion."""
    samples: tuple[float, ...] = ()
    """Estimates whose mean the score is, aligned between the texts of a group; empty if it is computed exactly."""

    @property
    def standard_error(self) -> float:
        """Of the log-likelihood, in nats."""
        return standard_error(self.samples)


def standard_error(samples: Sequence[float]) -> float:
    """Of the mean of independent estimates; 0 without any, NaN if there is one only.

    Estimates from strata vary less between repetitions than among themselves, so for them it is too large.
    """
    if len(samples) < 2:
        return math.nan if samples else 0.0
    return statistics.stdev(samples) / math.sqrt(len(samples))


@dataclass(frozen=True, slots=True)
class Question:
    """Candidates of which the model should find one the most likely.

    Attributes:
        candidates: at least two texts.
        uid: what the question tests; accuracy is reported for each.
        right: index of the right candidate.
        groups: (what divides, group) for all divisions that the official reports list, such as ("field", "syntax"), the
            uid included; empty if there is nothing but the uid.
    """

    candidates: tuple[Text, ...]
    uid: str
    right: int = 0
    groups: tuple[tuple[str, str], ...] = ()


class Scorer(Protocol):
    """Scores groups of texts; texts of one group are scored under common random numbers.

    Under torchrun every rank must call it with the same groups, and gets all scores.
    """

    def __call__(self, groups: Sequence[Sequence[Text]]) -> list[list[TextScore]]:
        """One score per text, in the order given."""

    def surprisals(self, words: Sequence[NextWord]) -> list[float]:
        """Surprisal in nats of each word as what comes next, whatever may follow it.

        As in the official pipelines, context and word are tokenised apart, each as the beginning of a text; of a word
        of several tokens, each is tokenised again as a word by itself, behind the context and those before it.
        """
