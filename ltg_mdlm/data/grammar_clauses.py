"""Clauses of the built-in corpus: who does what, and its forms as statement, question, embedded question or command."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ltg_mdlm.data.grammar_lexicon import Verb, verb
from ltg_mdlm.data.grammar_phrases import Agreement, NounPhrase, Phrases, possessive, reflexive, subject_pronoun

BE = Verb("be", "is", "was", "been", "being")
_MODALS = ("will", "can", "could", "should", "must", "would", "might")
NOT = "n't"  # the contracted negation, which is written with its auxiliary
_CONTRACTED = {"will": "won't", "can": "can't", "am": "am not", "must": "must not", "might": "might not"}


@dataclass(frozen=True, slots=True)
class Predicate:
    """A verb and what follows it: "give" + "the dog" + " a bone".

    Attributes:
        verb: the verb, with its preposition or particle.
        object: the noun phrase that a question with "what" or "who" asks for.
        rest: whatever else follows, with its leading space.
    """

    verb: Verb
    object: NounPhrase | None = None
    rest: str = ""

    def after_verb(self, *, gap: bool = False) -> str:
        """Everything behind the verb, each part with its leading space; with `gap` the object is left out."""
        parts = ["" if gap or self.object is None else self.object.text]
        if self.verb.preposition:
            parts.insert(0, self.verb.preposition)
        if self.verb.particle:
            pronoun = self.object is not None and self.object.is_pronoun
            parts.insert(1 if pronoun else 0, self.verb.particle)
        return "".join(f" {part}" for part in parts if part) + self.rest


@dataclass(frozen=True, slots=True)
class Frame:
    """One way to build a predicate: which subjects, which verbs, what follows.

    `object` is a kind of noun phrase; `rest` what else follows (a key of `Clauses._rests`).
    """

    weight: float
    subjects: str
    verbs: str
    object: str = ""
    rest: str = ""


FRAMES = (
    Frame(9, "person", "activity"),
    Frame(5, "person", "activity", rest="location"),
    Frame(3, "person", "activity", rest="manner"),
    Frame(8, "animal", "animal_activity"),
    Frame(5, "animal", "animal_activity", rest="location"),
    Frame(2, "animal", "animal_activity", rest="manner"),
    Frame(6, "person", "motion", rest="goal"),
    Frame(7, "person", "ingest", "food"),
    Frame(6, "animal", "feed", "food"),
    Frame(3, "person", "drink", "drink"),
    Frame(12, "person", "handle", "object"),
    Frame(9, "person", "social", "animate"),
    Frame(10, "animal", "animal_social", "animate"),
    Frame(4, "person", "reflexive", rest="self"),
    Frame(3, "animal", "animal_reflexive", rest="self"),
    Frame(4, "person", "give", "animate", "gift"),
    Frame(5, "person", "put", "object", "inside"),
    Frame(3, "person", "groom", "body"),
    Frame(4, "person", "wear", "clothes"),
    Frame(6, "person", "possess", "object"),
    Frame(3, "person", "possess", "food"),
    Frame(2, "person", "possess", "animal"),
    Frame(3, "person", "drive", "vehicle"),
    Frame(3, "person", "make", "toy"),
    Frame(4, "person", "say", rest="content"),
    Frame(4, "person", "ask", "animate", "infinitive"),
    Frame(6, "person", "intend", rest="infinitive"),
    Frame(1, "object vehicle food", "change"),
    Frame(2, "vehicle", "vehicle_move"),
    Frame(2, "vehicle", "vehicle_move", rest="location"),
    Frame(1, "plant", "grow"),
    Frame(1, "plant", "grow", rest="location"),
)
_EMBEDDING = ("content", "infinitive")
_FRAMES_OF = {
    kind: {frame: frame.weight for frame in FRAMES if kind in frame.subjects.split()}
    for kind in {kind for frame in FRAMES for kind in frame.subjects.split()}
}


@dataclass(frozen=True, slots=True)
class Clause:
    """A subject and a predicate with a tense: everything but the word order.

    Attributes:
        tense: present, past, progressive, past progressive, perfect, or a modal verb.
        negation: "" or the word behind the auxiliary: "not", or "n't" for the contracted form.
    """

    subject: NounPhrase
    predicate: Predicate
    tense: str
    negation: str = ""

    @property
    def auxiliary_and_verb(self) -> tuple[str, str]:
        """The finite auxiliary ("" if the verb itself is finite) and the form of the verb ("" for a plain "is")."""
        return verb_group(self.predicate.verb, self.subject.agreement, self.tense, support=bool(self.negation))

    @property
    def auxiliary(self) -> str:
        """The auxiliary of the question: "is", "does", ..."""
        return verb_group(self.predicate.verb, self.subject.agreement, self.tense, support=True)[0]

    @property
    def statement(self) -> str:
        """ "the dog is chasing the cat" """
        return self.embedded()

    def question(self, *, gap: bool = False) -> str:
        """ "is the dog chasing the cat", with `gap` "is the dog chasing", to stand behind "what" """
        auxiliary, form = verb_group(self.predicate.verb, self.subject.agreement, self.tense, support=True)
        if self.negation == NOT:
            auxiliary, adverb = negated(auxiliary, NOT), ""
        else:
            adverb = self.negation
        return joined(auxiliary, self.subject.text, adverb, form) + self.predicate.after_verb(gap=gap)

    def embedded(self, *, gap: bool = False) -> str:
        """The order of a statement; with `gap` "the dog is chasing", to stand behind "I know what"."""
        auxiliary, form = self.auxiliary_and_verb
        words = joined(self.subject.text, negated(auxiliary, self.negation), form)
        return words + self.predicate.after_verb(gap=gap)

    @property
    def finite(self) -> str:
        """ "is chasing the cat", the statement without its subject"""
        auxiliary, form = self.auxiliary_and_verb
        return joined(negated(auxiliary, self.negation), form) + self.predicate.after_verb()

    @property
    def tag(self) -> str:
        """ "isn't it", to stand behind the statement (for clauses without negation)"""
        auxiliary = self.auxiliary if self.negation else negated(self.auxiliary, NOT)
        return joined(auxiliary, subject_pronoun(self.subject.agreement))

    @property
    def wh_word(self) -> str:
        """The word that asks for the object."""
        assert self.predicate.object is not None
        return "who" if self.predicate.object.kind == "person" else "what"


def joined(*parts: str) -> str:
    """The non-empty parts, separated by spaces."""
    return " ".join(part for part in parts if part)


def sentence(text: str, end: str = ".") -> str:
    """The text with a capital letter and its full stop."""
    return text[0].upper() + text[1:] + end


def negated(auxiliary: str, negation: str) -> str:
    """`is`, `is not` or `isn't`."""
    if negation != NOT:
        return joined(auxiliary, negation)
    return _CONTRACTED.get(auxiliary, auxiliary + "n't")


def verb_group(main: Verb, agreement: Agreement, tense: str, *, support: bool) -> tuple[str, str]:
    """Auxiliary and verb form, either of which may be empty.

    Args:
        support: negation and questions ask for an auxiliary: "does eat" where a statement has "eats".
    """
    if tense in _MODALS:
        return tense, main.base
    if tense == "perfect":
        return have_form(agreement), main.participle
    if tense in ("progressive", "past progressive"):
        return be_form(agreement, past=tense == "past progressive"), main.gerund
    past = tense == "past"
    if main is BE:
        return be_form(agreement, past=past), ""
    if support:
        return ("did" if past else "does" if is_third(agreement) else "do"), main.base
    return "", main.past if past else main.third if is_third(agreement) else main.base


def is_third(agreement: Agreement) -> bool:
    """Third person singular, the one that verbs mark."""
    return agreement.person == 3 and not agreement.plural


def be_form(agreement: Agreement, *, past: bool) -> str:
    """am, is, are, was or were."""
    first = agreement.person == 1 and not agreement.plural
    if past:
        return "was" if first or is_third(agreement) else "were"
    return "am" if first else "is" if is_third(agreement) else "are"


def have_form(agreement: Agreement) -> str:
    """has or have."""
    return "has" if is_third(agreement) else "have"


class Clauses:
    """Draws predicates and clauses from the frames."""

    def __init__(self, phrases: Phrases) -> None:
        self.phrases = phrases
        self._rests: dict[str, Callable[[NounPhrase], str]] = {
            "location": lambda subject: phrases.where(subject.kind),
            "inside": lambda _: phrases.inside(),
            "manner": lambda _: phrases.lexicon.manners.draw(phrases.rng),
            "goal": lambda _: f"to {phrases.place().text}",
            "gift": lambda _: phrases.noun_phrase(phrases.weighted({"object": 3, "food": 1})).text,
            "self": lambda subject: reflexive(subject.agreement),
            "content": self._content,
            "infinitive": self._infinitive,
        }

    def predicate(self, subject: NounPhrase, *, embedding: bool = True, object: bool | None = None) -> Predicate:
        """A predicate that fits a subject; the arguments are those of `frame`."""
        return self.from_frame(self.frame(subject, embedding=embedding, object=object), subject)

    def frame(self, subject: NounPhrase, *, embedding: bool = True, object: bool | None = None) -> Frame:
        """A frame that fits a subject.

        Args:
            embedding: whether a clause or infinitive may be embedded in it.
            object: whether it must have (True) or lack (False) an object.
        """
        frames = {
            frame: weight
            for frame, weight in _FRAMES_OF[subject.kind].items()
            if (embedding or frame.rest not in _EMBEDDING) and object in (None, bool(frame.object))
        }
        return self.phrases.weighted(frames)

    def from_frame(self, frame: Frame, subject: NounPhrase) -> Predicate:
        """A predicate of this frame."""
        drawn = self.phrases.lexicon.verbs[frame.verbs].draw(self.phrases.rng)
        object = self._object(frame.object, subject)
        # An infinitive behind an object tells what the object does: "Anna asked Ben to wash himself".
        rest = f" {self._rests[frame.rest](object or subject)}" if frame.rest else ""
        return Predicate(drawn, object, rest)

    def _object(self, kind: str, subject: NounPhrase) -> NounPhrase | None:
        if not kind:
            return None
        determiner = None
        if kind == "body" or (kind == "clothes" and self.phrases.coin(0.5)):
            determiner = possessive(subject.agreement)
        return self.other_than(subject, kind, determiner)

    def other_than(self, subject: NounPhrase, kind: str, determiner: str | None = None) -> NounPhrase:
        """A noun phrase with another head noun than the subject's."""
        while True:
            phrase = self.phrases.noun_phrase(kind, determiner=determiner)
            if phrase.noun is not subject.noun:
                return phrase

    def copula(self, subject: NounPhrase) -> Predicate:
        """ "is red", "are under the bed", "is very happy" """
        quality = self.phrases.weighted({"property": 6, "very": 2, "where": 3 if subject.kind != "place" else 0})
        if quality == "where":
            return Predicate(BE, rest=f" {self.phrases.where(subject.kind)}")
        adverb = self.phrases.weighted({"very ": 3, "so ": 1, "too ": 1}) if quality == "very" else ""
        return Predicate(BE, rest=f" {adverb}{self.phrases.property_of(subject)}")

    def reason(self, subject: NounPhrase) -> Predicate:
        """Why somebody does something: how they feel, what they want."""
        if self.phrases.coin(0.6):
            return Predicate(BE, rest=f" {self.phrases.property_of(subject)}")
        possess = Frame(1, "", "possess", "object") if self.phrases.coin(0.5) else Frame(1, "", "intend", "", "infinitive")
        return self.from_frame(possess, subject)

    def any_predicate(self, subject: NounPhrase) -> Predicate:
        """From a frame or with a copula."""
        if subject.kind not in _FRAMES_OF or self.phrases.coin(0.25):
            return self.copula(subject)
        return self.predicate(subject)

    def tense(self, predicate: Predicate, *, past: bool) -> str:
        """A tense that goes with the verb, in a story told in the past or a talk in the present."""
        if past:
            options = {"past": 8.0, "past progressive": 1.0, "could": 0.4, "would": 0.2}
        else:
            options = {"present": 2.0, "progressive": 4.0, "perfect": 1.5, "past": 1.5, "will": 1.0, "can": 1.0}
            options |= {"should": 0.2, "must": 0.2, "might": 0.1}
        if predicate.verb is BE or predicate.verb.stative:
            options = {"past": 1.0} if past else {"present": 8.0, "past": 2.0, "will": 0.5}
        return self.phrases.weighted(options)

    def negation(self, probability: float = 0.12) -> str:
        """ "", "not" or "n't" """
        return self.phrases.weighted({NOT: 0.6, "not": 0.4}) if self.phrases.coin(probability) else ""

    def clause(self, subject: NounPhrase, *, past: bool, predicate: Predicate | None = None) -> Clause:
        """A clause about a subject."""
        predicate = predicate or self.any_predicate(subject)
        return Clause(subject, predicate, self.tense(predicate, past=past), self.negation())

    def modified(self, phrase: NounPhrase, *, past: bool) -> NounPhrase:
        """The noun phrase with a prepositional phrase or relative clause behind it, which may differ in number."""
        make = self.phrases.weighted({self._near: 4, self._subject_relative: 3, self._object_relative: 2})
        return replace(phrase, text=f"{phrase.text} {make(phrase, past)}")

    def _near(self, phrase: NounPhrase, past: bool) -> str:
        if phrase.animate and self.phrases.coin(0.4):
            return f"with {self.phrases.noun_phrase('object', determiner=None).text}"
        return self.phrases.near() if self.phrases.coin(0.7) else self.phrases.inside()

    def _subject_relative(self, phrase: NounPhrase, past: bool) -> str:
        predicate = self._plain_predicate(phrase)
        return joined("who" if phrase.kind == "person" else "that", self.clause_of(phrase, predicate, past).finite)

    def _object_relative(self, phrase: NounPhrase, past: bool) -> str:
        """ "that the boys like": the phrase is the object."""
        subject = self.phrases.noun_phrase("person", determiner=None)
        kind = phrase.kind if phrase.kind in ("animal", "person") else "object"
        verbs = self.phrases.lexicon.verbs["social" if kind != "object" else "handle"]
        clause = self.clause_of(subject, Predicate(verbs.draw(self.phrases.rng), phrase), past)
        return joined("that", clause.embedded(gap=True))

    def clause_of(self, subject: NounPhrase, predicate: Predicate, past: bool) -> Clause:
        """A clause without negation."""
        return Clause(subject, predicate, self.tense(predicate, past=past))

    def _plain_predicate(self, subject: NounPhrase) -> Predicate:
        if subject.kind not in _FRAMES_OF:
            return self.copula(subject)
        return self.predicate(subject, embedding=False)

    def _content(self, _: NounPhrase) -> str:
        inner = self.phrases.noun_phrase(self.phrases.weighted({"person": 3, "animal": 2, "object": 2, "food": 1}))
        return joined("that", self.clause_of(inner, self._plain_predicate(inner), self.phrases.coin(0.4)).statement)

    def _infinitive(self, subject: NounPhrase) -> str:
        predicate = self._plain_predicate(subject)
        return f"to {predicate.verb.base}{predicate.after_verb()}"
