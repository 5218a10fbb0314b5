"""What the minimal pairs of the built-in corpus test: sentences of the grammar, and the same with one mistake (*).

Every set of contrasts that is drawn is balanced: either good and bad hold the same words in another order, or there
are two contrasts in which the differing words change roles: "the dog is/*are here", "the dogs are/*is here". So a model
that knows nothing but how frequent each word is scores exactly one half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ltg_mdlm.data.synthetic import grammar_words as words
from ltg_mdlm.data.synthetic.grammar_clauses import BE, NOT, Clause, Predicate, joined, sentence
from ltg_mdlm.data.synthetic.grammar_frames import Clauses, Frame
from ltg_mdlm.data.synthetic.grammar_lexicon import Noun, verbs
from ltg_mdlm.data.synthetic.grammar_phrases import Agreement, NounPhrase, determined, reflexive

Contrast = tuple[str, str]
"""A good sentence and its bad counterpart."""


_DETERMINERS = (("this", "these"), ("that", "those"), ("a", "two"), ("every", "many"), ("another", "three"))


_BESIDE = ("near", "behind", "next to", "in front of", "by")


_TRANSITIVE = verbs(words.ALWAYS_TRANSITIVE)


_INTRANSITIVE = verbs(words.NEVER_TRANSITIVE)


_LACKING = verbs(words.LACKING)


# Verbs whose object or complement would agree with the subject.
_AGREEING = ("reflexive", "animal_reflexive", "groom", "wear")


@dataclass(frozen=True, slots=True)
class Phenomenon:
    """One thing to know about English, by its names in the files, and how to draw a balanced set of contrasts."""

    uid: str
    field: str
    term: str
    draw: Callable[[], list[Contrast]]


class Phenomena:
    """Draws contrasts; `all` lists the phenomena."""

    def __init__(self, clauses: Clauses) -> None:
        self.clauses = clauses
        self.phrases = clauses.phrases
        self.chance = clauses.chance
        form, syntax = "morphology", "syntax"
        agreement = "subject_verb_agreement"
        self.all = (
            Phenomenon("determiner_noun_agreement", form, "determiner_noun_agreement", self.determiner_noun),
            Phenomenon("subject_verb_agreement", form, agreement, self.subject_verb),
            Phenomenon("subject_verb_agreement_attractor", form, agreement, self.attractor),
            Phenomenon("subject_verb_agreement_relative_clause", form, agreement, self.relative_clause),
            Phenomenon("anaphor_gender_agreement", form, "anaphor_agreement", self.anaphor_gender),
            Phenomenon("anaphor_number_agreement", form, "anaphor_agreement", self.anaphor_number),
            Phenomenon("irregular_past_participle", form, "irregular_forms", self.irregular_participle),
            Phenomenon("auxiliary_verb_form", form, "verb_form", self.verb_form),
            Phenomenon("tag_question_agreement", form, "tag_questions", self.tag_question),
            Phenomenon("adjective_noun_order", syntax, "word_order", self.adjective_order),
            Phenomenon("wh_question_inversion", syntax, "word_order", self.wh_inversion),
            Phenomenon("transitivity", syntax, "argument_structure", self.transitivity),
            Phenomenon("polarity_items", "semantics", "npi_licensing", self.polarity),
        )

    def determiner_noun(self) -> list[Contrast]:
        """Anna saw this dog/*dogs, with and without an adjective between."""
        kind, noun = self._countable(self.chance.pick(("object", "animal", "people", "snack")))
        forms = (noun.singular, noun.plural)
        determiners = self.chance.pick(_DETERMINERS)
        adjectives = self.phrases.adjectives(kind, self.chance.number(0, 1))
        subject = self.phrases.noun_phrase("name")
        verb_class = self.phrases.lexicon.verbs["handle" if kind in ("object", "food") else "social"]
        verb, rest = verb_class.draw(self.chance), self._maybe_somewhere()

        def said(determiner: int, form: int) -> str:
            text = determined(determiners[determiner], [*adjectives, forms[form]])
            target = NounPhrase(text, Agreement(plural=bool(form)), kind, noun)
            return _stated(Clause(subject, Predicate(verb, target, rest), "past"))

        return _twins(said)

    def subject_verb(self) -> list[Contrast]:
        """The dog is/*are sleeping."""
        return self._agreement(self._both_numbers(), ("", ""))

    def attractor(self) -> list[Contrast]:
        """The box near the chairs is/*are red: the noun before the verb has the other number."""
        one, many = self._both_numbers("landmark")
        preposition = self.chance.pick(_BESIDE)
        return self._agreement(self._both_numbers(), (f"{preposition} {many.text}", f"{preposition} {one.text}"))

    def relative_clause(self) -> list[Contrast]:
        """The dog that saw the cats is/*are happy; the dog that the cats saw is/*are happy."""
        subjects, (one, many) = self._both_numbers("animate"), self._both_numbers("animate")
        drawn = self.phrases.lexicon.verbs["animal_social"].draw(self.chance)
        saw = joined(drawn.past, drawn.preposition)
        if self.chance.coin(0.5):
            return self._agreement(subjects, (f"that {many.text} {saw}", f"that {one.text} {saw}"))
        who = "who" if subjects[0].kind == "person" else "that"
        return self._agreement(subjects, (f"{who} {saw} {many.text}", f"{who} {saw} {one.text}"))

    def anaphor_gender(self) -> list[Contrast]:
        """Anna hurt herself/*himself."""
        return self._anaphor(self._both_genders())

    def anaphor_number(self) -> list[Contrast]:
        """The boys hurt themselves/*himself."""
        return self._anaphor(self._both_numbers_of_a_gender())

    def irregular_participle(self) -> list[Contrast]:
        """The dog has eaten/*ate the apple; the dog ate/*eaten the apple."""
        subject = self._actor()
        while True:
            predicate = self._free_action(subject)
            main = predicate.verb
            # "has got" and "has hid" are right too.
            if main.participle not in (main.past, main.base, "gotten", "hidden"):
                break
        swapped = replace(predicate, verb=replace(main, past=main.participle, participle=main.past))
        return [
            (_stated(Clause(subject, predicate, tense)), _stated(Clause(subject, swapped, tense)))
            for tense in ("past", "perfect")
        ]

    def verb_form(self) -> list[Contrast]:
        """The dog is sleeping/*sleep; the dog can sleep/*sleeping."""
        subject = self._actor()
        while True:
            predicate = self._free_action(subject)
            if not predicate.verb.stative and predicate.verb.participle != predicate.verb.base:
                break
        # Not the progressive and the perfect: "is gone", "is left a cake" are right too.
        tenses = self.chance.pick((("progressive", "can"), ("progressive", "will"), ("perfect", "can")))
        forms = [Clause(subject, predicate, tense).forms() for tense in tenses]
        return _twins(
            lambda auxiliary, form: sentence(
                joined(subject.text, forms[auxiliary][0], forms[form][1]) + predicate.after_verb()
            )
        )

    def tag_question(self) -> list[Contrast]:
        """The girl is hungry, isn't she/*he? The girls are hungry, aren't they/*isn't she?"""
        people = self._both_genders() if self.chance.coin(0.6) else self._both_numbers_of_a_gender()
        predicate = self._free_predicate(people[0])
        tense = self.clauses.tense(predicate)
        clauses = [Clause(person, predicate, tense) for person in people]
        return _twins(lambda one, other: sentence(f"{clauses[one].statement}, {clauses[other].tag}", "?"))

    def adjective_order(self) -> list[Contrast]:
        """The red ball/*ball red is here."""
        subject = self.chance.pick(self._both_numbers())
        (adjective,) = self.phrases.adjectives(subject.kind, 1)
        the, noun = subject.text.split()
        predicate = self._free_predicate(subject)
        tense = self.clauses.tense(predicate)
        good, bad = (
            _stated(Clause(replace(subject, text=text), predicate, tense))
            for text in (f"{the} {adjective} {noun}", f"{the} {noun} {adjective}")
        )
        return [(good, bad)]

    def wh_inversion(self) -> list[Contrast]:
        """What is the dog/*the dog is eating? I know what the dog is/*is the dog eating."""
        subject = self._actor()
        predicate = self.clauses.simple(subject, with_object=True)
        tense = (
            "past" if predicate.verb.stative else self.chance.pick(("progressive", "will", "can", "perfect", "past"))
        )
        clause = Clause(subject, predicate, tense)
        inverted = clause.question(gap=True)
        start = f"{clause.auxiliary} {subject.text}"
        straight = f"{subject.text} {clause.auxiliary}{inverted.removeprefix(start)}"
        contrasts = [(sentence(f"{clause.wh_word} {inverted}", "?"), sentence(f"{clause.wh_word} {straight}", "?"))]
        if tense != "past":
            knows = f"I {self.chance.pick(('know', 'see', 'remember'))} {clause.wh_word}"
            contrasts.append((f"{knows} {straight}.", f"{knows} {inverted}."))
        return contrasts

    def transitivity(self) -> list[Contrast]:
        """Anna chased/*slept the dog; Anna slept/*chased at the zoo."""
        subject = self._actor()
        actions = self.chance.pick(_TRANSITIVE), self.chance.pick(_INTRANSITIVE)
        endings = self.clauses.other_than(subject, "animate").text, self.phrases.at_place()
        return _twins(
            lambda ending, action: _stated(
                Clause(subject, Predicate(actions[action], rest=f" {endings[ending]}"), "past")
            )
        )

    def polarity(self) -> list[Contrast]:
        """Either of "some" and "any", "too" and "either"."""
        first = self.phrases.noun_phrase("person", determiner="the", adjectives=0)
        second = self.clauses.other_than(first, "person", "the")
        return self._too(first, second) if self.chance.coin(0.5) else self._any(first, second)

    def _any(self, first: NounPhrase, second: NounPhrase) -> list[Contrast]:
        """Anna had some/*any bread, but Tom didn't have any/*some milk."""
        verb, tense = self.chance.pick(_LACKING), self.chance.pick(("present", "past"))
        one, other = (Predicate(verb, rest=f" {{}} {self._stuff()}") for _ in range(2))
        negated_first = self.chance.coin(0.5)
        clauses = (
            Clause(first, one, tense, NOT if negated_first else ""),
            Clause(second, other, tense, "" if negated_first else NOT),
        )
        said = sentence(", but ".join(clause.statement for clause in clauses))
        good = ("any", "some") if negated_first else ("some", "any")
        return [(said.format(*good), said.format(*reversed(good)))]

    def _too(self, first: NounPhrase, second: NounPhrase) -> list[Contrast]:
        """Anna slept, and Tom did too/*either; Anna didn't sleep, and Tom did not either/*too."""
        predicate = self._free_predicate(first)
        did = Clause(second, predicate, "past").auxiliary
        starts = [
            f"{Clause(first, predicate, 'past', negation).statement}, and {joined(second.text, did, not_)}"
            for negation, not_ in (("", ""), (NOT, "not"))
        ]
        return _twins(lambda start, adverb: sentence(f"{starts[start]} {('too', 'either')[adverb]}"))

    # What the phenomena are made of.

    def _agreement(self, subjects: tuple[NounPhrase, NounPhrase], modifiers: tuple[str, str]) -> list[Contrast]:
        """The subject in both numbers, each with its modifier and with the verb in both numbers."""
        predicate = self._free_predicate(subjects[0])
        if predicate.verb is BE:
            tense = self.chance.pick(("present", "past"))
        else:
            tense = "present" if predicate.verb.stative else self.chance.pick(("present", "progressive", "perfect"))
        texts = [joined(subject.text, modifier) for subject, modifier in zip(subjects, modifiers, strict=True)]
        return _twins(
            lambda number, verb: _stated(Clause(replace(subjects[verb], text=texts[number]), predicate, tense))
        )

    def _anaphor(self, subjects: tuple[NounPhrase, NounPhrase]) -> list[Contrast]:
        verb = self.phrases.lexicon.verbs["reflexive"].draw(self.chance)
        tense = self.chance.weighted({"past": 3, "will": 1, "could": 1, "can": 1})
        rest = self._maybe_somewhere()
        predicates = [Predicate(verb, rest=f" {reflexive(subject.agreement)}{rest}") for subject in subjects]
        return _twins(lambda subject, anaphor: _stated(Clause(subjects[subject], predicates[anaphor], tense)))

    def _actor(self) -> NounPhrase:
        return self.phrases.noun_phrase(self.chance.pick(("person", "animal")), determiner="the")

    def _stuff(self) -> str:
        kind = self.chance.pick(("snack", "mass", "object"))
        return self.phrases.noun_phrase(kind, plural=True, determiner="", adjectives=0).text

    def _maybe_somewhere(self) -> str:
        return f" {self.phrases.where('person')}" if self.chance.coin(0.4) else ""

    def _countable(self, kind: str) -> tuple[str, Noun]:
        """What is denoted, and a noun whose two numbers differ."""
        while True:
            denoted, noun = self.phrases.noun(kind)
            if noun.plural not in ("", noun.singular):
                return denoted, noun

    def _both_numbers(self, kind: str | None = None) -> tuple[NounPhrase, NounPhrase]:
        """As in "the dog", "the dogs"."""
        kind = kind or self.chance.weighted({"people": 3, "animal": 3, "object": 2, "snack": 1})
        denoted, noun = self._countable(kind)
        return self._numbered(noun, denoted, plural=False), self._numbered(noun, denoted, plural=True)

    def _both_numbers_of_a_gender(self) -> tuple[NounPhrase, NounPhrase]:
        """As in "the girl", "the girls": of a noun that fixes the gender."""
        while True:
            one, many = self._both_numbers("people")
            if one.noun is not None and one.noun.gender:
                return one, many

    def _both_genders(self) -> tuple[NounPhrase, NounPhrase]:
        """As in "the girl", "the king", or two names."""
        kind = self.chance.pick(("name", "people"))
        found: dict[str, NounPhrase] = {}
        while len(found) < 2:
            phrase = self.phrases.noun_phrase(kind, plural=False, determiner="the", adjectives=0)
            if phrase.noun is not None and phrase.noun.gender:
                found[phrase.noun.gender] = phrase
        return found["f"], found["m"]

    def _numbered(self, noun: Noun, kind: str, *, plural: bool) -> NounPhrase:
        return self.phrases.with_noun(noun, kind, plural=plural, determiner="the", adjectives=0)

    def _free_predicate(self, subject: NounPhrase) -> Predicate:
        """A predicate in which nothing but the verb agrees with the subject."""
        if not subject.animate or self.chance.coin(0.3):
            return self.clauses.copula(subject)
        return self._free_action(subject)

    def _free_action(self, subject: NounPhrase) -> Predicate:
        """The same, but not "to be"."""

        def allowed(frame: Frame) -> bool:
            return not frame.embeds and frame.verbs not in _AGREEING

        return self.clauses.from_frame(self.clauses.frame(subject, allowed), subject)


def _stated(clause: Clause) -> str:
    return sentence(clause.statement)


def _twins(said: Callable[[int, int], str]) -> list[Contrast]:
    """Two contrasts: 0 and 1 are right in their own context, the first argument, and wrong in the other's."""
    return [(said(0, 0), said(0, 1)), (said(1, 1), said(1, 0))]
