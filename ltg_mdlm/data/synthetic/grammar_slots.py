"""What stands for a phrase whose words are not looked at: the features that the generator decides by, and a mark.

A mark names the slot that the phrase fills and the part of it that is shown there: `\x02` slot part `\x03`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

from ltg_mdlm.data.synthetic.grammar_clauses import BE, Clause, Predicate, joined
from ltg_mdlm.data.synthetic.grammar_lexicon import Noun, Verb
from ltg_mdlm.data.synthetic.grammar_phrases import Agreement, NounPhrase

Value: TypeAlias = NounPhrase | Predicate | Clause | Noun | str
"""What fills a slot."""


DETERMINER, REST, SINGULAR, PLURAL, TARGET, TAIL, WORD = "drspotw"


VERB_FORMS = "BTPNG"


FINITE, FINITE_GAP, AUXILIARY, ASKED, ASKED_GAP = "fgxqh"


MARK = re.compile("\x02(\\d+)([a-zA-Z])\x03")


@dataclass(frozen=True, slots=True)
class HiddenNounPhrase(NounPhrase):
    """A noun phrase without its words."""


@dataclass(frozen=True, slots=True)
class HiddenVerb(Verb):
    """A verb without its forms."""

    hidden_stative: bool = False

    @property
    def stative(self) -> bool:
        """As the verb that it stands for."""
        return self.hidden_stative


@dataclass(frozen=True, slots=True)
class HiddenClause(Clause):
    """A clause of which only the subject is known, and whether there is an object."""

    slot: int = 0

    @property
    def is_past(self) -> bool:
        """As the clause that it stands for."""
        return self.tense == "past"

    @property
    def auxiliary(self) -> str:
        """Its mark."""
        return mark(self.slot, AUXILIARY)

    def question(self, *, gap: bool = False) -> str:
        """The auxiliary, the subject, and a mark for everything else."""
        return joined(self.auxiliary, self.subject.text, mark(self.slot, ASKED_GAP if gap else ASKED))

    def _finite(self, *, gap: bool) -> str:
        return mark(self.slot, FINITE_GAP if gap else FINITE)


def mark(slot: int, part: str) -> str:
    """The text that stands for a part of what fills a slot."""
    return f"\x02{slot}{part}\x03"


def features(value: Value) -> Hashable:
    """All that the generator's decisions depend on, the words aside."""
    if isinstance(value, NounPhrase):
        noun = _noun_features(value.noun) if value.noun else None
        return value.kind, value.agreement.key, noun
    if isinstance(value, Predicate):
        return value.verb is BE, value.verb.stative, _target_features(value)
    if isinstance(value, Clause):
        return value.is_past, _target_features(value.predicate)
    return _noun_features(value) if isinstance(value, Noun) else None


def word_features(word: object) -> Hashable:
    """The same of a word."""
    if isinstance(word, Noun):
        return (*_noun_features(word), word.gender)
    return word.stative if isinstance(word, Verb) else None


def _target_features(predicate: Predicate) -> Hashable:
    return predicate.target and ("person" if predicate.target.kind == "person" else "other")


def _noun_features(noun: Noun) -> tuple[bool, bool]:
    return bool(noun.plural), noun.singular[0].isupper()


def has_object(value: Value) -> bool:
    """Whether it is a predicate or clause with an object, which a question may leave out."""
    predicate = value.predicate if isinstance(value, Clause) else value
    return isinstance(predicate, Predicate) and predicate.target is not None


def hidden(value: Value, slot: int) -> Value:
    """What stands for a value with these features in a slot."""
    if isinstance(value, NounPhrase):
        return _hidden_noun_phrase(value, slot)
    if isinstance(value, Predicate):
        return _hidden_predicate(value, slot)
    if isinstance(value, Clause):
        tense = "past" if value.is_past else "present"
        return HiddenClause(value.subject, _hidden_predicate(value.predicate, slot), tense, value.negation, slot)
    return _hidden_noun(value, slot) if isinstance(value, Noun) else mark(slot, WORD)


def is_hidden(phrase: NounPhrase) -> bool:
    """Whether it stands for another."""
    return isinstance(phrase, HiddenNounPhrase)


def slot_of(phrase: NounPhrase) -> int | None:
    """The slot that a hidden noun phrase stands in; None for the pronoun that refers to it."""
    found = MARK.search(phrase.text)
    return int(found[1]) if found else None


def _hidden_noun(noun: Noun, slot: int) -> Noun:
    capital = "N" if noun.singular[0].isupper() else ""
    return Noun(capital + mark(slot, SINGULAR), mark(slot, PLURAL) if noun.plural else "", noun.gender)


def _hidden_noun_phrase(phrase: NounPhrase, slot: int) -> HiddenNounPhrase:
    agreement = phrase.agreement
    if agreement.plural:  # the gender of several shows nowhere
        agreement = Agreement(agreement.person, plural=True)
    name = phrase.noun is not None and phrase.noun.singular[0].isupper()
    return HiddenNounPhrase(
        text=mark(slot, REST) if name else f"{mark(slot, DETERMINER)} {mark(slot, REST)}",
        agreement=agreement,
        kind=phrase.kind,
        noun=_hidden_noun(phrase.noun, slot) if phrase.noun else None,
        is_pronoun=phrase.is_pronoun,
    )


def _hidden_predicate(predicate: Predicate, slot: int) -> Predicate:
    tail = f" {mark(slot, TAIL)}"
    if predicate.verb is BE:
        return Predicate(BE, rest=tail)
    base, third, past, participle, gerund = (mark(slot, form) for form in VERB_FORMS)
    verb = HiddenVerb(base, third, past, participle, gerund, hidden_stative=predicate.verb.stative)
    target = predicate.target
    if target is not None:
        target = HiddenNounPhrase(mark(slot, TARGET), target.agreement, target.kind)
    return Predicate(verb, target, tail)
