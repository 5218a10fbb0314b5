"""What is said in the built-in corpus: which subjects do what to which objects, drawn with weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ltg_mdlm.data.synthetic.grammar_clauses import BE, NOT, Clause, Predicate, joined
from ltg_mdlm.data.synthetic.grammar_phrases import NounPhrase, Phrases, possessive, reflexive


@dataclass(frozen=True, slots=True)
class Frame:
    """One way to build a predicate.

    Attributes:
        weight: how often, relative to the other frames of a subject.
        subjects: kinds of noun phrases that may be the subject, separated by spaces.
        verbs: a word class of verbs.
        target: kind of the object; empty for none.
        rest: what else follows (a key of `Clauses.rests`); empty for nothing.
    """

    weight: float
    subjects: str
    verbs: str
    target: str = ""
    rest: str = ""

    @property
    def embeds(self) -> bool:
        """Whether another verb follows."""
        return self.rest in ("content", "infinitive")


GO = Frame(6, "person", "motion", rest="goal")


INTEND = Frame(6, "person", "intend", rest="infinitive")


POSSESS = Frame(6, "person", "possess", "object")


BY_ONESELF = {
    "person": Frame(7, "person", "reflexive", rest="self"),
    "animal": Frame(4, "animal", "animal_reflexive", rest="self"),
}


FRAMES = (
    Frame(9, "person", "activity"),
    Frame(5, "person", "activity", rest="location"),
    Frame(3, "person", "activity", rest="manner"),
    Frame(8, "animal", "animal_activity"),
    Frame(5, "animal", "animal_activity", rest="location"),
    Frame(2, "animal", "animal_activity", rest="manner"),
    Frame(7, "person", "ingest", "food"),
    Frame(6, "animal", "feed", "food"),
    Frame(3, "person", "drink", "drink"),
    Frame(12, "person", "handle", "object"),
    Frame(9, "person", "social", "animate"),
    Frame(10, "animal", "animal_social", "animate"),
    Frame(4, "person", "give", "person", "gift"),
    Frame(5, "person", "put", "object", "inside"),
    Frame(3, "person", "groom", "body"),
    Frame(4, "person", "wear", "clothes"),
    Frame(3, "person", "possess", "food"),
    Frame(2, "person", "possess", "animal"),
    Frame(3, "person", "drive", "vehicle"),
    Frame(3, "person", "make", "toy"),
    Frame(4, "person", "say", rest="content"),
    Frame(4, "person", "ask", "animate", "infinitive"),
    Frame(1, "object vehicle food", "change"),
    Frame(2, "vehicle", "vehicle_move"),
    Frame(2, "vehicle", "vehicle_move", rest="location"),
    Frame(1, "plant", "grow"),
    Frame(1, "plant", "grow", rest="location"),
    GO,
    INTEND,
    POSSESS,
    *BY_ONESELF.values(),
)


_FRAMES_OF = {
    kind: [frame for frame in FRAMES if kind in frame.subjects.split()]
    for kind in {kind for frame in FRAMES for kind in frame.subjects.split()}
}


_PAST = {"past": 8.0, "past progressive": 1.0, "could": 0.3}


_PRESENT = {
    "progressive": 4.0,
    "present": 2.0,
    "perfect": 2.0,
    "past": 1.5,
    "will": 1.0,
    "can": 1.0,
    "should": 0.2,
    "must": 0.2,
}


_PRESENT_STATE = {"present": 8.0, "past": 2.0, "will": 0.5}


class Clauses:
    """Draws predicates and clauses.

    Args:
        phrases: draws the noun phrases, and holds the source of chance.
        past: whether the text tells of the past, as a story does; otherwise it speaks of here and now.
    """

    def __init__(self, phrases: Phrases, *, past: bool) -> None:
        self.phrases = phrases
        self.chance = chance = phrases.chance
        self.past = past
        self.rests: dict[str, Callable[[NounPhrase], str]] = {
            "location": lambda subject: phrases.where(subject.kind),
            "inside": lambda _: phrases.inside(),
            "manner": lambda _: phrases.lexicon.manners.draw(chance),
            "goal": lambda _: f"to {phrases.place().text}",
            "gift": lambda _: phrases.noun_phrase(chance.weighted({"object": 3, "food": 1})).text,
            "self": lambda subject: reflexive(subject.agreement),
            "content": lambda _: self._content(),
            "infinitive": self._infinitive,
        }

    def clause(self, subject: NounPhrase, predicate: Predicate | None = None) -> Clause:
        """A clause, seldom negated, with this predicate or any that fits."""
        predicate = predicate or self.predicate(subject)
        return Clause(subject, predicate, self.tense(predicate), self.negation() if self.chance.coin(0.12) else "")

    def affirmative(self, subject: NounPhrase, predicate: Predicate | None = None) -> Clause:
        """A clause without negation."""
        predicate = predicate or self.predicate(subject)
        return Clause(subject, predicate, self.tense(predicate))

    def negation(self) -> str:
        """Either form of "not"."""
        return self.chance.weighted({NOT: 3, "not": 2})

    def tense(self, predicate: Predicate) -> str:
        """A tense that suits the verb and the text; states are not in progress."""
        state = predicate.verb is BE or predicate.verb.stative
        if self.past:
            return "past" if state else self.chance.weighted(_PAST)
        return self.chance.weighted(_PRESENT_STATE if state else _PRESENT)

    # Predicates.

    def predicate(self, subject: NounPhrase) -> Predicate:
        """Anything that can be said of the subject: what it does, how or where it is."""
        acts = {"person": 0.75, "animal": 0.75}.get(subject.kind, 0.3)
        if subject.kind in _FRAMES_OF and self.chance.coin(acts):
            return self.from_frame(self.frame(subject), subject)
        return self.copula(subject)

    def doing(self, subject: NounPhrase) -> Predicate:
        """What somebody does on purpose, and is not a state; without an embedded clause."""
        return self.chance.until(lambda: self.simple(subject), lambda predicate: not predicate.verb.stative)

    def simple(self, subject: NounPhrase, *, with_object: bool | None = None) -> Predicate:
        """A predicate without an embedded clause or infinitive; `with_object` asks for an object, or for none."""
        if subject.kind not in _FRAMES_OF:
            return self.copula(subject)

        def allowed(frame: Frame) -> bool:
            return not frame.embeds and with_object in (None, bool(frame.target))

        return self.from_frame(self.frame(subject, allowed), subject)

    def copula(self, subject: NounPhrase) -> Predicate:
        """As in "is red", "are under the bed", "is very happy"."""
        if subject.kind != "place" and self.chance.coin(0.27):
            return self.located(subject)
        degree = self.chance.weighted({"": 6, "very ": 1.2, "so ": 0.4, "too ": 0.4})
        return Predicate(BE, rest=f" {degree}{self.phrases.property_of(subject)}")

    def located(self, subject: NounPhrase) -> Predicate:
        """As in "is under the bed"."""
        return Predicate(BE, rest=f" {self.phrases.where(subject.kind)}")

    def reason(self, subject: NounPhrase) -> Predicate:
        """Why somebody does something: how they feel, what they want."""
        if self.chance.coin(0.6):
            return Predicate(BE, rest=f" {self.phrases.property_of(subject)}")
        return self.from_frame(self.chance.pick((POSSESS, INTEND)), subject)

    def frame(self, subject: NounPhrase, allowed: Callable[[Frame], bool] = lambda _: True) -> Frame:
        """A frame that fits a subject."""
        frames = [frame for frame in _FRAMES_OF[subject.kind] if allowed(frame)]
        return self.chance.weighted({frame: frame.weight for frame in frames})

    def from_frame(self, frame: Frame, subject: NounPhrase) -> Predicate:
        """A predicate of this frame."""
        drawn = self.phrases.lexicon.verbs[frame.verbs].draw(self.chance)
        target = self._target(frame.target, subject) if frame.target else None
        # An infinitive behind an object tells what the object does: "Anna asked Ben to wash himself".
        rest = f" {self.rests[frame.rest](target or subject)}" if frame.rest else ""
        return Predicate(drawn, target, rest)

    def other_than(self, subject: NounPhrase, kind: str, determiner: str | None = None) -> NounPhrase:
        """A noun phrase with another head noun than the subject's."""
        return self.chance.until(
            lambda: self.phrases.noun_phrase(kind, determiner=determiner),
            lambda phrase: phrase.noun is not subject.noun,
        )

    def _target(self, kind: str, subject: NounPhrase) -> NounPhrase:
        own = kind == "body" or (kind == "clothes" and self.chance.coin(0.5))
        return self.other_than(subject, kind, possessive(subject.agreement) if own else None)

    def _content(self) -> str:
        inner = self.phrases.noun_phrase(self.chance.weighted({"person": 3, "animal": 2, "object": 2, "food": 1}))
        return f"that {self.affirmative(inner, self.simple(inner)).statement}"

    def _infinitive(self, subject: NounPhrase) -> str:
        return f"to {self.doing(subject).bare}"

    # Heavy noun phrases.

    def modified(self, phrase: NounPhrase) -> NounPhrase:
        """The noun phrase with a prepositional phrase or relative clause behind it, whose nouns differ in number."""
        modifier = self.chance.weighted({self._beside: 4, self._subject_relative: 3, self._object_relative: 2})
        return replace(phrase, text=f"{phrase.text} {modifier(phrase)}")

    def _beside(self, phrase: NounPhrase) -> str:
        if phrase.animate and self.chance.coin(0.4):
            return f"with {self.phrases.noun_phrase('object').text}"
        return self.phrases.near() if phrase.animate or self.chance.coin(0.7) else self.phrases.inside()

    def _subject_relative(self, phrase: NounPhrase) -> str:
        who = "who" if phrase.kind == "person" else "that"
        return joined(who, self.affirmative(phrase, self.simple(phrase)).finite)

    def _object_relative(self, phrase: NounPhrase) -> str:
        """As in "(the ball) that the boys found"."""
        verbs = self.phrases.lexicon.verbs["social" if phrase.animate else "handle"]
        predicate = Predicate(verbs.draw(self.chance), phrase)
        return f"that {self.affirmative(self.other_than(phrase, 'person'), predicate).embedded()}"
