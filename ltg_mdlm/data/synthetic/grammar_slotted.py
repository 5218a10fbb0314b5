"""The classes of the generator of the built-in corpus, with a slot for every phrase that they draw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ltg_mdlm.data.synthetic.grammar_chance import Chance
from ltg_mdlm.data.synthetic.grammar_clauses import Clause, Predicate
from ltg_mdlm.data.synthetic.grammar_derivation import Derivation, Determiners, Later
from ltg_mdlm.data.synthetic.grammar_frames import Clauses, Frame
from ltg_mdlm.data.synthetic.grammar_lexicon import Lexicon, Noun, Verb, WordClass, comparative_of
from ltg_mdlm.data.synthetic.grammar_phrases import NounPhrase, Phrases
from ltg_mdlm.data.synthetic.grammar_slots import Value, is_hidden
from ltg_mdlm.data.synthetic.grammar_stories import Story
from ltg_mdlm.data.synthetic.grammar_talk import Talk

V = TypeVar("V", bound=Value)


class SlotWords(WordClass[Any]):
    """A word class that leaves the choice to a derivation."""

    def draw(self, chance: Chance) -> Any:
        """Any member."""
        assert isinstance(chance, Derivation)
        return chance.word(self)


class SlotLexicon(Lexicon):
    """The lexicon, its words to be found by their forms."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: dict[WordClass[Any], dict[str, list[Any]]] = {}
        for classes in (self.nouns, self.verbs, self.adjectives):
            classes.update({name: self._slots(words) for name, words in classes.items()})
        self.manners = self._slots(self.manners)

    def _slots(self, words: WordClass[Any]) -> SlotWords:
        made = SlotWords(words.members, 0.0)
        by_form = self.forms[made] = defaultdict(list)
        for member in made.members:
            for form in dict.fromkeys(_forms(member)):
                by_form[form.lower()].append(member)
        return made


def _forms(word: Any) -> Iterable[str]:
    if isinstance(word, Noun):
        return filter(None, (word.singular, word.plural))
    if isinstance(word, Verb):
        return word.base, word.third, word.past, word.participle, word.gerund
    return word, comparative_of(word)


class SlotPhrases(Phrases):
    """Noun phrases and places, each a slot."""

    chance: Derivation

    def __init__(self, lexicon: Lexicon, chance: Derivation, owners: Sequence[str] = ()) -> None:
        super().__init__(lexicon, chance, owners)
        self.owners = tuple(owners)
        self._singular, self._plural, self._mass = map(Determiners, (self._singular, self._plural, self._mass))

    def _slot(self, draw: Callable[..., V], *arguments: Hashable, **named: Hashable) -> V:
        call = (draw.__name__, self.owners, *arguments, *named.values())
        return self.chance.slot(call, partial(draw, *arguments, **named))

    def noun_phrase(
        self, kind: str, *, plural: bool | None = None, determiner: str | None = None, adjectives: int | None = None
    ) -> NounPhrase:
        """A slot, as everywhere here."""
        return self._slot(super().noun_phrase, kind, plural=plural, determiner=determiner, adjectives=adjectives)

    def is_indefinite(self, phrase: NounPhrase) -> bool:
        """Yes and no, where the words are hidden."""
        supposed = self.chance.coin(0.5)
        return self.chance.until(
            lambda: supposed, lambda said: is_hidden(phrase) or said == Phrases.is_indefinite(self, phrase)
        )

    def property_of(self, phrase: NounPhrase) -> str:
        """A slot, as everywhere here."""
        return self._slot(super().property_of, phrase)

    def inside(self) -> str:
        """A slot, as everywhere here."""
        return self._slot(super().inside)

    def near(self) -> str:
        """A slot, as everywhere here."""
        return self._slot(super().near)

    def at_place(self) -> str:
        """A slot, as everywhere here."""
        return self._slot(super().at_place)

    def where(self, kind: str) -> str:
        """A slot, as everywhere here."""
        return self._slot(super().where, kind)


class SlotClauses(Clauses):
    """Predicates and the modifiers of noun phrases, each a slot."""

    chance: Derivation

    def __init__(self, phrases: SlotPhrases, *, past: bool) -> None:
        super().__init__(phrases, past=past)
        self._world = (past, phrases.owners)

    def _slot(self, draw: Callable[..., V], *arguments: Hashable, **named: Hashable) -> V:
        call = (draw.__name__, self._world, *arguments, *named.values())
        return self.chance.slot(call, partial(draw, *arguments, **named))

    def clause(self, subject: NounPhrase, predicate: Predicate | None = None) -> Clause:
        """A slot, as everywhere here."""
        return self._clause(super().clause, subject, predicate)

    def affirmative(self, subject: NounPhrase, predicate: Predicate | None = None) -> Clause:
        """A slot, as everywhere here."""
        return self._clause(super().affirmative, subject, predicate)

    def _clause(self, draw: Callable[..., Clause], subject: NounPhrase, predicate: Predicate | None) -> Clause:
        """With a predicate that was drawn, it is drawn again as a part of the clause."""
        drawn = self.chance.slot_of(predicate) if predicate is not None else None
        if self.chance.is_inside or (predicate is not None and drawn is None):
            return draw(subject, predicate)

        def run() -> Clause:
            return draw(subject, self.chance.slot(drawn.call, drawn.run) if drawn is not None else None)

        subject = subject.drawn if isinstance(subject, Later) else subject
        call = (draw.__name__, self._world, subject, drawn.call if drawn is not None else None)
        return replace(self.chance.slot(call, run), subject=subject)

    def predicate(self, subject: NounPhrase) -> Predicate:
        """A slot, as everywhere here."""
        return self._slot(super().predicate, subject)

    def doing(self, subject: NounPhrase) -> Predicate:
        """A slot, as everywhere here."""
        return self._slot(super().doing, subject)

    def simple(self, subject: NounPhrase, *, with_object: bool | None = None) -> Predicate:
        """A slot, as everywhere here."""
        return self._slot(super().simple, subject, with_object=with_object)

    def copula(self, subject: NounPhrase) -> Predicate:
        """A slot, as everywhere here."""
        return self._slot(super().copula, subject)

    def located(self, subject: NounPhrase) -> Predicate:
        """A slot, as everywhere here."""
        return self._slot(super().located, subject)

    def reason(self, subject: NounPhrase) -> Predicate:
        """A slot, as everywhere here."""
        return self._slot(super().reason, subject)

    def from_frame(self, frame: Frame, subject: NounPhrase) -> Predicate:
        """A slot, as everywhere here."""
        return self._slot(super().from_frame, frame, subject)

    def _target(self, kind: str, subject: NounPhrase) -> NounPhrase:
        return self._slot(super()._target, kind, subject)

    def _content(self) -> str:
        return self._slot(super()._content)

    def _infinitive(self, subject: NounPhrase) -> str:
        return self._slot(super()._infinitive, subject)

    def _beside(self, phrase: NounPhrase) -> str:
        return self._slot(super()._beside, phrase)

    def _subject_relative(self, phrase: NounPhrase) -> str:
        return self._slot(super()._subject_relative, phrase)

    def _object_relative(self, phrase: NounPhrase) -> str:
        return self._slot(super()._object_relative, phrase)


class SlotTalk(Talk):
    """Exchanges; who acts in them is a slot."""

    chance: Derivation

    def _actor(self, _: NounPhrase) -> NounPhrase:
        """Exchanges with an actor have no other use for the topic."""
        return self.chance.slot(("actor",), lambda: super(SlotTalk, self)._actor(self.topic()))

    def topic(self) -> NounPhrase:
        """A slot, as everywhere here."""
        return self.chance.slot(("topic",), super().topic)

    def _stuff(self, *kinds: str) -> str:
        return self.chance.slot(("stuff in talk", *kinds), lambda: super(SlotTalk, self)._stuff(*kinds))


class SlotStory(Story):
    """A story in the middle: the sentence before may have been about anybody."""

    chance: Derivation
    _begun = False

    def _mention(self, who: NounPhrase) -> NounPhrase:
        if not self._begun:
            self._begun, self._last = True, who
        return super()._mention(who)

    def _character(self) -> NounPhrase:
        return self.chance.slot(("character",), super()._character)

    def _stuff(self) -> str:
        return self.chance.slot(("stuff in stories", self.first_person), super()._stuff)
