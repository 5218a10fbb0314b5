"""What evaluation asks of a model: how likely texts are, and which of several is the most likely."""

from __future__ import annotations

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
    standard_error: float = 0.0
    """Of a Monte Carlo estimate; 0 for scores that are computed exactly."""


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

        Context and word are tokenised apart, each as the beginning of a text, and the surprisals of the word's tokens
        are added up.  A causal row predicts each token from the context and the word's tokens before it.  A masked row
        has those and then three masks, of which the first is predicted; a single one would say that the text ends.
        """
