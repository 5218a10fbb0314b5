"""Clauses of the built-in corpus: verb forms, agreement, and the word order of statements and questions.

Nothing here is left to chance; `grammar_frames` draws what the clauses say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ltg_mdlm.data.synthetic.grammar_lexicon import Verb
from ltg_mdlm.data.synthetic.grammar_phrases import Agreement, NounPhrase, subject_pronoun

BE = Verb("be", "is", "was", "been", "being")


NOT = "n't"  # the contracted negation, which is written with its auxiliary


_MODALS = ("will", "can", "could", "should", "must")


_CONTRACTED = {"will": "won't", "can": "can't", "am": "am not"}


@dataclass(frozen=True, slots=True)
class Predicate:
    """A verb and what follows it: "give" + "the dog" + " a bone".

    Attributes:
        verb: the verb, with its preposition or particle.
        target: the object, which a question with "what" or "who" asks for.
        rest: whatever else follows, with its leading space.
    """

    verb: Verb
    target: NounPhrase | None = None
    rest: str = ""

    @property
    def bare(self) -> str:
        """The predicate of a command or infinitive, as in "look at the dog"."""
        return self.verb.base + self.after_verb()

    @property
    def in_negation(self) -> Predicate:
        """The predicate behind "not", where "some" becomes "any"."""
        target = self.target and replace(self.target, text=_any_for_some(self.target.text))
        return replace(self, target=target, rest=f" {_any_for_some(self.rest[1:])}" if self.rest else "")

    def after_verb(self, *, gap: bool = False) -> str:
        """Everything behind the verb, with its leading space; with `gap` the object is left out."""
        parts = ["" if gap or self.target is None else self.target.text]
        if self.verb.preposition:
            parts.insert(0, self.verb.preposition)
        if self.verb.particle:
            behind_pronoun = self.target is not None and self.target.is_pronoun
            parts.insert(1 if behind_pronoun else 0, self.verb.particle)
        return "".join(f" {part}" for part in parts if part) + self.rest


@dataclass(frozen=True, slots=True)
class Clause:
    """A subject and a predicate with a tense: everything but the word order.

    Attributes:
        tense: present, past, progressive, past progressive, perfect, or a modal verb.
        negation: the word behind the auxiliary: none, "not", or `NOT` for the contracted form.
    """

    subject: NounPhrase
    predicate: Predicate
    tense: str
    negation: str = ""

    def forms(self, *, question: bool = False) -> tuple[str, str]:
        """The auxiliary and the form of the verb, in a question or statement; see `verb_group`."""
        support = question or bool(self.negation)
        return verb_group(self.predicate.verb, self.subject.agreement, self.tense, support=support)

    @property
    def auxiliary(self) -> str:
        """The auxiliary of the question and of short answers: is, does, will, ..."""
        return self.forms(question=True)[0]

    @property
    def statement(self) -> str:
        """As in "the dog is chasing the cat"."""
        return joined(self.subject.text, self.finite)

    @property
    def finite(self) -> str:
        """The statement without its subject."""
        return self._finite(gap=False)

    def embedded(self) -> str:
        """The statement without its object, as in "I know what (the dog is chasing)"."""
        return joined(self.subject.text, self._finite(gap=True))

    def question(self, *, gap: bool = False) -> str:
        """As in "is the dog chasing the cat"; with `gap` as in "what (is the dog chasing)"."""
        auxiliary, form = self.forms(question=True)
        return joined(auxiliary, self.subject.text, form) + self.predicate.after_verb(gap=gap)

    @property
    def tag(self) -> str:
        """As in "the dog is hungry, (isn't it)"."""
        auxiliary = self.auxiliary if self.negation else negated(self.auxiliary, NOT)
        return joined(auxiliary, subject_pronoun(self.subject.agreement))

    @property
    def is_past(self) -> bool:
        """Whether what it tells is over."""
        return self.tense in ("past", "perfect")

    @property
    def wh_word(self) -> str:
        """The word that asks for the object."""
        assert self.predicate.target is not None
        return "who" if self.predicate.target.kind == "person" else "what"

    def _finite(self, *, gap: bool) -> str:
        auxiliary, form = self.forms()
        predicate = self.predicate.in_negation if self.negation else self.predicate
        return joined(negated(auxiliary, self.negation), form) + predicate.after_verb(gap=gap)


def joined(*parts: str) -> str:
    """The non-empty parts, separated by spaces."""
    return " ".join(part for part in parts if part)


def sentence(text: str, end: str = ".") -> str:
    """The text with a capital letter and its full stop."""
    return text[0].upper() + text[1:] + end


def negated(auxiliary: str, negation: str) -> str:
    """is, is not or isn't."""
    if negation != NOT:
        return joined(auxiliary, negation)
    return _CONTRACTED.get(auxiliary, auxiliary + NOT)


def verb_group(main: Verb, agreement: Agreement, tense: str, *, support: bool) -> tuple[str, str]:
    """Auxiliary and verb form; the first is empty in "eats", the second in a plain "is".

    Args:
        support: negation and questions ask for an auxiliary: "does", "eat" where a statement has "eats".
    """
    if tense in _MODALS:
        return tense, main.base
    if tense == "perfect":
        return ("has" if is_third(agreement) else "have"), main.participle
    if tense in ("progressive", "past progressive"):
        return be_form(agreement, past=tense == "past progressive"), main.gerund
    past = tense == "past"
    if main is BE:
        return be_form(agreement, past=past), ""
    if support:
        return ("did" if past else "does" if is_third(agreement) else "do"), main.base
    return "", main.past if past else main.third if is_third(agreement) else main.base


def be_form(agreement: Agreement, *, past: bool) -> str:
    """am, is, are, was or were."""
    first = agreement.person == 1 and not agreement.plural
    if past:
        return "was" if first or is_third(agreement) else "were"
    return "am" if first else "is" if is_third(agreement) else "are"


def _any_for_some(phrase: str) -> str:
    first, space, others = phrase.partition(" ")
    return f"any{space}{others}" if first == "some" else phrase


def is_third(agreement: Agreement) -> bool:
    """Third person singular, the one that verbs mark."""
    return agreement.person == 3 and not agreement.plural
