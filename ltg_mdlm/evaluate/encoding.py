"""From texts to token ids, with the place where the scored part begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ltg_mdlm.data.special_tokens import BOS, MASK
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.texts import NextWord, Text


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
