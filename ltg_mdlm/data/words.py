"""What a word is.

The words of a text are counted in one *unit* per corpus: by default runs of characters without white space
(`str.split`). Languages that are written without blanks need another one:

    whitespace      runs of characters without white space
    characters      characters that are not white space
    characters/N    every N-th of these, counted through the whole split
    jieba           as whitespace, but words with Chinese characters count as the segments of `jieba.cut`

Contamination and duplicates are searched with *terms*, which leave out what does not matter for the content.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from ltg_mdlm.core.errors import UserError

WHITESPACE = "whitespace"

_SOLID = re.compile(r"\S")
_WORD = re.compile(r"\S+")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")

_WITHOUT_BLANKS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese, whose words are not separated."""

_TERM = re.compile(rf"[{_WITHOUT_BLANKS}]|(?:(?![{_WITHOUT_BLANKS}])[^\W_])+")


def terms_of(text: str) -> list[str]:
    """The normalised terms of a text.

    A term is a run of letters and digits after NFKC normalisation and lower-casing, so that "Don't" has the terms "don"
    and "t", and punctuation none. A letter of a script without blanks is a term of its own.
    """
    return _TERM.findall(unicodedata.normalize("NFKC", text).lower())


@dataclass(frozen=True)
class WordUnit:
    """A unit in which words are counted.

    Attributes:
        name: as in corpus.json
        every: N, if every N-th of the starts that `starts` finds counts as a word
    """

    name: str
    every: int = 1

    @classmethod
    def named(cls, name: str) -> WordUnit:
        """The unit of this name. Raises UserError if there is none, or if its segmenter is not installed."""
        if name == WHITESPACE:
            return cls(name)
        if match := re.fullmatch(r"characters(?:/([1-9]\d{0,2}))?", name):
            return cls(name, int(match[1] or 1))
        if name == "jieba":
            _jieba()
            return cls(name)
        raise UserError(f"--words {name}: no such unit of words; there are whitespace, characters, characters/N, jieba")

    @property
    def is_whitespace(self) -> bool:
        return self.name == WHITESPACE

    @cached_property
    def starts(self) -> Callable[[str], list[int]]:
        """The function from a text to the places at which words begin in it; for characters/N, all characters."""
        if self.name == "jieba":
            return jieba_starts
        pattern = _WORD if self.is_whitespace else _SOLID
        return lambda text: [match.start() for match in pattern.finditer(text)]

    def count(self, text: str) -> int:
        """Number of starts in a text."""
        return len(text.split()) if self.is_whitespace else len(self.starts(text))


def jieba_starts(text: str) -> list[int]:
    """The places at which words begin: segments of jieba in words with Chinese characters, and other words."""
    starts: list[int] = []
    for match in _WORD.finditer(text):
        at = match.start()
        if not _HAN.search(match[0]):
            starts.append(at)
            continue
        for segment in _jieba().cut(match[0]):
            starts.append(at)
            at += len(segment)
    return starts


@cache
def _jieba() -> Any:
    try:
        import jieba
    except ImportError:
        raise UserError('the unit of words "jieba" needs the package jieba\n  pip install "ltg-mdlm[data]"') from None
    jieba.setLogLevel(60)  # it reports on standard error that it builds its dictionary
    jieba.initialize()
    return jieba
