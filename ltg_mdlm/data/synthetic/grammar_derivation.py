"""The source of chance of a generator of the built-in corpus whose phrases are slots (see `grammar_slotted`).

Nothing here knows a rule of the grammar: what can fill a slot is what the generator's own method returns, on one way or
another.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

from ltg_mdlm.data.synthetic.grammar_clauses import Clause, Predicate
from ltg_mdlm.data.synthetic.grammar_lexicon import Noun, WordClass
from ltg_mdlm.data.synthetic.grammar_phrases import NounPhrase
from ltg_mdlm.data.synthetic.grammar_search import DeadEnd, Search
from ltg_mdlm.data.synthetic.grammar_slots import (
    ASKED,
    ASKED_GAP,
    AUXILIARY,
    DETERMINER,
    FINITE,
    FINITE_GAP,
    MARK,
    PLURAL,
    REST,
    SINGULAR,
    TAIL,
    TARGET,
    VERB_FORMS,
    Value,
    features,
    has_object,
    hidden,
    is_hidden,
    slot_of,
    word_features,
)

U = TypeVar("U")


V = TypeVar("V", bound=Value)


Parts = frozenset[str]


Call = tuple[Hashable, ...]
"""Which method with which arguments; noun phrases by their features if their words are hidden."""


_WORD = re.compile(r"'s\b|(?:(?!'s\b)[\w'-])+")


_WHOLE, _WITH_GAP = frozenset((DETERMINER, TAIL, TARGET)), frozenset((DETERMINER, TAIL))


_HEADS = frozenset((REST, SINGULAR, PLURAL))


_DRAWS_WORD = ("noun", "word")


_TURNED = {"my": "your", "your": "my", "myself": "yourself", "yourself": "myself"}


@dataclass(frozen=True, slots=True)
class Slot:
    """A phrase that the generator drew.

    Attributes:
        call: what drew it.
        run: draws one.
        features: what was drawn.
        has_object: whether it has one.
        depends_on: slots whose phrases are among the arguments.
    """

    call: Call
    run: Callable[[], Value]
    features: Hashable
    has_object: bool
    depends_on: tuple[int, ...]


class Determiners(dict[str, float]):
    """Those of a noun phrase, with their weights."""


class Sight:
    """The words of one sentence, and what could be seen of a phrase in it.

    The generator changes phrases in three ways before it shows them: "some" becomes "any", "my" becomes "your", and
    the first determiner is replaced; a phrase is seen if it is there before or after such a change.
    """

    def __init__(self, sentence: str, forms: Mapping[WordClass[Any], Mapping[str, list[Any]]]) -> None:
        self.words = _WORD.findall(sentence.lower())
        self._forms = forms
        self._members: dict[WordClass[Any], list[Any]] = {}
        turned = [_TURNED.get(word, word) for word in self.words]
        some = ["some" if word == "any" else word for word in self.words]
        both = ["some" if word == "any" else word for word in turned]
        self._texts = {f" {' '.join(words)} " for words in (self.words, turned, some, both)}

    def members(self, word_class: WordClass[Any]) -> list[Any]:
        """The members of a word class of which some form is there."""
        if word_class not in self._members:
            forms = self._forms[word_class]
            found = (member for word in dict.fromkeys(self.words) for member in forms.get(word, ()))
            self._members[word_class] = list(dict.fromkeys(found))
        return self._members[word_class]

    def determiners(self, options: Determiners) -> list[str]:
        """Those that are there, or none at all."""
        return [word for word in options if not word or self._has(word) or (word == "a" and self._has("an"))]

    def shows(self, value: Value, parts: Parts) -> bool:
        """Whether these parts of a phrase are there."""
        if isinstance(value, NounPhrase):
            return self._shows_noun_phrase(value, parts)
        if isinstance(value, Predicate):
            gap = value.target is not None and TARGET not in parts
            return self._has(value.after_verb(gap=gap).strip())
        if isinstance(value, Clause):
            return self._shows_clause(value, gap=_leaves_gap(parts))
        assert isinstance(value, str)
        return self._has(value)

    def begins_with(self, value: Value) -> bool:
        """Whether a noun phrase is the first thing there."""
        assert isinstance(value, NounPhrase)
        words = _WORD.findall(value.text.lower())
        return self.words[: len(words)] == words

    def _shows_clause(self, clause: Clause, *, gap: bool) -> bool:
        for question in (False, True):
            predicate = clause.predicate.in_negation if clause.negation else clause.predicate
            form = clause.forms(question=question)[1]
            if self._has(f"{form}{predicate.after_verb(gap=gap)}".strip()):
                return True
        return False

    def _shows_noun_phrase(self, phrase: NounPhrase, parts: Parts) -> bool:
        if not parts & {DETERMINER, REST}:
            return True
        first, _, others = phrase.text.partition(" ")
        return self._has(phrase.text if DETERMINER in parts else others or first)

    def _has(self, text: str) -> bool:
        wanted = f" {' '.join(_WORD.findall(text.lower()))} " if text else " "
        return any(wanted in shown for shown in self._texts)


class Derivation(Search):
    """The source of chance of a generator whose phrases are slots.

    While plans are made, a slot is filled with what stands for its phrase; while one is followed (`follow`), with every
    phrase of the same features that can be seen in the sentence.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slots: list[Slot] = []
        self.sight: Sight | None = None
        self._shown: Mapping[int, Parts] = {}
        self._first: int | None = None
        self._script: Iterator[int] | None = None
        self._inside = False
        self._gap = False
        self._head: Parts | None = None
        self._words: dict[WordClass[Any], list[str]] = {}
        self._typical: dict[WordClass[Any], list[Any]] = {}
        self._examples: dict[Call, dict[Hashable, Value]] = {}
        self._seen: dict[tuple[Call, Parts], dict[Hashable, list[Value]]] = {}

    def begin(self) -> None:
        """A new run of the generator."""
        self.slots, self._words = [], defaultdict(list)

    def look_at(self, sight: Sight) -> None:
        """From now on, phrases are those of this sentence."""
        self.sight, self._seen = sight, {}

    def follow(
        self, run: Callable[[], object], way: Sequence[int], shown: Mapping[int, Parts], first: int | None
    ) -> None:
        """Call `run` on one way with every filling of the slots that are shown; it may raise what ends the search.

        The sentence begins with what is in the slot `first`, if there is one.
        """

        def scripted() -> None:
            self._script = iter(way)
            run()

        self._shown, self._first = shown, first
        try:
            self.outcomes(scripted)
        finally:
            self._shown, self._first, self._script = {}, None, None

    def choose(self, count: int) -> int:
        """As everywhere; a way that is followed decides."""
        if self._script is None or self._inside or count < 2:
            return super().choose(count)
        chosen = next(self._script, count)
        if chosen >= count:
            raise DeadEnd
        return chosen

    def slot(self, call: Call, run: Callable[[], V]) -> V:
        """What `run` would draw."""
        call = tuple(argument.drawn if isinstance(argument, Later) else argument for argument in call)
        phrases = [argument for argument in call if isinstance(argument, NounPhrase)]
        call = tuple(map(_without_words, call))
        if self._inside:
            return self._any_of(call, run)
        kinds = self.examples(call, run)
        kind = list(kinds)[self.choose(len(kinds))]
        number = len(self.slots)
        depends_on = tuple(slot for slot in map(slot_of, phrases) if slot is not None)
        self.slots.append(Slot(call, run, kind, has_object(kinds[kind]), depends_on))
        if not (parts := self._shown.get(number)):
            return cast(V, hidden(kinds[kind], number))
        fillings = self.fillings(self.slots[-1], parts)
        if number == self._first and self.sight is not None:
            fillings = [value for value in fillings if self.sight.begins_with(value)]
        return cast(V, fillings[super().choose(len(fillings))])

    def fillings(self, slot: Slot, parts: Parts) -> list[Value]:
        """All phrases for a slot of which these parts can be seen in the sentence."""
        parts = parts if slot.has_object else parts | {TARGET}
        return self._in_sight(slot.call, slot.run, parts).get(slot.features, [])

    def examples(self, call: Call, run: Callable[[], Value]) -> dict[Hashable, Value]:
        """One value for all combinations of features that `run` can return."""
        if call not in self._examples:
            sight, self.sight = self.sight, None
            self._examples[call] = {features(value): value for value in self._outcomes_inside(run)}
            self.sight = sight
        return self._examples[call]

    def slot_of(self, predicate: Predicate) -> Slot | None:
        """The slot of a predicate whose words are hidden."""
        found = MARK.search(predicate.rest)
        return self.slots[int(found[1])] if found else None

    @property
    def is_inside(self) -> bool:
        """Whether the fillings of a slot are looked for."""
        return self._inside

    def weighted(self, options: Mapping[U, float]) -> U:
        """Of determiners, only those that can be seen."""
        if isinstance(options, Determiners) and self._inside and self.sight is not None and self._head is None:
            return cast(U, self.pick(self.sight.determiners(options)))
        return super().weighted(options)

    def word(self, word_class: WordClass[Any]) -> Any:
        """Any member of the class."""
        if self._inside:
            return self.pick(self._members(word_class))
        if isinstance(word_class.members[0], Noun):
            return self.slot(("noun", word_class), lambda: self.word(word_class))
        earlier = self._words[word_class]
        if (again := self.choose(1 + len(earlier))) > 0:
            return earlier[again - 1]
        drawn = self.slot(("word", word_class), lambda: self.word(word_class))
        earlier.append(drawn)
        return drawn

    def _members(self, word_class: WordClass[Any]) -> list[Any]:
        if self.sight is not None:
            return self.sight.members(word_class)
        if word_class not in self._typical:
            self._typical[word_class] = list({word_features(word): word for word in word_class.members}.values())
        return self._typical[word_class]

    def _any_of(self, call: Call, run: Callable[[], V]) -> V:
        """A slot within a slot: its words are seen, or not looked at."""
        if self.sight is None or (self._gap and call[0] == "_target"):
            return cast(V, self.pick(list(self.examples(call, run).values())))
        kinds = self._in_sight(call, run, self._head or (_WITH_GAP if self._gap else _WHOLE))
        return cast(V, self.pick([value for values in kinds.values() for value in values]))

    def _in_sight(self, call: Call, run: Callable[[], Value], parts: Parts) -> dict[Hashable, list[Value]]:
        assert self.sight is not None
        if (call, parts) not in self._seen:
            sight, gap, head = self.sight, self._gap, self._head
            self._gap = _leaves_gap(parts)
            self._head = parts if parts - {TARGET} <= _HEADS else None
            if parts - {TARGET} == {AUXILIARY}:  # whatever the clause says
                self.sight = None
            # Words need no second look: only those of which a form is there are drawn.
            seen = call[0] in _DRAWS_WORD or self.sight is None
            found = dict.fromkeys(v for v in self._outcomes_inside(run) if seen or sight.shows(v, parts))
            self.sight, self._gap, self._head = sight, gap, head
            by_features: dict[Hashable, list[Value]] = defaultdict(list)
            for value in found:
                by_features[features(value)].append(value)
            self._seen[call, parts] = by_features
        return self._seen[call, parts]

    def _outcomes_inside(self, run: Callable[[], V]) -> list[V]:
        outer, self._inside = self._inside, True
        try:
            return self.outcomes(run)
        finally:
            self._inside = outer


def _leaves_gap(parts: Parts) -> bool:
    """Whether a predicate or clause is shown without its object."""
    if parts & {FINITE, FINITE_GAP, ASKED, ASKED_GAP}:
        return not parts & {FINITE, ASKED}
    return bool(parts & {*VERB_FORMS, TAIL}) and TARGET not in parts


class Later:
    """A noun phrase that is drawn when it is first looked at: most exchanges leave their topic alone."""

    def __init__(self, draw: Callable[[], NounPhrase]) -> None:
        self._draw = draw

    @cached_property
    def drawn(self) -> NounPhrase:
        """The phrase."""
        return self._draw()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drawn, name)


def _without_words(argument: Hashable) -> Hashable:
    if isinstance(argument, NounPhrase) and is_hidden(argument):
        return "hidden", features(argument), argument.is_pronoun
    return argument
