"""Talk of the built-in corpus: a grown-up and a child, one exchange after the other, about the things around them."""

from collections.abc import Callable
from dataclasses import replace

from ltg_mdlm.data.grammar_clauses import BE, NOT, Clause, Clauses, Predicate, be_form, negated, sentence
from ltg_mdlm.data.grammar_phrases import (
    YOU,
    I,
    NounPhrase,
    WE,
    object_pronoun,
    pronoun,
    reflexive,
)

_ADULTS = {"MOT": 6.0, "FAT": 2.0, "GRA": 1.0}
_EXCLAMATIONS = ("Oh no!", "Look!", "Wow!", "Oh dear.", "Uh oh.", "Hey!")
_ASSENTS = ("That's right.", "Very good.", "Good job!", "Yes.", "All right.", "Thank you.", "Okay.")


class Talk:
    """Writes conversations: lines of `*MOT:` or `*CHI:`, a tab and what is said, as in CHILDES transcripts."""

    def __init__(self, clauses: Clauses) -> None:
        self.clauses = clauses
        self.phrases = clauses.phrases
        self._exchanges: dict[Callable[[NounPhrase], list[str]], float] = {
            self.where: 3,
            self.color: 2,
            self.name_it: 3,
            self.doing: 4,
            self.whether: 5,
            self.want: 3,
            self.have: 3,
            self.can: 2,
            self.command: 4,
            self.who: 3,
            self.which_object: 3,
            self.tag: 3,
            self.too: 3,
            self.how_many: 1.5,
            self.whose: 1.5,
            self.which: 1.5,
            self.know: 2,
            self.lets: 1.5,
            self.why: 3,
            self.did_you: 3,
            self.yourself: 2,
            self.remark: 5,
        }

    def conversation(self) -> str:
        """One document of 4 to 9 exchanges that come back to the same two things."""
        adult = self.phrases.weighted(_ADULTS)
        topics = [self._topic(), self._topic()]
        lines: list[str] = []
        for _ in range(4 + int(self.phrases.rng.random() * 6)):
            exchange = self.phrases.weighted(self._exchanges)
            turns = exchange(self.phrases.pick(topics))
            first = self.phrases.weighted({adult: 4, "CHI": 1})
            speakers = (first, "CHI" if first == adult else adult)
            lines += [f"*{speakers[turn % 2]}:\t{said}" for turn, said in enumerate(turns)]
        return "\n".join(lines)

    def _topic(self) -> NounPhrase:
        """What the talk is about, as "the dog" or a name."""
        kind = self.phrases.weighted({"object": 4, "animal": 4, "person": 2, "food": 1, "vehicle": 1})
        return self.phrases.noun_phrase(kind, determiner="the", plural=self.phrases.coin(0.3), adjectives=0)

    def _actor(self, topic: NounPhrase) -> NounPhrase:
        """The topic if it can act, otherwise somebody."""
        if topic.animate and self.phrases.coin(0.8):
            return topic
        return self.phrases.noun_phrase(self.phrases.weighted({"person": 3, "animal": 2}), determiner="the", adjectives=0)

    def _clause(self, subject: NounPhrase, predicate: Predicate) -> Clause:
        return self.clauses.clause_of(subject, predicate, past=False)

    def _acting(self, subject: NounPhrase, *, object: bool | None = None) -> Clause:
        """A clause in which the subject does something."""
        return self._clause(subject, self.clauses.predicate(subject, embedding=False, object=object))

    # The exchanges, each about the topic: what one says, what the other answers, and so on.

    def where(self, topic: NounPhrase) -> list[str]:
        clause = Clause(topic, Predicate(BE), "present")
        place = Predicate(BE, rest=f" {self.phrases.where(topic.kind)}")
        answer = Clause(topic.as_subject(), place, "present")
        ask = sentence(f"where {clause.question()}", "?")
        if self.phrases.coin(0.3):
            return [ask, "I don't know.", sentence(f"look, {answer.statement}", "!")]
        return [ask, sentence(answer.statement)]

    def color(self, topic: NounPhrase) -> list[str]:
        if topic.animate or topic.kind == "food":
            return self.whether(topic)
        color = self.phrases.lexicon.adjectives["color"].draw(self.phrases.rng)
        ask = Clause(topic, Predicate(BE), "present").question()
        tell = Clause(topic.as_subject(), Predicate(BE, rest=f" {color}"), "present").statement
        return [sentence(f"what color {ask}", "?"), sentence(tell), sentence(f"yes, {tell}")]

    def name_it(self, topic: NounPhrase) -> list[str]:
        if topic.noun is None or not topic.noun.plural:
            return self.remark(topic)
        plural = topic.agreement.plural
        pointer = ("these" if plural else "this") if self.phrases.coin(0.5) else ("those" if plural else "that")
        naming = self.phrases.with_noun(topic.noun, topic.kind, plural=plural, determiner="" if plural else "a")
        answer = sentence(f"{'they are' if plural else 'it is'} {naming.text}")
        ask = sentence(f"what {'are' if plural else 'is'} {pointer}", "?")
        return [ask, answer, self.phrases.pick(_ASSENTS)] if self.phrases.coin(0.5) else [ask, answer]

    def doing(self, topic: NounPhrase) -> list[str]:
        actor = self._actor(topic)
        predicate = self._active(actor)
        if self.phrases.coin(0.3):
            ask, tense = f"what did {actor.text} do", "past"
        else:
            ask, tense = f"what {be_form(actor.agreement, past=False)} {actor.text} doing", "progressive"
        return [sentence(ask, "?"), sentence(Clause(actor.as_subject(), predicate, tense).statement)]

    def whether(self, topic: NounPhrase) -> list[str]:
        clause = self._clause(topic, self.clauses.any_predicate(topic))
        return [sentence(clause.question(), "?"), self._yes_or_no(clause)]

    def _active(self, actor: NounPhrase) -> Predicate:
        """Something that can be done on purpose and asked for."""
        while True:
            predicate = self.clauses.predicate(actor, embedding=False)
            if not predicate.verb.stative:
                return predicate

    def _yes_or_no(self, clause: Clause) -> str:
        """ "Yes, it is." or "No, it isn't." """
        short = replace(clause, subject=answering(clause.subject))
        if self.phrases.coin(0.6):
            return sentence(f"yes, {short.subject.text} {short.auxiliary}")
        return sentence(f"no, {short.subject.text} {negated(short.auxiliary, NOT)}")

    def want(self, topic: NounPhrase) -> list[str]:
        thing = self.phrases.noun_phrase(self.phrases.weighted({"mass": 2, "fruit": 2, "object": 1}), plural=True, determiner="", adjectives=0)
        some = f"some {thing.text}"
        if self.phrases.coin(0.5):
            return [f"Do you want {some}?", f"Yes, I want {some}."]
        other = self.phrases.noun_phrase("food", plural=True, determiner="some", adjectives=0)
        answer = f"No, I don't want any {thing.text}"
        return [f"Do you want {some}?", f"{answer}, but I want {other.text}." if self.phrases.coin(0.6) else f"{answer}."]

    def have(self, topic: NounPhrase) -> list[str]:
        owner = self.phrases.pick((pronoun(YOU), self.phrases.noun_phrase("person", determiner="the", adjectives=0)))
        thing = self.phrases.noun_phrase(self.phrases.weighted({"object": 3, "fruit": 1, "mass": 1}), plural=True, determiner="", adjectives=0)
        other = self.phrases.noun_phrase(self.phrases.weighted({"object": 3, "fruit": 1, "mass": 1}), plural=True, determiner="some", adjectives=0)
        have = self.phrases.lexicon.verbs["possess"].members[1]
        ask = Clause(owner, Predicate(have, rest=f" any {thing.text}"), "present")
        me = answering(owner)
        if self.phrases.coin(0.4):
            return [sentence(ask.question(), "?"), sentence(f"yes, {Clause(me, Predicate(have, rest=f' some {thing.text}'), 'present').statement}")]
        no = Clause(me, Predicate(have, rest=f" any {thing.text}"), "present", "n't").statement
        but = Clause(me, Predicate(have, rest=f" {other.text}"), "present").statement
        return [sentence(ask.question(), "?"), sentence(f"no, {no}, but {but}")]

    def can(self, topic: NounPhrase) -> list[str]:
        actor = self.phrases.pick((pronoun(YOU), self._actor(topic)))
        clause = Clause(actor, self._active(actor), "can")
        return [sentence(clause.question(), "?"), self._yes_or_no(clause)]

    def command(self, topic: NounPhrase) -> list[str]:
        predicate = self._active(pronoun(YOU))
        please = self.phrases.weighted({"": 3, "please ": 1, "don't ": 1.5, "you can ": 0.5, "can you ": 0.5})
        order = f"{please}{predicate.verb.base}{predicate.after_verb()}"
        end = "?" if please == "can you " else "!" if self.phrases.coin(0.2) else "."
        return [sentence(order, end), self.phrases.pick(("Okay.", "I will.", "No!", "Why?", "All right."))]

    def who(self, topic: NounPhrase) -> list[str]:
        actor = self._actor(topic)
        asked = NounPhrase("who", replace(actor.agreement, plural=False), actor.kind)
        clause = self._acting(asked, object=True)
        return [sentence(clause.statement, "?"), sentence(f"{actor.text} {replace(clause, subject=actor).auxiliary}")]

    def which_object(self, topic: NounPhrase) -> list[str]:
        actor = self._actor(topic)
        clause = self._acting(actor, object=True)
        answer = replace(clause, subject=actor.as_subject())
        return [sentence(f"{clause.wh_word} {clause.question(gap=True)}", "?"), sentence(answer.statement)]

    def tag(self, topic: NounPhrase) -> list[str]:
        clause = self._clause(topic, self.clauses.any_predicate(topic))
        return [sentence(f"{clause.statement}, {clause.tag}", "?"), self._yes_or_no(clause)]

    def too(self, topic: NounPhrase) -> list[str]:
        like = self.phrases.lexicon.verbs["possess"].members[self.phrases.pick((0, 2, 3, 4))]
        thing = self.phrases.noun_phrase(self.phrases.pick(("fruit", "animal", "mass")), plural=True, determiner="", adjectives=0)
        other = self.phrases.noun_phrase("person", determiner="my", adjectives=0)
        predicate = Predicate(like, rest=f" {thing.text}")
        negation = "n't" if self.phrases.coin(0.5) else ""
        first = Clause(pronoun(I), predicate, "present", negation)
        second = Clause(other, predicate, "present", negation)
        adverb = "either" if negation else "too"
        if self.phrases.coin(0.5):
            second = replace(second, predicate=Predicate(like, rest=f" {object_pronoun(thing.agreement)}"))
        return [sentence(first.statement), sentence(f"{second.statement} {adverb}"), f"I {'do not' if negation else 'do'} {adverb}."]

    def how_many(self, topic: NounPhrase) -> list[str]:
        thing = self.phrases.noun_phrase(self.phrases.pick(("animal", "toy", "fruit")), plural=True, determiner="", adjectives=0)
        number = self.phrases.weighted({"two": 3, "three": 3, "four": 2, "five": 1, "six": 1, "seven": 0.5, "eight": 0.5, "ten": 0.5})
        return [f"How many {thing.text} are there?", f"There are {number} {thing.text}."]

    def whose(self, topic: NounPhrase) -> list[str]:
        thing = self.phrases.noun_phrase(self.phrases.pick(("clothes", "toy")), determiner="", adjectives=0)
        plural = thing.agreement.plural
        owner = self.phrases.pick(("my", "your", f"{self.phrases.noun_phrase('person', plural=False, determiner='the').text}'s"))
        ask = f"Whose {thing.text} {'are' if plural else 'is'} {'these' if plural else 'this'}?"
        return [ask, f"{'They are' if plural else 'It is'} {owner} {thing.text}."]

    def which(self, topic: NounPhrase) -> list[str]:
        thing = self.phrases.noun_phrase(self.phrases.pick(("toy", "clothes", "vehicle")), plural=False, determiner="", adjectives=0)
        colors = self.phrases.lexicon.adjectives["color"]
        one, other = colors.draw(self.phrases.rng), colors.draw(self.phrases.rng)
        if one == other:
            return self.whose(topic)
        ask = f"Do you want the {one} {thing.text} or the {other} {thing.text}?"
        return [ask, f"I want the {self.phrases.pick((one, other))} {thing.text}."]

    def know(self, topic: NounPhrase) -> list[str]:
        if self.phrases.coin(0.5):
            where = Clause(topic, Predicate(BE), "present")
            answer = replace(where, subject=topic.as_subject(), predicate=Predicate(BE, rest=f" {self.phrases.where(topic.kind)}"))
            return [f"Do you know where {where.statement}?", sentence(answer.statement)]
        actor = self._actor(topic)
        clause = self._acting(actor, object=True)
        answer = replace(clause, subject=actor.as_subject())
        return [f"Do you know {clause.wh_word} {clause.embedded(gap=True)}?", sentence(answer.statement)]

    def lets(self, topic: NounPhrase) -> list[str]:
        predicate = self._active(pronoun(WE))
        return [f"Let's {predicate.verb.base}{predicate.after_verb()}.", self.phrases.pick(("Yes!", "Okay.", "No, not now.", "I don't want to."))]

    def why(self, topic: NounPhrase) -> list[str]:
        actor = self._actor(topic)
        clause = self._clause(actor, self.clauses.predicate(actor))
        tense = "past" if clause.tense in ("past", "perfect") else "present"
        reason = Clause(actor.as_subject(), self.clauses.reason(actor), tense)
        return [sentence(f"why {clause.question()}", "?"), sentence(f"because {reason.statement}")]

    def did_you(self, topic: NounPhrase) -> list[str]:
        predicate = self._active(pronoun(YOU))
        clause = Clause(pronoun(YOU), predicate, "past")
        if self.phrases.coin(0.5):
            return [sentence(clause.question(), "?"), self._yes_or_no(clause)]
        return [sentence(clause.question(), "?"), sentence(f"yes, {replace(clause, subject=pronoun(I), predicate=turned(clause.predicate)).statement}")]

    def yourself(self, topic: NounPhrase) -> list[str]:
        actor = self._actor(topic)
        verbs = self.phrases.lexicon.verbs["animal_reflexive" if actor.kind == "animal" else "reflexive"]
        if self.phrases.coin(0.5):
            past = Clause(actor, Predicate(verbs.draw(self.phrases.rng), rest=f" {reflexive(actor.agreement)}"), "past")
            return [sentence(past.question(), "?"), sentence(f"yes, {replace(past, subject=actor.as_subject()).statement}")]
        verb = self.phrases.lexicon.verbs["reflexive"].draw(self.phrases.rng)
        return [
            sentence(Clause(pronoun(YOU), Predicate(verb, rest=" yourself"), "past").question(), "?"),
            sentence(f"yes, {Clause(pronoun(I), Predicate(verb, rest=' myself'), 'past').statement}"),
        ]

    def remark(self, topic: NounPhrase) -> list[str]:
        about = self.phrases.weighted({topic: 3, pronoun(I): 1, pronoun(YOU): 1})
        clause = self.clauses.clause(about, past=False)
        said = [sentence(clause.statement)]
        if self.phrases.coin(0.2):
            said.insert(0, self.phrases.pick(_EXCLAMATIONS))
            return [" ".join(said)]
        return said


def answering(subject: NounPhrase) -> NounPhrase:
    """The pronoun of an answer: `I` for `you`, `it` for `the dog`."""
    if subject.agreement.person == 2:
        return pronoun(I)
    return subject.as_subject()


def turned(predicate: Predicate) -> Predicate:
    """The same from the other speaker: "wash your hand" becomes "wash my hand"."""
    object = predicate.object and replace(predicate.object, text=_turned(predicate.object.text))
    return replace(predicate, object=object, rest=_turned(predicate.rest))


def _turned(said: str) -> str:
    return " ".join(_TURNED.get(word, word) for word in said.split(" "))


_TURNED = {"my": "your", "your": "my", "myself": "yourself", "yourself": "myself"}
