"""The lexicon of the built-in corpus: inflected words in classes whose frequencies follow Zipf's law."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

from ltg_mdlm.data.synthetic import grammar_words as words
from ltg_mdlm.data.synthetic.grammar_chance import Chance

_VOWELS = "aeiou"


_SIBILANTS = ("s", "x", "z", "ch", "sh")


_DOUBLING = frozenset({"begin", "forget", "prefer", "unwrap"})


_A_DESPITE_SPELLING = ("uni", "use", "one", "ukulele")


W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun or name.

    Attributes:
        plural: empty for names and substances.
        gender: f, m, or empty if the word leaves it open.
    """

    singular: str
    plural: str = ""
    gender: str = ""


@dataclass(frozen=True, slots=True)
class Verb:
    """The forms of a verb, and the preposition ("look at") or particle ("pick up") it takes."""

    base: str
    third: str
    past: str
    participle: str
    gerund: str
    preposition: str = ""
    particle: str = ""

    @property
    def stative(self) -> bool:
        """Whether the verb names a state, and so has no progressive ("is knowing")."""
        return self.base in _STATIVE


class WordClass(Generic[W]):
    """Words of which the one at rank r (from 1) is drawn with a probability proportional to r ** -exponent."""

    def __init__(self, members: Sequence[W], exponent: float) -> None:
        self.members = tuple(members)
        weights = [rank**-exponent for rank in range(1, len(self.members) + 1)]
        total = sum(weights)
        self._cumulative = [value / total for value in accumulate(weights)]

    def draw(self, chance: Chance) -> W:
        """One word."""
        return self.members[min(bisect(self._cumulative, chance.uniform()), len(self.members) - 1)]


class Lexicon:
    """All word classes, by part of speech and name.

    Args:
        exponent: Zipf exponent within each class; 1 is natural language, 0 makes all words of a class equally frequent.
    """

    def __init__(self, exponent: float = 1.0) -> None:
        self.nouns = {name: WordClass(_nouns(text, name), exponent) for name, text in _NOUNS.items()}
        self.verbs = {name: WordClass(verbs(text), exponent) for name, text in _VERBS.items()}
        self.adjectives = {name: WordClass(text.split(), exponent) for name, text in _ADJECTIVES.items()}
        self.manners = WordClass(words.MANNERS.split(), exponent)


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


def comparative_of(adjective: str) -> str:
    """The comparative in -er: `bigger`, `nicer`, `heavier`, `taller` from `big`, `nice`, `heavy`, `tall`."""
    if adjective.endswith("e"):
        return adjective + "r"
    if adjective.endswith("y"):
        return adjective[:-1] + "ier"
    return _doubled(adjective) + "er"


def indefinite_article(next_word: str) -> str:
    """`a` or `an`, by the sound that `next_word` begins with."""
    return "an" if next_word[0] in _VOWELS and not next_word.startswith(_A_DESPITE_SPELLING) else "a"


def _doubled(base: str) -> str:
    """`base` with its last consonant doubled where a suffix asks for it: `stopp`, `beginn`, but `visit`, `rain`."""
    if base in _DOUBLING:
        return base + base[-1]
    onset = base[:-2]
    ends_short = base[-1] not in _VOWELS + "wxy" and base[-2:-1] in tuple(_VOWELS) and base[-1] != base[-2]
    one_syllable = not any(letter in _VOWELS + "y" for letter in onset.removeprefix("qu").replace("squ", ""))
    return base + base[-1] if ends_short and one_syllable else base


def _nouns(text: str, name: str) -> list[Noun]:
    countable = name not in _WITHOUT_PLURAL
    parsed = []
    for entry in text.split():
        forms, _, gender = entry.partition(":")
        singular, _, plural = forms.partition("/")
        parsed.append(
            Noun(singular, (plural or plural_of(singular)) if countable else "", gender or _GENDERS.get(name, ""))
        )
    return parsed


def verbs(text: str) -> tuple[Verb, ...]:
    """Verbs given as a list of `verb` entries."""
    return tuple(verb(entry) for entry in text.split())


def verb(entry: str) -> Verb:
    """The forms of a verb given as `base[/past[/participle]]`, the base with `_preposition` or `~particle`."""
    head, *irregular = entry.split("/")
    base, _, preposition = head.partition("_")
    base, _, particle = base.partition("~")
    past = irregular[0] if irregular else past_of(base)
    participle = irregular[1] if len(irregular) > 1 else past
    return Verb(base, third_person_of(base), past, participle, gerund_of(base), preposition, particle)


_STATIVE = frozenset(words.STATIVE.split())


_WITHOUT_PLURAL = ("girl", "boy", "drink", "substance")


_GENDERS = {"girl": "f", "boy": "m"}


_NOUNS = {
    "girl": words.GIRLS,
    "boy": words.BOYS,
    "people": words.PEOPLE,
    "animal": words.ANIMALS,
    "food": words.FOODS,
    "drink": words.DRINKS,
    "substance": words.SUBSTANCES,
    "toy": words.TOYS,
    "thing": words.THINGS,
    "clothes": words.CLOTHES,
    "container": words.CONTAINERS,
    "surface": words.SURFACES,
    "landmark": words.LANDMARKS,
    "place": words.PLACES,
    "vehicle": words.VEHICLES,
    "plant": words.PLANTS,
    "body": words.BODY_PARTS,
}


_VERBS = {
    "activity": words.ACTIVITIES,
    "animal_activity": words.ANIMAL_ACTIVITIES,
    "motion": words.MOTIONS,
    "ingest": words.INGEST,
    "feed": words.FEEDING,
    "drink": words.DRINKING,
    "handle": words.HANDLING,
    "social": words.SOCIAL,
    "animal_social": words.ANIMAL_SOCIAL,
    "reflexive": words.REFLEXIVES,
    "animal_reflexive": words.ANIMAL_REFLEXIVES,
    "give": words.GIVING,
    "put": words.PLACING,
    "groom": words.GROOMING,
    "wear": words.WEARING,
    "possess": words.POSSESSING,
    "drive": words.DRIVING,
    "make": words.MAKING,
    "change": words.CHANGING,
    "vehicle_move": words.VEHICLE_MOVES,
    "grow": words.GROWING,
    "say": words.SAYING,
    "ask": words.ASKING,
    "intend": words.INTENDING,
}


_ADJECTIVES = {
    "size": words.SIZES,
    "color": words.COLORS,
    "quality": words.QUALITIES,
    "character": words.CHARACTERS,
    "feeling": words.FEELINGS,
    "taste": words.TASTES,
    "comparable": words.COMPARABLE,
    "comparable_thing": words.COMPARABLE_THINGS,
}
