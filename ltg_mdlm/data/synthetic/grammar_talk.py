"""Talk of the built-in corpus: a grown-up and a child, one exchange after the other, about the things around them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from ltg_mdlm.data.synthetic import grammar_words as words
from ltg_mdlm.data.synthetic.grammar_clauses import BE, NOT, Clause, Predicate, be_form, negated, sentence
from ltg_mdlm.data.synthetic.grammar_frames import BY_ONESELF, Clauses
from ltg_mdlm.data.synthetic.grammar_lexicon import verb, verbs
from ltg_mdlm.data.synthetic.grammar_phrases import WE, YOU, I, NounPhrase, pronoun

_ADULTS = {"MOT": 6.0, "FAT": 2.0, "GRA": 1.0}


_CHILD = "CHI"


SPEAKERS = frozenset((*_ADULTS, _CHILD))


_EXCLAMATIONS = ("Oh no!", "Look!", "Wow!", "Oh dear.", "Uh oh.", "Hey!")


_ASSENTS = ("That's right.", "Very good.", "Good job!", "Yes.", "All right.", "Thank you.", "Okay.")


_OBEYING = ("Okay.", "I will.", "No!", "Why?", "All right.")


_STOPPING = ("Okay.", "I won't.", "Why not?", "All right.")


_FOLLOWING = ("Yes!", "Okay.", "No, not now.", "I don't want to.")


_NUMBERS = {"two": 3.0, "three": 3.0, "four": 2.0, "five": 1.0, "six": 1.0, "seven": 0.5, "eight": 0.5, "ten": 0.5}


_HAVE, _WANT = verb("have/had"), verb("want")


_LIKING = verbs(words.LIKING)


_CONTRACTIBLE = re.compile(
    r"\b(I(?= am)|(?:[Ii]t|[Hh]e|[Ss]he)(?= is)|(?:[Tt]hey|[Yy]ou|[Ww]e)(?= are)) (am|is|are)(?= \w)"
)


_CONTRACTED = {"am": "'m", "is": "'s", "are": "'re"}


_EXPANDABLE = re.compile(r"\b(I(?='m)|(?:[Ii]t|[Hh]e|[Ss]he)(?='s)|(?:[Tt]hey|[Yy]ou|[Ww]e)(?='re))('m|'s|'re)(?= \w)")


_EXPANDED = {short: word for word, short in _CONTRACTED.items()}


_TURNED = {"my": "your", "your": "my", "myself": "yourself", "yourself": "myself"}


class Talk:
    """Writes conversations: lines of `*MOT:` or `*CHI:`, a tab and what is said, as in CHILDES transcripts."""

    def __init__(self, clauses: Clauses) -> None:
        self.clauses = clauses
        self.phrases = clauses.phrases
        self.chance = clauses.chance
        self.exchanges: dict[Callable[[NounPhrase], list[str]], float] = {
            self.whether: 5,
            self.remark: 5,
            self.doing: 4,
            self.command: 4,
            self.where: 3,
            self.naming: 3,
            self.want: 3,
            self.have: 3,
            self.who: 3,
            self.which_object: 3,
            self.tag: 7,
            self.too: 3,
            self.why: 3,
            self.did_you: 3,
            self.color: 2,
            self.can: 2,
            self.know: 3,
            self.oneself: 3,
            self.how_many: 1.5,
            self.whose: 1.5,
            self.which: 1.5,
            self.lets: 1.5,
        }

    def conversation(self) -> str:
        """One document of 4 to 9 exchanges that come back to the same two things."""
        adult = self.chance.weighted(_ADULTS)
        topics = [self.topic(), self.topic()]
        lines: list[str] = []
        for _ in range(self.chance.number(4, 9)):
            exchange = self.chance.weighted(self.exchanges)
            first = self.chance.weighted({adult: 4, _CHILD: 1})
            speakers = (first, _CHILD if first == adult else adult)
            said = exchange(self.chance.pick(topics))
            lines += [f"*{speakers[turn % 2]}:\t{self._spoken(text)}" for turn, text in enumerate(said)]
        return "\n".join(lines)

    # The exchanges, each about a topic: what one says, what the other answers, and so on.

    def whether(self, topic: NounPhrase) -> list[str]:
        """As in "Is the dog hungry?" and "Yes, it is."."""
        clause = self.clauses.affirmative(topic)
        return [sentence(clause.question(), "?"), self._yes_or_no(clause)]

    def remark(self, topic: NounPhrase) -> list[str]:
        """One says something."""
        about = self.chance.weighted({topic: 3, pronoun(I): 1, pronoun(YOU): 1})
        said = sentence(self.clauses.clause(about).statement)
        return [f"{self.chance.pick(_EXCLAMATIONS)} {said}" if self.chance.coin(0.2) else said]

    def doing(self, topic: NounPhrase) -> list[str]:
        """As in "What is the dog doing?" and "It is sleeping."."""
        actor = self._actor(topic)
        if self.chance.coin(0.3):
            asked, tense = f"what did {actor.text} do", "past"
        else:
            asked, tense = f"what {be_form(actor.agreement, past=False)} {actor.text} doing", "progressive"
        answer = Clause(actor.as_subject(), self.clauses.doing(actor), tense)
        return [sentence(asked, "?"), sentence(answer.statement)]

    def command(self, topic: NounPhrase) -> list[str]:
        """As in "Please put the ball in the box." and "Okay."."""
        predicate = self.clauses.doing(pronoun(YOU))
        end = self.chance.weighted({".": 4, "!": 1})
        if self.chance.coin(0.25):
            return [sentence(f"don't {predicate.in_negation.bare}", end), self.chance.pick(_STOPPING)]
        start = self.chance.weighted({"": 6, "please ": 2, "you can ": 1, "can you ": 1})
        return [sentence(start + predicate.bare, "?" if start == "can you " else end), self.chance.pick(_OBEYING)]

    def where(self, topic: NounPhrase) -> list[str]:
        """As in "Where is the ball?" and "It is under the bed."."""
        asked = sentence(f"where {Clause(topic, Predicate(BE), 'present').question()}", "?")
        there = self._is_somewhere(topic)
        if self.chance.coin(0.3):
            return [asked, "I don't know.", sentence(f"look, {there}", "!")]
        return [asked, sentence(there)]

    def naming(self, topic: NounPhrase) -> list[str]:
        """As in "What are these?" and "They are spoons."."""
        if topic.noun is None or not topic.noun.plural:
            return self.whether(topic)
        plural = topic.agreement.plural
        pointer = self.chance.pick(("these", "those") if plural else ("this", "that"))
        named = self.phrases.with_noun(topic.noun, topic.kind, plural=plural, determiner="" if plural else "a")
        answer = sentence(f"{'they are' if plural else 'it is'} {named.text}")
        asked = sentence(f"what {'are' if plural else 'is'} {pointer}", "?")
        return [asked, answer, self.chance.pick(_ASSENTS)] if self.chance.coin(0.5) else [asked, answer]

    def color(self, topic: NounPhrase) -> list[str]:
        """As in "What color is the ball?" and "It is red."."""
        if topic.animate or topic.kind in ("food", "mass"):
            return self.whether(topic)
        color = self.phrases.lexicon.adjectives["color"].draw(self.chance)
        asked = Clause(topic, Predicate(BE), "present").question()
        told = Clause(topic.as_subject(), Predicate(BE, rest=f" {color}"), "present").statement
        return [sentence(f"what color {asked}", "?"), sentence(told), sentence(f"yes, {told}")]

    def want(self, _: NounPhrase) -> list[str]:
        """As in "Do you want some milk?" and "No, I don't want any milk."."""
        offered = self._stuff("mass", "snack", "object")
        asked = f"Do you want some {offered}?"
        refusal = Clause(pronoun(I), Predicate(_WANT, rest=f" any {offered}"), "present", NOT).statement
        answers = {
            f"Yes, I want some {offered}.": 3,
            f"No, {refusal}.": 1,
            f"No, {refusal}, but I want some {self._stuff('mass', 'snack')}.": 2,
        }
        return [asked, self.chance.weighted(answers)]

    def have(self, _: NounPhrase) -> list[str]:
        """As in "Does Anna have any milk?" and "No, she doesn't have any milk, but she has some tea."."""
        person = self.phrases.noun_phrase("person", determiner="the", adjectives=0)
        owner = self.chance.pick((pronoun(YOU), person))
        answering = _answering(owner)
        thing, other = self._stuff("object", "snack", "mass"), self._stuff("object", "snack", "mass")
        asked = Clause(owner, Predicate(_HAVE, rest=f" any {thing}"), "present")
        if self.chance.coin(0.4):
            has = Clause(answering, Predicate(_HAVE, rest=f" some {thing}"), "present").statement
            return [sentence(asked.question(), "?"), sentence(f"yes, {has}")]
        lacks = replace(asked, subject=answering, negation=NOT).statement
        has = Clause(answering, Predicate(_HAVE, rest=f" some {other}"), "present").statement
        return [sentence(asked.question(), "?"), sentence(f"no, {lacks}, but {has}")]

    def who(self, topic: NounPhrase) -> list[str]:
        """As in "Who has found the ball?" and "The girl has."."""
        actor = self._actor(topic)
        asked = NounPhrase("who", replace(actor.agreement, plural=False), actor.kind)
        clause = self.clauses.affirmative(asked, self.clauses.simple(asked, with_object=True))
        answer = replace(clause, subject=actor).auxiliary
        return [sentence(clause.statement, "?"), sentence(f"{actor.text} {answer}")]

    def which_object(self, topic: NounPhrase) -> list[str]:
        """As in "What did the girl eat?" and "She ate an apple."."""
        clause = self._transitive(topic)
        asked = f"{clause.wh_word} {clause.question(gap=True)}"
        return [sentence(asked, "?"), sentence(replace(clause, subject=clause.subject.as_subject()).statement)]

    def know(self, topic: NounPhrase) -> list[str]:
        """As in "Do you know where the ball is?", "Do you know what the girl ate?"."""
        if self.chance.coin(0.5):
            where = Clause(topic, Predicate(BE), "present").statement
            return [f"Do you know where {where}?", sentence(self._is_somewhere(topic))]
        clause = self._transitive(topic)
        answer = replace(clause, subject=clause.subject.as_subject())
        return [f"Do you know {clause.wh_word} {clause.embedded()}?", sentence(answer.statement)]

    def tag(self, topic: NounPhrase) -> list[str]:
        """As in "The dog is hungry, isn't it?" and "Yes, it is."."""
        person = self.phrases.noun_phrase("person", determiner="the", adjectives=0)
        clause = self.clauses.affirmative(self.chance.pick((topic, person, person)))
        return [sentence(f"{clause.statement}, {clause.tag}", "?"), self._yes_or_no(clause)]

    def too(self, _: NounPhrase) -> list[str]:
        """As in "I don't like peas.", "Anna doesn't like peas either." and "I do not either."."""
        thing = self.phrases.noun_phrase(self.chance.pick(("snack", "animal", "mass")), plural=True, determiner="")
        other = self.phrases.noun_phrase("person", plural=False, determiner="my", adjectives=0)
        liking = Predicate(self.chance.pick(_LIKING), thing)
        negation, adverb = self.chance.pick((("", "too"), (NOT, "either")))
        again = replace(liking, target=thing.as_object()) if self.chance.coin(0.5) else liking
        first = Clause(pronoun(I), liking, "present", negation).statement
        second = Clause(other, again, "present", negation).statement
        third = f"I {'do not' if negation else 'do'} {adverb}."
        return [sentence(first), sentence(f"{second} {adverb}"), third]

    def why(self, topic: NounPhrase) -> list[str]:
        """As in "Why is the girl crying?" and "Because she is sad."."""
        actor = self._actor(topic)
        clause = self.clauses.affirmative(actor, self.clauses.simple(actor))
        tense = "past" if clause.is_past else "present"
        because = Clause(actor.as_subject(), self.clauses.reason(actor), tense)
        return [sentence(f"why {clause.question()}", "?"), sentence(f"because {because.statement}")]

    def did_you(self, _: NounPhrase) -> list[str]:
        """As in "Did you wash your hands?" and "Yes, I washed my hands."."""
        clause = Clause(pronoun(YOU), self.clauses.doing(pronoun(YOU)), "past")
        asked = sentence(clause.question(), "?")
        if self.chance.coin(0.5):
            return [asked, self._yes_or_no(clause)]
        answer = Clause(pronoun(I), _turned(clause.predicate), "past")
        return [asked, sentence(f"yes, {answer.statement}")]

    def can(self, topic: NounPhrase) -> list[str]:
        """As in "Can the bird sing?" and "Yes, it can."."""
        actor = self.chance.pick((pronoun(YOU), self._actor(topic)))
        clause = Clause(actor, self.clauses.doing(actor), "can")
        return [sentence(clause.question(), "?"), self._yes_or_no(clause)]

    def oneself(self, topic: NounPhrase) -> list[str]:
        """As in "Did the girl hurt herself?" and "Yes, she hurt herself."."""
        actor = self.chance.pick((pronoun(YOU), self._actor(topic)))
        asked = Clause(actor, self.clauses.from_frame(BY_ONESELF[actor.kind], actor), "past")
        answer = replace(asked, subject=_answering(actor), predicate=_turned(asked.predicate))
        return [sentence(asked.question(), "?"), sentence(f"yes, {answer.statement}")]

    def how_many(self, _: NounPhrase) -> list[str]:
        """As in "How many ducks are there?" and "There are three ducks."."""
        things = self._stuff("animal", "toy", "snack")
        return [f"How many {things} are there?", f"There are {self.chance.weighted(_NUMBERS)} {things}."]

    def whose(self, _: NounPhrase) -> list[str]:
        """As in "Whose hat is this?" and "It is my hat."."""
        thing = self.phrases.noun_phrase(self.chance.pick(("clothes", "toy")), determiner="", adjectives=0)
        plural = thing.agreement.plural
        owner = self.phrases.noun_phrase("person", plural=False, determiner="the", adjectives=0)
        whose = self.chance.pick(("my", "your", f"{owner.text}'s"))
        asked = f"Whose {thing.text} {'are these' if plural else 'is this'}?"
        return [asked, f"{'They are' if plural else 'It is'} {whose} {thing.text}."]

    def which(self, topic: NounPhrase) -> list[str]:
        """As in "Do you want the red ball or the blue ball?" and "I want the red ball."."""
        kind = self.chance.pick(("toy", "clothes", "vehicle"))
        thing = self.phrases.noun_phrase(kind, plural=False, determiner="", adjectives=0).text
        colors = self.phrases.lexicon.adjectives["color"]
        one, other = colors.draw(self.chance), colors.draw(self.chance)
        if one == other:
            return self.color(topic)
        asked = f"Do you want the {one} {thing} or the {other} {thing}?"
        return [asked, f"I want the {self.chance.pick((one, other))} {thing}."]

    def lets(self, _: NounPhrase) -> list[str]:
        """As in "Let's go to the park." and "Okay."."""
        return [f"Let's {self.clauses.doing(pronoun(WE)).bare}.", self.chance.pick(_FOLLOWING)]

    # What the exchanges are made of.

    def topic(self) -> NounPhrase:
        """A thing that a conversation is about."""
        kind = self.chance.weighted({"object": 4, "animal": 3, "person": 4, "food": 1, "vehicle": 1})
        return self.phrases.noun_phrase(kind, determiner="the", plural=self.chance.coin(0.3), adjectives=0)

    def _actor(self, topic: NounPhrase) -> NounPhrase:
        """The topic if it can act, otherwise somebody."""
        if topic.animate and self.chance.coin(0.8):
            return topic
        kind = self.chance.weighted({"person": 3, "animal": 2})
        return self.phrases.noun_phrase(kind, determiner="the", adjectives=0)

    def _transitive(self, topic: NounPhrase) -> Clause:
        actor = self._actor(topic)
        return self.clauses.affirmative(actor, self.clauses.simple(actor, with_object=True))

    def _is_somewhere(self, topic: NounPhrase) -> str:
        return Clause(topic.as_subject(), self.clauses.located(topic), "present").statement

    def _stuff(self, *kinds: str) -> str:
        return self.phrases.noun_phrase(self.chance.pick(kinds), plural=True, determiner="", adjectives=0).text

    def _yes_or_no(self, clause: Clause) -> str:
        """The short answer."""
        short = replace(clause, subject=_answering(clause.subject))
        if self.chance.coin(0.6):
            return sentence(f"yes, {short.subject.text} {short.auxiliary}")
        return sentence(f"no, {short.subject.text} {negated(short.auxiliary, NOT)}")

    def _spoken(self, text: str) -> str:
        """The text as it is, or with "it's" for "it is"."""
        return text if self.chance.coin(0.5) else contracted(text)


def contracted(text: str) -> str:
    """The text with "it's" for "it is"."""
    return _CONTRACTIBLE.sub(lambda match: match[1] + _CONTRACTED[match[2]], text)


def expanded(text: str) -> str:
    """The text with "it is" for "it's": what `contracted` makes it from, if it makes it at all."""
    return _EXPANDABLE.sub(lambda match: f"{match[1]} {_EXPANDED[match[2]]}", text)


def _answering(subject: NounPhrase) -> NounPhrase:
    """The subject of the answer: "I" for "you", "it" for "the dog"."""
    return pronoun(I) if subject.agreement == YOU else subject.as_subject()


def _turned(predicate: Predicate) -> Predicate:
    """The predicate in the mouth of the other speaker: "wash your hand" becomes "wash my hand"."""
    target = predicate.target and replace(predicate.target, text=_turned_text(predicate.target.text))
    return replace(predicate, target=target, rest=_turned_text(predicate.rest))


def _turned_text(text: str) -> str:
    return " ".join(_TURNED.get(word, word) for word in text.split(" "))
