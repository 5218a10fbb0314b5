"""Texts to score: what evaluation asks a model, what it gets back, and how a text becomes token ids."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.tokenizer import BOS, MASK, Tokenizer


class Text(NamedTuple):
    """A text whose end is scored given its beginning.  The text is `prefix + completion`, without a separator."""

    prefix: str
    completion: str


class NextWord(NamedTuple):
    """A word and the text before it, without the space between them."""

    context: str
    word: str


class TextScore(NamedTuple):
    """The score of a text's completion."""

    log_likelihood: float
    """Sum over the tokens of the completion, in nats; for the diffusion bound, minus the bound."""
    tokens: int
    """Number of tokens of the completion."""
    samples: tuple[float, ...] = ()
    """Estimates whose mean is the score, aligned between the texts of a group; empty for an exact score."""

    @property
    def standard_error(self) -> float:
        """Standard error of the log-likelihood, in nats."""
        return standard_error(self.samples)


def standard_error(samples: Sequence[float]) -> float:
    """Standard error of the mean of independent estimates: 0 without estimates, NaN for a single one or a NaN.

    It is too large for estimates from strata, which vary less between repetitions than among themselves.
    """
    if len(samples) < 2:
        return math.nan if samples else 0.0
    if not all(map(math.isfinite, samples)):
        return math.nan
    return statistics.stdev(samples) / math.sqrt(len(samples))


@dataclass(frozen=True, slots=True)
class Question:
    """Candidate texts, of which the right one should be the most likely.

    Attributes:
        candidates: at least two texts.
        uid: what the question tests; questions with one uid are a sample of the same kind.
        right: index of the right candidate.
        groups: (division, group) for every division in the official reports, such as ("field", "syntax"). They include
            the division "UID", over which accuracy is averaged; empty if the uid is the only division.
    """

    candidates: tuple[Text, ...]
    uid: str
    right: int = 0
    groups: tuple[tuple[str, str], ...] = ()


class Scorer(Protocol):
    """Scores groups of texts.  The texts of a group are scored with common random numbers.

    Under torchrun, every rank must call it with the same groups, and gets all scores.
    """

    def __call__(self, groups: Sequence[Sequence[Text]], *, per_token: bool = False) -> list[list[TextScore]]:
        """One score per text, in the given order; with `per_token`, divided by the number of scored tokens."""

    def surprisals(self, words: Sequence[NextWord]) -> list[float]:
        """Surprisal in nats of each word given its context, whatever may follow the word.

        As in the official pipelines, context and word are tokenised separately, each as the beginning of a text.  In a
        word of several tokens, each further token is tokenised again as a word of its own (see `pieces`).
        """


class Encoded(NamedTuple):
    """The token ids of a text."""

    ids: tuple[int, ...]
    """`<s>` and the tokens of the text."""
    start: int
    """Column of the first token of the completion, which extends to the end."""

    @property
    def scored(self) -> int:
        """Number of tokens of the completion."""
        return len(self.ids) - self.start


def encode_texts(tokenizer: Tokenizer, texts: Sequence[Text], limit: int) -> list[Encoded]:
    """Tokenise whole texts.  Tokens that end after the prefix are scored, as in the official pipelines.

    A text of more than `limit` tokens (`<s>` included) loses the beginning of its prefix.

    Raises UserError for a completion that has no tokens or does not fit on its own.
    """
    codes = tokenizer.backend.encode_batch(["".join(text) for text in texts], add_special_tokens=False)
    encoded = []
    for text, code in zip(texts, codes, strict=True):
        ids = code.ids
        ends = enumerate((end for _, end in code.offsets), 1)
        start = next((column for column, end in ends if end > len(text.prefix)), len(ids) + 1)
        surplus = max(1 + len(ids) - limit, 0)
        scored = len(ids) + 1 - start
        if scored == 0 or start <= surplus:
            problem = f"has {scored} tokens; at most {limit - 1} fit this model" if scored else "has no tokens"
            raise UserError(f"cannot score {text.completion[:80]!r}: it {problem}")
        encoded.append(Encoded((BOS, *ids[surplus:]), start - surplus))
    return encoded


def encode_next_words(tokenizer: Tokenizer, words: Sequence[NextWord], limit: int, masks_after: int) -> list[Encoded]:
    """The tokens of each context, the first token of the word, and `masks_after` masks.

    A context that does not fit into `limit` tokens loses its beginning.  Raises UserError for a word without tokens.
    """
    contexts = tokenizer.backend.encode_batch([context for context, _ in words], add_special_tokens=False)
    alone = tokenizer.backend.encode_batch([word for _, word in words], add_special_tokens=False)
    encoded = []
    for text, context, word in zip(words, contexts, alone, strict=True):
        if not word.ids:
            raise UserError(f"cannot score {text.word[:80]!r}: it has no tokens")
        room = limit - 2 - masks_after
        before = context.ids[max(len(context.ids) - room, 0) :]
        encoded.append(Encoded((BOS, *before, word.ids[0], *[MASK] * masks_after), 1 + len(before)))
    return encoded


def pieces(tokenizer: Tokenizer, word: NextWord) -> list[NextWord]:
    """Split a word into one part per token; the official pipelines score the first token of each part.

    They append the decoded text of the previous tokens to the context, and tokenise the decoded text of the next token
    on its own.  Where decoding drops a leading space, "not just the" + "kid." becomes "kid" after "not just the", and
    "." after "not just thekid", whose first token is that of " .".
    """
    texts = [tokenizer.decode([token]) for token in tokenizer.encode(word.word)]
    further = (NextWord(word.context + "".join(texts[:index]), texts[index]) for index in range(1, len(texts)))
    return [word, *further]
