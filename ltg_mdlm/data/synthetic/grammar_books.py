"""Picture books of the built-in corpus: what there is to be seen, sentence by sentence, in the present."""

from __future__ import annotations

from collections.abc import Callable

from ltg_mdlm.data.synthetic.grammar_clauses import BE, Clause, Predicate, sentence
from ltg_mdlm.data.synthetic.grammar_frames import Clauses
from ltg_mdlm.data.synthetic.grammar_lexicon import comparative_of
from ltg_mdlm.data.synthetic.grammar_phrases import NounPhrase

_COUNTED = {"two": 2.0, "three": 2.0, "four": 1.0, "some": 2.0, "many": 1.0}


class PictureBook:
    """Writes picture books."""

    def __init__(self, clauses: Clauses) -> None:
        self.clauses = clauses
        self.phrases = clauses.phrases
        self.chance = clauses.chance
        self.kinds: dict[Callable[[], str], float] = {
            self.heavy: 9,
            self.plain: 5,
            self.pointed: 4,
            self.there: 3,
            self.contrast: 3,
            self.fact: 3,
            self.compared: 2,
            self.asked: 2,
        }

    def read(self) -> str:
        """One document of 5 to 10 sentences."""
        return " ".join(self.chance.weighted(self.kinds)() for _ in range(self.chance.number(5, 10)))

    def plain(self) -> str:
        """A statement about anything."""
        kinds = {"person": 3, "animal": 2, "object": 1, "vehicle": 0.7, "plant": 0.3}
        return sentence(self.clauses.clause(self.phrases.noun_phrase(self.chance.weighted(kinds))).statement)

    def heavy(self) -> str:
        """Its subject has a second noun: "the box near the chairs is red"."""
        subject = self.clauses.modified(self._something())
        predicate = self.clauses.copula(subject) if self.chance.coin(0.5) else None
        return sentence(self.clauses.clause(subject, predicate).statement)

    def pointed(self) -> str:
        """Its subject has a demonstrative."""
        plural = self.chance.coin(0.5)
        subject = self._something(self.chance.pick(("these", "those") if plural else ("this", "that")), plural)
        return sentence(self.clauses.affirmative(subject).statement)

    def there(self) -> str:
        """As in "there are two dogs near the door"."""
        plural = self.chance.coin(0.5)
        what = self._something(self.chance.weighted(_COUNTED) if plural else "a", plural)
        return sentence(f"there {'are' if plural else 'is'} {what.text} {self.phrases.where(what.kind)}")

    def contrast(self) -> str:
        """As in "these balls are red, but that ball is blue"."""
        kind, noun = self.phrases.noun(self.chance.pick(("object", "clothes", "vehicle", "animal")))
        colors = [self.phrases.lexicon.adjectives["color"].draw(self.chance) for _ in range(2)]
        parts = []
        for (singular, several), color in zip((("this", "these"), ("that", "those")), colors, strict=True):
            plural = self.chance.coin(0.5)
            determiner = several if plural else singular
            subject = self.phrases.with_noun(noun, kind, plural=plural, determiner=determiner, adjectives=0)
            parts.append(Clause(subject, Predicate(BE, rest=f" {color}"), "present").statement)
        same = colors[0] == colors[1]
        return sentence(f"{parts[0]}, and {parts[1]} too" if same else f"{parts[0]}, but {parts[1]}")

    def fact(self) -> str:
        """What a whole kind does: "dogs like bones", "a dog chases cats"."""
        plural = self.chance.coin(0.6)
        kind = self.chance.pick(("animal", "people"))
        subject = self.phrases.noun_phrase(kind, plural=plural, determiner="" if plural else "a", adjectives=0)
        negation = self.clauses.negation() if self.chance.coin(0.15) else ""
        return sentence(Clause(subject, self.clauses.simple(subject), "present", negation).statement)

    def compared(self) -> str:
        """As in "the dog is bigger than the cats"."""
        kind, word_class = self.chance.pick((("animate", "comparable"), ("object", "comparable_thing")))
        first = self.phrases.noun_phrase(kind, determiner="the")
        second = self.clauses.other_than(first, kind)
        adjective = comparative_of(self.phrases.lexicon.adjectives[word_class].draw(self.chance))
        return sentence(Clause(first, Predicate(BE, rest=f" {adjective} than {second.text}"), "present").statement)

    def asked(self) -> str:
        """A question to the reader, or "I know what the dog is eating"."""
        actor = self.phrases.noun_phrase(self.chance.pick(("person", "animal")))
        clause = self.clauses.affirmative(actor, self.clauses.simple(actor, with_object=True))
        if self.chance.coin(0.5):
            return sentence(f"{clause.wh_word} {clause.question(gap=True)}", "?")
        return f"I {self.chance.pick(('know', 'see', 'remember'))} {clause.wh_word} {clause.embedded()}."

    def _something(self, determiner: str | None = None, plural: bool | None = None) -> NounPhrase:
        kinds = {"animal": 3, "people": 3, "object": 3, "snack": 1, "vehicle": 1, "plant": 0.5}
        return self.phrases.noun_phrase(self.chance.weighted(kinds), determiner=determiner, plural=plural)
