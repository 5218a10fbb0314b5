"""What evaluation asks of a model: how likely texts are, and which of several is the most likely.

From texts to token ids, with the place where the scored part begins.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.tokenizer import BOS, MASK, Tokenizer


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


class Encoded(NamedTuple):
    """A text as the model reads it."""

    ids: tuple[int, ...]
    """`<s>` and the tokens of the text"""
    start: int
    """Column of the completion's first token; it reaches to the end"""

    @property
    def scored(self) -> int:
        """Tokens of the completion."""
        return len(self.ids) - self.start


def encode_texts(tokenizer: Tokenizer, texts: Sequence[Text], limit: int) -> list[Encoded]:
    """Tokens of whole texts; the completion's are those that end behind the prefix, as in the official pipelines.

    A text of more than `limit` tokens (`<s>` included) loses the beginning of its prefix.

    Raises UserError for a completion without tokens, and one that does not fit by itself.
    """
    codes = tokenizer.backend.encode_batch([prefix + said for prefix, said in texts], add_special_tokens=False)
    return [
        _encoded(text, code.ids, [end for _, end in code.offsets], limit)
        for text, code in zip(texts, codes, strict=True)
    ]


def pieces(tokenizer: Tokenizer, word: NextWord) -> list[NextWord]:
    """A word in as many parts as it has tokens, of each of which the first token is what official pipelines score.

    They join the text of the tokens before to the context and tokenise the text of the next by itself.  Where decoding
    drops a leading space, "not just the" + "kid." becomes "kid" after "not just the", and "." after "not just thekid",
    of which the first token is that of " .".
    """
    texts = [tokenizer.decode([token]) for token in tokenizer.encode(word.word)]
    behind = (NextWord(word.context + "".join(texts[:place]), texts[place]) for place in range(1, len(texts)))
    return [word, *behind]


def encode_next_words(tokenizer: Tokenizer, words: Sequence[NextWord], limit: int, behind: int) -> list[Encoded]:
    """The first token of each word, tokenised by itself, after the tokens of its context.

    `behind` masks follow it.  A context that does not fit into `limit` tokens loses its beginning.

    Raises UserError for a word without tokens.
    """
    contexts = tokenizer.backend.encode_batch([context for context, _ in words], add_special_tokens=False)
    alone = tokenizer.backend.encode_batch([word for _, word in words], add_special_tokens=False)
    encoded = []
    for text, context, word in zip(words, contexts, alone, strict=True):
        if not word.ids:
            raise UserError(f"cannot score {text.word[:80]!r}: it has no tokens")
        room = limit - 2 - behind
        before = context.ids[max(len(context.ids) - room, 0) :]
        encoded.append(Encoded((BOS, *before, word.ids[0], *[MASK] * behind), 1 + len(before)))
    return encoded


def _encoded(text: Text, ids: Sequence[int], ends: Sequence[int], limit: int) -> Encoded:
    behind = len(text.prefix)
    start = next((column for column, end in enumerate(ends, 1) if end > behind), len(ids) + 1)
    surplus = max(1 + len(ids) - limit, 0)
    scored = len(ids) + 1 - start
    if scored == 0 or start <= surplus:
        problem = f"has {scored} tokens; at most {limit - 1} fit this model" if scored else "has no tokens"
        raise UserError(f"cannot score {text.completion[:80]!r}: it {problem}")
    return Encoded((BOS, *ids[surplus:]), start - surplus)
