"""Stories of the built-in corpus: a hero, a friend and a thing, a few events, an end; told in the past."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from ltg_mdlm.data.synthetic import grammar_words as words
from ltg_mdlm.data.synthetic.grammar_clauses import BE, NOT, Clause, Predicate, joined, sentence
from ltg_mdlm.data.synthetic.grammar_frames import BY_ONESELF, GO, INTEND, Clauses
from ltg_mdlm.data.synthetic.grammar_lexicon import verb, verbs
from ltg_mdlm.data.synthetic.grammar_phrases import WE, YOU, I, NounPhrase, determined, pronoun

_OPENINGS = ("one day", "one morning", "yesterday", "last week", "one night", "once")


_SEQUELS = ("then", "after that", "later", "the next day", "soon", "suddenly")


_ENDINGS = ("in the end", "then", "at last")


_GO_HOME = (Predicate(verb("go/went/gone"), rest=" home"), Predicate(verb("go/went/gone"), rest=" to sleep"))


_FIND = (verb("find/found"), verb("see/saw/seen"))


_GIVE = (verb("give/gave/given"), verb("show"))


_PUT, _LOSE, _LOOK_FOR, _MEET = verb("put/put"), verb("lose/lost"), verb("look_for"), verb("meet/met")


_LACKING = verbs(words.LACKING)


class Story:
    """One story.

    Somebody is a pronoun where the sentence before was about them too, so that every pronoun has an antecedent.
    """

    def __init__(self, clauses: Clauses, *, first_person: bool = False) -> None:
        self.clauses = clauses
        self.phrases = clauses.phrases
        self.chance = clauses.chance
        self.first_person = first_person
        self._last: NounPhrase | None = None

    @cached_property
    def hero(self) -> NounPhrase:
        """Whom the story is about."""
        if self.first_person:
            return pronoun(I if self.chance.coin(0.6) else WE)
        return self._character()

    @cached_property
    def friend(self) -> NounPhrase:
        """Somebody else."""
        return self._character()

    @cached_property
    def thing(self) -> NounPhrase:
        """What is found and lost."""
        return self.phrases.noun_phrase("object", plural=self.chance.coin(0.2), determiner="the")

    @cached_property
    def thing_is(self) -> str:
        """What can be said of it."""
        return self.phrases.property_of(self.thing)

    def events(self) -> dict[Callable[[], list[str]], float]:
        """All that can happen, each told in some sentences, and how often."""
        return {
            self.acts: 10,
            self.friend_acts: 4,
            self.scenery: 5,
            self.finds: 3,
            self.loses: 3,
            self.meets: 2,
            self.feels: 3,
            self.goes: 2,
            self.lacks: 2,
            self.hurts: 3,
            self.wishes: 2,
            self.interrupted: 2,
            self.alike: 2,
            self.says: 3,
        }

    def tell(self) -> str:
        """The whole story on one line."""
        for drawn_first in ("hero", "friend", "thing", "thing_is"):
            getattr(self, drawn_first)
        events = self.events()
        told = self.opening()
        for _ in range(self.chance.number(4, 10)):
            event = self.chance.weighted(events)
            told += event()
            if event in (self.finds, self.loses, self.meets):
                del events[event]
        return " ".join([*told, *self.ending()])

    def opening(self) -> list[str]:
        """Who the story is about."""
        self._last = self.hero
        if self.hero.noun is None or not self.hero.noun.plural:
            went = self._past(self.hero, self.clauses.from_frame(GO, self.hero))
            return [sentence(f"{self.chance.pick(_OPENINGS)} {went}")]
        plural = self.hero.agreement.plural
        hero = determined("two" if plural else "a", self.hero.text.split()[1:])
        return [sentence(f"once there {'were' if plural else 'was'} {hero} who lived {self.phrases.at_place()}")]

    def ending(self) -> list[str]:
        """How it ends."""
        feeling = Predicate(BE, rest=f" {self._feeling()}")
        end = self._past(self._mention(self.hero), self.chance.pick((*_GO_HOME, feeling)))
        return [sentence(f"{self.chance.pick(_ENDINGS)} {end}")]

    # The events, each some sentences.

    def acts(self) -> list[str]:
        """The hero does something."""
        told = self.clauses.clause(self._mention(self.hero)).statement
        return [sentence(joined(self.chance.pick(_SEQUELS) if self.chance.coin(0.2) else "", told))]

    def friend_acts(self) -> list[str]:
        """The friend does something."""
        return [sentence(self.clauses.clause(self._mention(self.friend)).statement)]

    def scenery(self) -> list[str]:
        """Something else, with a heavy subject: "the boxes near the door were open"."""
        kind = self.chance.weighted({"object": 2, "animal": 2, "people": 2, "snack": 1})
        subject = self.clauses.modified(self.phrases.noun_phrase(kind))
        self._last = None
        predicate = self.clauses.copula(subject) if self.chance.coin(0.6) else None
        return [sentence(self.clauses.clause(subject, predicate).statement)]

    def finds(self) -> list[str]:
        """The thing turns up, and is spoken of as "it"."""
        found = Predicate(self.chance.pick(_FIND), self.thing, f" {self.phrases.where('object')}")
        described = Predicate(BE, rest=f" {self.thing_is}")
        it = self.thing.as_object()
        given = Predicate(self.chance.pick(_GIVE), it, f" to {self.friend.text}")
        put = Predicate(_PUT, it, f" {self.phrases.inside()}")
        return [
            sentence(self._past(self._mention(self.hero), found)),
            sentence(self._past(self.thing.as_subject(), described)),
            sentence(self._past(self._mention(self.hero), self.chance.pick((given, put)))),
        ]

    def loses(self) -> list[str]:
        """The thing is gone."""
        lost = self._past(self._mention(self.hero), Predicate(_LOSE, self.thing))
        looked = Predicate(_LOOK_FOR, self.thing.as_object(), f" {self.phrases.inside()}")
        there = self._past(self.thing.as_subject(), Predicate(BE, rest=" there"), NOT)
        return [sentence(lost), sentence(f"{self._past(self._mention(self.hero), looked)}, but {there}")]

    def meets(self) -> list[str]:
        """Somebody asks where the hero is going."""
        met = self.phrases.noun_phrase("animate", plural=False, determiner="a")
        meeting = self._past(self._mention(self.hero), Predicate(_MEET, met))
        name = met.text if met.noun and not met.noun.plural else f"the {met.text.split(' ', 1)[1]}"
        going = Clause(self._speaker(), self.clauses.from_frame(GO, pronoun(YOU)), "progressive")
        self._last = None
        return [sentence(meeting), f'"Where are you going?" asked {name}.', _quoted(going.statement, self.hero)]

    def feels(self) -> list[str]:
        """A feeling and its cause."""
        hero = self._mention(self.hero)
        feeling = self._past(hero, Predicate(BE, rest=f" {self._feeling()}"))
        cause = self._mention(self.friend) if self.chance.coin(0.4) else hero.as_subject()
        return [sentence(f"{feeling} because {self._past(cause, self.clauses.simple(cause))}")]

    def goes(self) -> list[str]:
        """A place, and who is there."""
        seen = self.phrases.noun_phrase(self.chance.pick(("animal", "people", "plant")))
        if self.phrases.is_indefinite(seen):
            there = f"there {'were' if seen.agreement.plural else 'was'} {seen.text} there"
        else:
            there = self._past(seen, Predicate(BE, rest=" there"))
        hero = self._mention(self.hero)
        return [sentence(self._past(hero, self.clauses.from_frame(GO, hero))), sentence(there)]

    def lacks(self) -> list[str]:
        """One has not any of something, the other has some of something else."""
        main = self.chance.pick(_LACKING)
        lacking = Predicate(main, rest=f" any {self._stuff()}")
        having = Predicate(main, rest=f" some {self._stuff()}")
        without = self._past(self._mention(self.hero), lacking, self.clauses.negation())
        self._last = None
        parts = (without, self._past(self.friend, having))
        return [sentence(", but ".join(parts if self.chance.coin(0.7) else reversed(parts)))]

    def hurts(self) -> list[str]:
        """A reflexive."""
        hero = self._mention(self.hero)
        return [sentence(self._past(hero, self.clauses.from_frame(BY_ONESELF[hero.kind], hero)))]

    def wishes(self) -> list[str]:
        """What the hero wanted, and what was in the way."""
        hero = self._mention(self.hero)
        wish = self._past(hero, self.clauses.from_frame(INTEND, hero))
        hindrance = Clause(hero.as_subject(), self.clauses.doing(hero), "could", self.clauses.negation())
        return [sentence(f"{wish}, but {hindrance.statement}")]

    def interrupted(self) -> list[str]:
        """As in "when Anna was eating, the dog ran"."""
        hero = self._mention(self.hero)
        while_doing = Clause(hero, self.clauses.doing(hero), "past progressive").statement
        friend = self._mention(self.friend)
        return [sentence(f"when {while_doing}, {self._past(friend, self.clauses.doing(friend))}")]

    def alike(self) -> list[str]:
        """As in "Anna slept, and the dog did too"."""
        hero = self._mention(self.hero)
        negation = self.chance.pick(("", NOT))
        self._last = None
        same = "did not either" if negation else "did too"
        return [sentence(f"{self._past(hero, self.clauses.simple(hero), negation)}, and {self.friend.text} {same}")]

    def says(self) -> list[str]:
        """Direct speech."""
        speaker = self._speaker()
        tense = self.chance.pick(("progressive", "will", "can", "perfect"))
        negation = self.clauses.negation() if self.chance.coin(0.2) else ""
        said = Clause(speaker, self.clauses.doing(speaker), tense, negation).statement
        hero = self._mention(self.hero)
        self._last = None
        return [_quoted(said, hero)]

    # What the events are made of.

    def _character(self) -> NounPhrase:
        kind = self.chance.weighted({"person": 3, "animal": 2})
        adjectives = int(self.chance.coin(0.4))
        return self.phrases.noun_phrase(kind, determiner="the", plural=self.chance.coin(0.2), adjectives=adjectives)

    def _mention(self, who: NounPhrase) -> NounPhrase:
        """The character as the subject of the next sentence."""
        again = self._last is who and self.chance.coin(0.75)
        self._last = who
        return who.as_subject() if again else who

    def _speaker(self) -> NounPhrase:
        return pronoun(WE if self.hero.agreement.plural else I)

    def _past(self, subject: NounPhrase, predicate: Predicate, negation: str = "") -> str:
        return Clause(subject, predicate, "past", negation).statement

    def _feeling(self) -> str:
        return self.phrases.lexicon.adjectives["feeling"].draw(self.chance)

    def _stuff(self) -> str:
        kind = self.chance.pick(("snack", "mass", "object", "animal"))
        return self.phrases.noun_phrase(kind, plural=True, determiner="", adjectives=0).text


def _quoted(said: str, speaker: NounPhrase) -> str:
    by = f"{speaker.text} said" if speaker.is_pronoun else f"said {speaker.text}"
    return f'"{sentence(said, "")}," {by}.'
