"""Noun phrases of the built-in corpus: determiners, adjectives, names, pronouns, and where things are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ltg_mdlm.data.synthetic import grammar_words as words
from ltg_mdlm.data.synthetic.grammar_chance import Chance
from ltg_mdlm.data.synthetic.grammar_lexicon import Lexicon, Noun, indefinite_article


@dataclass(frozen=True, slots=True)
class Agreement:
    """What verbs and pronouns agree with: person 1 to 3, number, and gender f, m or n."""

    person: int = 3
    plural: bool = False
    gender: str = "n"

    @property
    def key(self) -> str:
        """Row of the pronoun table."""
        if self.person < 3:
            return f"{self.person}{'p' if self.plural else 's'}"
        return "3p" if self.plural else self.gender


_PRONOUNS = {
    "1s": ("I", "me", "my", "myself"),
    "2s": ("you", "you", "your", "yourself"),
    "1p": ("we", "us", "our", "ourselves"),
    "2p": ("you", "you", "your", "yourselves"),
    "3p": ("they", "them", "their", "themselves"),
    "f": ("she", "her", "her", "herself"),
    "m": ("he", "him", "his", "himself"),
    "n": ("it", "it", "its", "itself"),
}


def subject_pronoun(agreement: Agreement) -> str:
    """I, you, she, ..."""
    return _PRONOUNS[agreement.key][0]


def object_pronoun(agreement: Agreement) -> str:
    """me, you, her, ..."""
    return _PRONOUNS[agreement.key][1]


def possessive(agreement: Agreement) -> str:
    """my, your, her, ..."""
    return _PRONOUNS[agreement.key][2]


def reflexive(agreement: Agreement) -> str:
    """myself, yourself, herself, ..."""
    return _PRONOUNS[agreement.key][3]


I = Agreement(person=1)  # noqa: E741


YOU = Agreement(person=2)


WE = Agreement(person=1, plural=True)


THEY = Agreement(plural=True)


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """A noun phrase and what agrees with it.

    Attributes:
        text: the words, as they stand in the middle of a sentence.
        agreement: its person, number and gender.
        kind: what it denotes: person, animal, object, food, mass, place, ...
        noun: the head noun; None for pronouns.
        is_pronoun: pronouns stand before a verb's particle.
    """

    text: str
    agreement: Agreement
    kind: str
    noun: Noun | None = None
    is_pronoun: bool = False

    @property
    def animate(self) -> bool:
        """Asked for with "who", not "what"; moves by itself."""
        return self.kind in ("person", "animal")

    def as_subject(self) -> NounPhrase:
        """The pronoun that refers to it as a subject."""
        return replace(self, text=subject_pronoun(self.agreement), is_pronoun=True)

    def as_object(self) -> NounPhrase:
        """The pronoun that refers to it as an object."""
        return replace(self, text=object_pronoun(self.agreement), is_pronoun=True)


def pronoun(agreement: Agreement) -> NounPhrase:
    """`I`, `you`, `we`, ... as a subject."""
    return NounPhrase(subject_pronoun(agreement), agreement, "person", is_pronoun=True)


# Kinds of noun phrases that more than one word class, or one of another name, can fill.
_MIXED: dict[str, dict[str, float]] = {
    "person": {"girl": 3, "boy": 3, "people": 4},
    "name": {"girl": 1, "boy": 1},
    "animate": {"animal": 3, "people": 3, "girl": 1, "boy": 1},
    "object": {"toy": 4, "thing": 4, "clothes": 1},
    "food": {"food": 4, "substance": 1},
    "snack": {"food": 1},
    "mass": {"drink": 1, "substance": 1},
}


_DENOTES = {
    **dict.fromkeys(("girl", "boy", "people"), "person"),
    **dict.fromkeys(("toy", "thing"), "object"),
    **dict.fromkeys(("drink", "substance"), "mass"),
}


_SINGULAR: dict[str, float] = {"the": 9, "a": 7, "this": 1.5, "that": 1.5, "every": 0.5, "another": 0.5}


_PLURAL: dict[str, float] = {
    "the": 9, "some": 3, "two": 2, "three": 1, "these": 1.5, "those": 1.5, "many": 1, "all the": 0.5,
    "four": 0.5, "five": 0.4, "six": 0.3, "seven": 0.2, "eight": 0.2, "nine": 0.1, "ten": 0.2, "both": 0.3, "": 2,
}  # fmt: skip


_MASS: dict[str, float] = {"the": 4, "some": 4, "this": 0.5, "that": 0.5}


INDEFINITE = frozenset(
    {"a", "an", "some", "another", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "many"}
)


# Which adjectives stand before a noun, in their order: "a big old red ball".
_ADJECTIVES = {
    "person": ("character",),
    "animal": ("character", "size", "color"),
    "food": ("size", "taste"),
    "mass": ("taste",),
    "place": ("size", "quality"),
    "body": ("size",),
    "plant": ("size", "color"),
    "vehicle": ("size", "color"),
}


_THINGS = ("size", "quality", "color")


_STATES = ("feeling", "feeling", "character")  # most often how somebody feels


_AT = frozenset(words.PLACES_WITH_AT.split())


_ON = frozenset(words.PLACES_WITH_ON.split())


class Phrases:
    """Draws noun phrases and places.

    Args:
        lexicon: the words.
        chance: the one source of chance; may be shared.
        owners: the possessive determiners that make sense here: "my" and "your" in talk, none in a tale.
    """

    def __init__(self, lexicon: Lexicon, chance: Chance, owners: Sequence[str] = ()) -> None:
        self.lexicon = lexicon
        self.chance = chance
        possessives = dict.fromkeys(owners, 1.5)
        self._singular = _SINGULAR | possessives
        self._plural = _PLURAL | possessives
        self._mass = _MASS | dict.fromkeys(owners, 0.5)

    def noun(self, kind: str) -> tuple[str, Noun]:
        """What a slot of this kind came to denote (person, animal, object, ...), and a noun or name for it."""
        word_class = self.chance.weighted(_MIXED.get(kind, {kind: 1.0}))
        return _DENOTES.get(word_class, word_class), self.lexicon.nouns[word_class].draw(self.chance)

    def noun_phrase(
        self, kind: str, *, plural: bool | None = None, determiner: str | None = None, adjectives: int | None = None
    ) -> NounPhrase:
        """A noun phrase of a kind, or a name; what is None is drawn. `adjectives` counts them."""
        denoted, noun = self.noun(kind)
        if plural is None:
            plural = self.chance.coin(0.33)
        return self.with_noun(noun, denoted, plural=plural, determiner=determiner, adjectives=adjectives)

    def with_noun(
        self,
        noun: Noun,
        kind: str,
        *,
        plural: bool = False,
        determiner: str | None = None,
        adjectives: int | None = None,
    ) -> NounPhrase:
        """A noun phrase with this head noun, denoting this kind of thing; names and substances stay singular."""
        plural = plural and bool(noun.plural)
        agreement = Agreement(plural=plural, gender=self._gender(noun, kind))
        if noun.singular[0].isupper():
            return NounPhrase(noun.singular, agreement, kind, noun)
        count = self.chance.weighted({0: 7, 1: 3, 2: 0.4}) if adjectives is None else adjectives
        if determiner is None:
            determiner = self.chance.weighted(self._plural if plural else self._singular if noun.plural else self._mass)
        parts = [*self.adjectives(kind, count), noun.plural if plural else noun.singular]
        return NounPhrase(determined(determiner, parts), agreement, kind, noun)

    def adjectives(self, kind: str, count: int) -> list[str]:
        """Up to `count` adjectives that fit a kind, in their natural order."""
        classes = list(_ADJECTIVES.get(kind, _THINGS))
        while len(classes) > count:
            classes.pop(self.chance.number(0, len(classes) - 1))
        return [self.lexicon.adjectives[name].draw(self.chance) for name in classes]

    def property_of(self, phrase: NounPhrase) -> str:
        """An adjective that can be said of it and was not: "the dog is hungry", "the ball is red"."""
        classes = _STATES if phrase.animate else _ADJECTIVES.get(phrase.kind, _THINGS)
        said = frozenset(phrase.text.split())
        unsaid = [name for name in classes if said.isdisjoint(self.lexicon.adjectives[name].members)]
        return self.lexicon.adjectives[self.chance.pick(unsaid or ("quality",))].draw(self.chance)

    def inside(self) -> str:
        """Where something is put: "in the box", "on the table"."""
        kind = self.chance.weighted({"container": 1, "surface": 1})
        phrase = self.noun_phrase(kind, plural=False, determiner=self.chance.weighted({"the": 6, "a": 1}))
        preposition = "in" if kind == "container" else self.chance.weighted({"on": 3, "under": 1})
        return f"{preposition} {phrase.text}"

    def near(self) -> str:
        """Beside what something is: "near the door", "behind those trees"."""
        preposition = self.chance.weighted({"near": 4, "behind": 2, "next to": 2, "in front of": 1, "by": 2})
        landmark = self.noun_phrase("landmark", adjectives=self.chance.weighted({0: 6, 1: 1}))
        return f"{preposition} {landmark.text}"

    def at_place(self) -> str:
        """Where something happens: "in the garden", "at the zoo"."""
        place = self.place()
        name = place.noun.singular if place.noun else ""
        return f"{'at' if name in _AT else 'on' if name in _ON else 'in'} {place.text}"

    def place(self) -> NounPhrase:
        """A place with "the": "the park"."""
        return self.noun_phrase("place", plural=False, determiner="the", adjectives=self.chance.weighted({0: 8, 1: 1}))

    def where(self, kind: str) -> str:
        """A place fit for what is there: people are not in boxes."""
        places = (
            (self.near, self.at_place)
            if kind in ("person", "vehicle", "plant")
            else (self.near, self.at_place, self.inside)
        )
        return self.chance.pick(places)()

    def is_indefinite(self, phrase: NounPhrase) -> bool:
        """Whether its determiner is "a", a number, ...: what a sentence with "there was" asks for."""
        return phrase.text.split()[0] in INDEFINITE

    def _gender(self, noun: Noun, kind: str) -> str:
        if noun.gender:
            return noun.gender
        if kind == "person":
            return self.chance.weighted({"f": 1, "m": 1})
        return self.chance.weighted({"n": 6, "f": 1, "m": 1}) if kind == "animal" else "n"


def determined(determiner: str, words: Sequence[str]) -> str:
    """The words after their determiner, with `a` or `an` as the next word asks; no determiner if it is empty."""
    article = indefinite_article(words[0]) if determiner == "a" else determiner
    return " ".join([article, *words] if article else words)
