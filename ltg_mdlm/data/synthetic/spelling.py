"""Spelling of the built-in language: inflected forms of words, and sentences as text."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

_VOWELS = "aeiou"
_SIBILANTS = ("s", "x", "z", "ch", "sh")


def plural_of(noun: str) -> str:
    """The regular plural, which is spelt like the third person singular of a verb."""
    if noun.endswith(_SIBILANTS):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in _VOWELS:
        return noun[:-1] + "ies"
    return noun + "s"


def third_person_of(base: str) -> str:
    """`runs`, `goes`, `has` from `run`, `go`, `have`."""
    if base == "have":
        return "has"
    return base + "es" if base.endswith("o") else plural_of(base)


def past_of(base: str) -> str:
    """The regular past tense and participle."""
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in _VOWELS:
        return base[:-1] + "ied"
    return _doubled(base) + "ed"


def gerund_of(base: str) -> str:
    """`making`, `running`, `dying`, `seeing` from `make`, `run`, `die`, `see`."""
    if base.endswith("ie"):
        return base[:-2] + "ying"
    if base.endswith("e") and not base.endswith(("ee", "oe", "ye")) and base != "be":
        return base[:-1] + "ing"
    return _doubled(base) + "ing"


def _doubled(base: str) -> str:
    """`base` with its last consonant doubled where a suffix asks for it: `stopp`, `forgett`, but `visit`, `rain`."""
    onset = base[:-2]
    ends_short = base[-1] not in _VOWELS + "wxy" and base[-2:-1] in tuple(_VOWELS) and base[-1] != base[-2]
    one_syllable = not any(letter in _VOWELS + "y" for letter in onset.removeprefix("qu").replace("squ", ""))
    return base + base[-1] if (ends_short and one_syllable) or base in ("begin", "forget") else base


def sentence_text(words: Sequence[str]) -> str:
    """A sentence as written: a capital at its start, "an" before vowels, no blank before punctuation."""
    followed = zip(words, [*words[1:], "."], strict=False)
    text = " ".join("an" if word == "a" and follower[0] in _VOWELS else word for word, follower in followed)
    return re.sub(r" (?=[.,?!])", "", text[:1].upper() + text[1:])


def sentence_words(text: str, vocabulary: Container[str]) -> list[str]:
    """The inverse of `sentence_text`; empty for text that it does not write with these words."""
    words = ["a" if word == "an" else word for word in re.findall(r"[\w'-]+|[^\w\s]", text)]
    if words and words[0] not in vocabulary:
        words[0] = words[0][:1].lower() + words[0][1:]
        words[0] = "a" if words[0] == "an" else words[0]
    known = all(word in vocabulary for word in words)
    return words if known and sentence_text(words) == text else []


def sentences(line: str) -> list[str]:
    """The sentences of a line: each ends with a full stop, question mark or exclamation mark before a blank."""
    return re.split(r"(?<=[.?!]) ", line)
