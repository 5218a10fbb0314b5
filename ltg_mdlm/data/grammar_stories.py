"""Stories, picture books and simple facts of the built-in corpus: connected text with things that come back."""

from collections.abc import Callable
from dataclasses import replace

from ltg_mdlm.data.grammar_clauses import BE, NOT, Clause, Clauses, Frame, Predicate, joined, sentence
from ltg_mdlm.data.grammar_lexicon import verb
from ltg_mdlm.data.grammar_phrases import WE, YOU, I, NounPhrase, determined, pronoun

_OPENINGS = ("one day", "one morning", "yesterday", "last week", "one night", "once")
_SEQUELS = ("then", "after that", "later", "the next day", "soon", "suddenly")


class Story:
    """One story told in the past: a hero, a friend and a thing, a few events, an end.

    The hero is a pronoun when the sentence before was about the hero too, so that pronouns have an antecedent.
    """

    def __init__(self, clauses: Clauses, *, first_person: bool = False) -> None:
        self.clauses = clauses
        self.phrases = clauses.phrases
        self.first_person = first_person
        self.hero = pronoun(I if self.phrases.coin(0.6) else WE) if first_person else self._character()
        self.friend = self._character()
        self.thing = self.phrases.noun_phrase("object", plural=self.phrases.coin(0.2), determiner="the")
        self._last: NounPhrase | None = None

    def _character(self) -> NounPhrase:
        kind = self.phrases.weighted({"person": 3, "animal": 2})
        return self.phrases.noun_phrase(kind, determiner="the", plural=self.phrases.coin(0.2), adjectives=self.phrases.weighted({0: 3, 1: 2}))

    def tell(self) -> str:
        """The whole story, in paragraphs of one line."""
        events: dict[Callable[[], list[str]], float] = {
            self.acts: 10,
            self.finds: 2,
            self.loses: 2,
            self.meets: 2,
            self.feels: 3,
            self.goes: 2,
            self.lacks: 2,
            self.hurts: 2,
            self.wishes: 2,
            self.interrupted: 2,
            self.alike: 2,
            self.scenery: 4,
            self.friend_acts: 4,
            self.says: 3,
        }
        lines = self.opening()
        for _ in range(4 + int(self.phrases.rng.random() * 7)):
            lines += self.phrases.weighted(events)()
        return " ".join(lines + self.ending())

    def mention(self, who: NounPhrase) -> NounPhrase:
        """The character as the subject of the next sentence."""
        again = self._last is who and self.phrases.coin(0.75)
        self._last = who
        return who.as_subject() if again or who.is_pronoun else who

    def past(self, subject: NounPhrase, predicate: Predicate, negation: str = "") -> str:
        """A statement in the past tense."""
        return Clause(subject, predicate, "past", negation).statement

    def opening(self) -> list[str]:
        """Who the story is about."""
        if self.first_person or self.hero.noun is None or not self.hero.noun.plural:
            self._last = self.hero
            return [sentence(f"{self.phrases.pick(_OPENINGS)} {self.past(self.hero, self.clauses.from_frame(_GO, self.hero))}")]
        plural = self.hero.agreement.plural
        words = self.hero.text.split()[1:]
        told = f"there {'were' if plural else 'was'} {determined('two' if plural else 'a', words)} who lived {self.phrases.at_place()}"
        self._last = self.hero
        return [sentence(f"once {told}")]

    def ending(self) -> list[str]:
        """How it ends."""
        hero = self.mention(self.hero)
        ends = (
            self.past(hero, Predicate(verb("go/went/gone"), rest=" home")),
            self.past(hero, Predicate(BE, rest=f" {self.phrases.lexicon.adjectives['feeling'].draw(self.phrases.rng)}")),
            self.past(hero, Predicate(verb("go/went/gone"), rest=" to sleep")),
        )
        return [sentence(joined(self.phrases.pick(("in the end", "then", "at last")), self.phrases.pick(ends)))]

    # The events.

    def acts(self) -> list[str]:
        hero = self.mention(self.hero)
        told = self.clauses.clause(hero, past=True).statement
        if self.phrases.coin(0.2):
            told = f"{self.phrases.pick(_SEQUELS)} {told}"
        return [sentence(told)]

    def friend_acts(self) -> list[str]:
        return [sentence(self.clauses.clause(self.mention(self.friend), past=True).statement)]

    def finds(self) -> list[str]:
        """The thing turns up, and is spoken of as "it"."""
        finder = self.mention(self.hero)
        it = self.thing.as_object()
        given = Predicate(verb(self.phrases.pick(("give/gave/given", "show"))), it, f" to {self.object_of(self.friend)}")
        put = Predicate(verb("put/put"), it, f" {self.phrases.inside()}")
        return [
            sentence(self.past(finder, Predicate(verb(self.phrases.pick(("find/found", "see/saw/seen"))), self.thing, f" {self.phrases.where('object')}"))),
            sentence(self.past(self.thing.as_subject(), Predicate(BE, rest=f" {self.phrases.property_of(self.thing)}"))),
            sentence(self.past(self.mention(self.hero), self.phrases.pick((given, put)))),
        ]

    def object_of(self, who: NounPhrase) -> str:
        return who.as_object().text if self._last is who else who.text

    def loses(self) -> list[str]:
        hero = self.mention(self.hero)
        here = Predicate(BE, rest=" there")
        return [
            sentence(self.past(hero, Predicate(verb("lose/lost"), self.thing))),
            sentence(f"{self.past(self.mention(self.hero), Predicate(verb('look_for'), self.thing.as_object(), f' {self.phrases.inside()}'))}, but {self.past(self.thing.as_subject(), here, NOT)}"),
        ]

    def meets(self) -> list[str]:
        met = self.phrases.noun_phrase("animate", plural=False, determiner="a")
        asked = Clause(pronoun(YOU), self.clauses.from_frame(_GO, pronoun(YOU)), "progressive")
        answer = replace(asked, subject=pronoun(I))
        name = met.text if met.noun is not None and not met.noun.plural else "the " + met.text.split(" ", 1)[1]
        hero = self.mention(self.hero)
        self._last = None
        return [
            sentence(self.past(hero, Predicate(verb("meet/met"), met))),
            f'"Where are you going?" asked {name}.',
            self._quoted(answer.statement, self.hero),
        ]

    def feels(self) -> list[str]:
        hero = self.mention(self.hero)
        cause = self.mention(self.friend) if self.phrases.coin(0.4) else hero
        feeling = self.past(hero, Predicate(BE, rest=f" {self.phrases.lexicon.adjectives['feeling'].draw(self.phrases.rng)}"))
        why = self.past(cause if cause is self.friend else hero.as_subject(), self.clauses.predicate(cause, embedding=False))
        return [sentence(f"{feeling} because {why}")]

    def goes(self) -> list[str]:
        hero = self.mention(self.hero)
        seen = self.phrases.noun_phrase(self.phrases.pick(("animal", "people", "plant")))
        there = f"there {'were' if seen.agreement.plural else 'was'} {seen.text} there"
        there = there if seen.text.split()[0] in _INDEFINITE else self.past(seen, Predicate(BE, rest=" there"))
        return [sentence(self.past(hero, self.clauses.from_frame(_GO, hero))), sentence(there)]

    def lacks(self) -> list[str]:
        hero, friend = self.mention(self.hero), self.friend
        want = verb(self.phrases.pick(("have/had", "want", "see/saw/seen", "find/found", "buy/bought", "need")))
        kinds = ("fruit", "mass", "object", "animal")
        no, some = (self.phrases.noun_phrase(self.phrases.pick(kinds), plural=True, determiner="", adjectives=0).text for _ in "12")
        lacking = self.past(hero, Predicate(want, rest=f" any {no}"), self.phrases.pick((NOT, "not")))
        having = self.past(self.mention(friend), Predicate(want, rest=f" some {some}"))
        return [sentence(f"{lacking}, but {having}" if self.phrases.coin(0.7) else f"{having}, but {lacking}")]

    def hurts(self) -> list[str]:
        hero = self.mention(self.hero)
        frame = _ANIMAL_SELF if hero.kind == "animal" else _SELF
        return [sentence(self.past(hero, self.clauses.from_frame(frame, hero)))]

    def wishes(self) -> list[str]:
        hero = self.mention(self.hero)
        wish = self.past(hero, self.clauses.from_frame(_INTEND, hero))
        because = Clause(hero.as_subject(), self.clauses.predicate(hero, embedding=False), "could", self.phrases.pick((NOT, "not")))
        return [sentence(f"{wish}, but {because.statement}")]

    def interrupted(self) -> list[str]:
        hero = self.mention(self.hero)
        background = Clause(hero, self._active(hero), "past progressive").statement
        return [sentence(f"when {background}, {self.clauses.clause(self.mention(self.friend), past=True).statement}")]

    def _active(self, who: NounPhrase) -> Predicate:
        while True:
            predicate = self.clauses.predicate(who, embedding=False)
            if not predicate.verb.stative:
                return predicate

    def alike(self) -> list[str]:
        hero, friend = self.mention(self.hero), self.friend
        predicate = self.clauses.predicate(hero, embedding=False)
        negation = self.phrases.pick(("", NOT))
        first = self.past(hero, predicate, negation)
        self._last = friend
        return [sentence(f"{first}, and {friend.text} {'did not either' if negation else 'did too'}")]

    def scenery(self) -> list[str]:
        """A sentence about something else, its subject heavy: "the boxes near the door were open"."""
        subject = self.phrases.noun_phrase(self.phrases.weighted({"object": 2, "animal": 2, "people": 2, "food": 1}))
        heavy = self.clauses.modified(subject, past=True)
        self._last = None
        return [sentence(self.clauses.clause(heavy, past=True, predicate=self.clauses.copula(heavy) if self.phrases.coin(0.6) else None).statement)]

    def says(self) -> list[str]:
        hero = self.mention(self.hero)
        speaker = pronoun(self.phrases.pick((I, WE)))
        tense = self.phrases.pick(("progressive", "will", "can", "perfect"))
        said = Clause(speaker, self._active(speaker), tense, self.clauses.negation()).statement
        self._last = None
        return [self._quoted(said, hero)]

    def _quoted(self, said: str, speaker: NounPhrase) -> str:
        by = f"{speaker.text} said" if speaker.is_pronoun else f"said {speaker.text}"
        return f'"{sentence(said, "")}," {by}.'


_INDEFINITE = ("a", "an", "some", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "many", "another")
_GO = Frame(1, "person", "motion", rest="goal")
_SELF = Frame(1, "person", "reflexive", rest="self")
_ANIMAL_SELF = Frame(1, "animal", "animal_reflexive", rest="self")
_INTEND = Frame(1, "person", "intend", rest="infinitive")


class PictureBook:
    """Pages that say what is there to be seen, in the present."""

    def __init__(self, clauses: Clauses) -> None:
        self.clauses = clauses
        self.phrases = clauses.phrases

    def read(self) -> str:
        """One document of 5 to 10 sentences."""
        kinds: dict[Callable[[], str], float] = {
            self.there: 3,
            self.heavy: 7,
            self.pointed: 4,
            self.plain: 5,
            self.contrast: 3,
            self.fact: 2,
            self.compared: 2,
            self.whom: 1.5,
        }
        return " ".join(self.phrases.weighted(kinds)() for _ in range(5 + int(self.phrases.rng.random() * 6)))

    def _something(self, determiner: str | None = None, plural: bool | None = None) -> NounPhrase:
        kind = self.phrases.weighted({"animal": 3, "people": 3, "object": 3, "fruit": 1, "vehicle": 1, "plant": 0.5})
        return self.phrases.noun_phrase(kind, determiner=determiner, plural=plural)

    def there(self) -> str:
        plural = self.phrases.coin(0.5)
        numbers = {"two": 2, "three": 2, "four": 1, "some": 2, "many": 1}
        what = self._something(self.phrases.weighted(numbers) if plural else "a", plural)
        return sentence(f"there {'are' if plural else 'is'} {what.text} {self.phrases.where(what.kind)}")

    def heavy(self) -> str:
        subject = self.clauses.modified(self._something(), past=False)
        if self.phrases.coin(0.5):
            return sentence(self.clauses.clause_of(subject, self.clauses.copula(subject), past=False).statement)
        return sentence(self.clauses.clause(subject, past=False).statement)

    def pointed(self) -> str:
        plural = self.phrases.coin(0.5)
        subject = self._something(self.phrases.pick(("these", "those") if plural else ("this", "that")), plural)
        return sentence(self.clauses.clause_of(subject, self.clauses.any_predicate(subject), past=False).statement)

    def plain(self) -> str:
        subject = self.phrases.noun_phrase(self.phrases.weighted({"person": 3, "animal": 2, "object": 1, "vehicle": 1, "plant": 0.5}))
        return sentence(self.clauses.clause(subject, past=False).statement)

    def contrast(self) -> str:
        """ "These balls are red, but that ball is blue." """
        thing = self.phrases.noun_phrase(self.phrases.pick(("object", "clothes", "vehicle", "animal")), adjectives=0, determiner="")
        assert thing.noun is not None
        one, other = (self.phrases.coin(0.5) for _ in "12")
        colors = [self.phrases.lexicon.adjectives["color"].draw(self.phrases.rng) for _ in "12"]
        parts = []
        for plural, determiners, color in ((one, ("this", "these"), colors[0]), (other, ("that", "those"), colors[1])):
            subject = self.phrases.with_noun(thing.noun, thing.kind, plural=plural, determiner=determiners[plural], adjectives=0)
            parts.append(Clause(subject, Predicate(BE, rest=f" {color}"), "present").statement)
        return sentence(f"{parts[0]}, {'and' if colors[0] == colors[1] else 'but'} {parts[1]}")

    def fact(self) -> str:
        """What is true of a whole kind: "dogs like bones", "a dog chases cats"."""
        plural = self.phrases.coin(0.6)
        subject = self.phrases.noun_phrase(self.phrases.pick(("animal", "people")), plural=plural, determiner="" if plural else "a", adjectives=0)
        return sentence(Clause(subject, self.clauses.predicate(subject, embedding=False), "present", self.clauses.negation()).statement)

    def compared(self) -> str:
        kind, word_class = self.phrases.pick((("animate", "comparable"), ("object", "comparable_thing")))
        first, second = (self.phrases.noun_phrase(kind, determiner=self.phrases.pick(("the", None))) for _ in "12")
        adjective = comparative(self.phrases.lexicon.adjectives[word_class].draw(self.phrases.rng))
        return sentence(Clause(first, Predicate(BE, rest=f" {adjective} than {second.text}"), "present").statement)

    def whom(self) -> str:
        """Questions to the reader."""
        actor = self.phrases.noun_phrase(self.phrases.pick(("person", "animal")))
        clause = self.clauses.clause_of(actor, self.clauses.predicate(actor, embedding=False, object=True), past=False)
        if self.phrases.coin(0.5):
            return sentence(f"{clause.wh_word} {clause.question(gap=True)}", "?")
        return sentence(f"I {self.phrases.pick(('know', 'see', 'remember'))} {clause.wh_word} {clause.embedded(gap=True)}")


def comparative(adjective: str) -> str:
    """The form in -er: bigger, nicer, heavier, taller."""
    if adjective.endswith("e"):
        return adjective + "r"
    if adjective.endswith("y"):
        return adjective[:-1] + "ier"
    return adjective + (adjective[-1] if adjective in ("big", "fat", "sad", "hot") else "") + "er"
