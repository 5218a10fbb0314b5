"""Minimal pairs of the built-in corpus: a sentence of the grammar, and the same sentence with one mistake.

Every contrast is balanced: either good and bad hold the same words in another order, or there is a twin in which the
two differing words change roles ("the dog is/*are here", "the dogs are/*is here"). So a model that knows nothing but
how frequent each word is scores exactly one half. The idea and the file format are those of BLiMP (Warstadt et al.
2020, arXiv 1912.00582).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ltg_mdlm.data import grammar_words as words
from ltg_mdlm.data.grammar_chance import Chance
from ltg_mdlm.data.grammar_clauses import BE, NOT, Clause, Predicate, joined, sentence
from ltg_mdlm.data.grammar_frames import Clauses
from ltg_mdlm.data.grammar_lexicon import Lexicon, Noun, verbs
from ltg_mdlm.data.grammar_phrases import NounPhrase, Phrases, determined, reflexive
from ltg_mdlm.evaluate.pair_files import MinimalPair

Contrast = tuple[str, str]
"""A good sentence and its bad counterpart."""

_DETERMINERS = (("this", "these"), ("that", "those"), ("a", "two"), ("every", "many"), ("another", "three"))
_TRANSITIVE = verbs(words.ALWAYS_TRANSITIVE)
_INTRANSITIVE = verbs(words.NEVER_TRANSITIVE)
_LACKING = verbs(words.LACKING)
# Verbs whose object or complement would agree with the subject, which must stay free to change its number.
_AGREEING = ("reflexive", "animal_reflexive", "groom", "wear")


@dataclass(frozen=True, slots=True)
class Attested:
    """What a training text holds.

    Attributes:
        sentences: every sentence, as written.
        words: every word, in lower case and without punctuation.
    """

    sentences: frozenset[str]
    words: frozenset[str]

    @classmethod
    def in_text(cls, documents: Iterable[str]) -> "Attested":
        """Read the documents of a text."""
        sentences: set[str] = set()
        for document in documents:
            for line in document.splitlines():
                sentences.update(re.split(r"(?<=[.?!]) ", line.split("\t")[-1]))
        return cls(frozenset(sentences), frozenset(word for said in sentences for word in _words(said)))

    def allows(self, contrast: Contrast) -> bool:
        """Whether every word was seen, and neither sentence was."""
        return not self.sentences.intersection(contrast) and self.words.issuperset(_words(" ".join(contrast)))


def minimal_pairs(lexicon: Lexicon, seed: int, attested: Attested, per_phenomenon: int = 100) -> list[MinimalPair]:
    """Pairs for every phenomenon: as many as asked for, or a twin more, or as many as the text's words suffice for."""
    phrases = Phrases(lexicon, Chance(f"{seed}/pairs"))
    pairs = []
    for phenomenon, contrasts in Phenomena(Clauses(phrases, past=False)).all.items():
        seen: dict[Contrast, None] = {}
        for _ in range(20 * per_phenomenon):
            twins = contrasts()
            if all(attested.allows(contrast) and contrast not in seen for contrast in twins):
                seen.update(dict.fromkeys(twins))
            if len(seen) >= per_phenomenon:
                break
        uid, field, term = phenomenon
        pairs += [MinimalPair(good, bad, uid, field, term) for good, bad in seen]
    return pairs


class Phenomena:
    """One method per phenomenon; each call draws a balanced set of contrasts."""

    def __init__(self, clauses: Clauses) -> None:
        self.clauses = clauses
        self.phrases = clauses.phrases
        self.chance = clauses.chance
        self.all: dict[tuple[str, str, str], Callable[[], list[Contrast]]] = {
            ("determiner_noun_agreement", "morphology", "determiner_noun_agreement"): self.determiner_noun,
            ("subject_verb_agreement", "morphology", "subject_verb_agreement"): self.subject_verb,
            ("subject_verb_agreement_attractor", "morphology", "subject_verb_agreement"): self.attractor,
            ("subject_verb_agreement_relative_clause", "morphology", "subject_verb_agreement"): self.relative_clause,
            ("anaphor_gender_agreement", "morphology", "anaphor_agreement"): self.anaphor_gender,
            ("anaphor_number_agreement", "morphology", "anaphor_agreement"): self.anaphor_number,
            ("irregular_past_participle", "morphology", "irregular_forms"): self.irregular_participle,
            ("auxiliary_verb_form", "morphology", "verb_form"): self.verb_form,
            ("tag_question_agreement", "morphology", "tag_questions"): self.tag_question,
            ("adjective_noun_order", "syntax", "word_order"): self.adjective_order,
            ("wh_question_inversion", "syntax", "word_order"): self.wh_inversion,
            ("transitivity", "syntax", "argument_structure"): self.transitivity,
            ("polarity_items", "semantics", "npi_licensing"): self.polarity,
        }

    def determiner_noun(self) -> list[Contrast]:
        """ "Anna saw this dog / *this dogs", with and without an adjective between."""
        noun = self._countable(self.chance.pick(("object", "animal", "people", "snack")))
        kind = noun.kind
        assert noun.noun is not None
        forms = (noun.noun.singular, noun.noun.plural)
        adjectives = self.phrases.adjectives(kind, int(self.chance.coin(0.5)))
        subject = self.phrases.noun_phrase("name")
        verb_class = "social" if noun.animate else "handle"
        drawn = self.phrases.lexicon.verbs[verb_class].draw(self.chance)
        rest = f" {self.phrases.where('person')}" if self.chance.coin(0.4) else ""

        def said(determiner: str, form: str) -> str:
            phrase = replace(noun, text=determined(determiner, [*adjectives, form]))
            return sentence(Clause(subject, Predicate(drawn, phrase, rest), "past").statement)

        determiners = self.chance.pick(_DETERMINERS)
        return _twins(lambda number, other: said(determiners[number], forms[other]))

    def subject_verb(self) -> list[Contrast]:
        """ "The dog is / *are sleeping." """
        return self._agreement(self._both_numbers(), lambda number: "")

    def attractor(self) -> list[Contrast]:
        """ "The box near the chairs is / *are red.": the noun before the verb has the other number."""
        places = self._both_numbers("landmark")
        preposition = self.chance.pick(("near", "behind", "next to", "in front of", "by"))
        return self._agreement(self._both_numbers(), lambda number: f" {preposition} {places[1 - number].text}")

    def relative_clause(self) -> list[Contrast]:
        """ "The dog that saw the cats is / *are happy.", "The dog that the cats saw is / *are happy." """
        subjects, others = self._both_numbers("animate"), self._both_numbers("animate")
        drawn = self.phrases.lexicon.verbs["animal_social"].draw(self.chance)
        past = joined(drawn.past, drawn.preposition)
        as_object = self.chance.coin(0.5)

        def clause(number: int) -> str:
            other = others[1 - number].text
            who = "who" if subjects[0].kind == "person" and not as_object else "that"
            return f" {who} " + (f"{other} {past}" if as_object else f"{past} {other}")

        return self._agreement(subjects, clause)

    def _agreement(self, subjects: tuple[NounPhrase, NounPhrase], modifier: Callable[[int], str]) -> list[Contrast]:
        """The subject in both numbers, with its verb in both, `modifier(number)` between them."""
        predicate = self._free_predicate(subjects[0])
        tense = self.chance.pick(("present", "past") if predicate.verb is BE else ("present", "progressive", "perfect"))
        if predicate.verb.stative:
            tense = "present"

        def said(number: int, other: int) -> str:
            text = subjects[number].text + modifier(number)
            return sentence(Clause(replace(subjects[other], text=text), predicate, tense).statement)

        return _twins(said)

    def anaphor_gender(self) -> list[Contrast]:
        """ "Anna hurt herself / *himself." """
        return self._anaphor(self._gendered())

    def anaphor_number(self) -> list[Contrast]:
        """ "The boys hurt themselves / *himself." """
        return self._anaphor(self._numbers_of_gendered())

    def _anaphor(self, subjects: tuple[NounPhrase, NounPhrase]) -> list[Contrast]:
        drawn = self.phrases.lexicon.verbs["reflexive"].draw(self.chance)
        tense = self.chance.weighted({"past": 3, "will": 1, "could": 1, "can": 1})
        rest = f" {self.phrases.where('person')}" if self.chance.coin(0.5) else ""

        def said(subject: int, other: int) -> str:
            predicate = Predicate(drawn, rest=f" {reflexive(subjects[other].agreement)}{rest}")
            return sentence(Clause(subjects[subject], predicate, tense).statement)

        return _twins(said)

    def irregular_participle(self) -> list[Contrast]:
        """ "The dog has eaten / *ate the apple.", "The dog ate / *eaten the apple." """
        subject = self.phrases.noun_phrase(self.chance.pick(("person", "animal")), determiner="the")
        while True:
            predicate = self._free_predicate(subject)
            main = predicate.verb
            if main is not BE and main.participle not in (main.past, main.base, "gotten"):  # "has got" is right too
                break
        forms = (Clause(subject, predicate, "past"), Clause(subject, predicate, "perfect"))
        swapped = replace(predicate, verb=replace(main, past=main.participle, participle=main.past))
        return [(sentence(form.statement), sentence(replace(form, predicate=swapped).statement)) for form in forms]

    def verb_form(self) -> list[Contrast]:
        """ "The dog is sleeping / *sleep.", "The dog can sleep / *sleeping." """
        subject = self.phrases.noun_phrase(self.chance.pick(("person", "animal")), determiner="the")
        while True:
            predicate = self._free_predicate(subject)
            if (
                not predicate.verb.stative
                and predicate.verb is not BE
                and predicate.verb.participle != predicate.verb.base
            ):
                break
        pairs = [("progressive", "can"), ("progressive", "will"), ("perfect", "can")]
        # Without an object "is gone", "is hidden" is right too.
        tenses = self.chance.pick([*pairs, ("progressive", "perfect")] if predicate.target else pairs)
        clauses = [Clause(subject, predicate, tense) for tense in tenses]

        def said(number: int, other: int) -> str:
            auxiliary, form = clauses[number].forms()[0], clauses[other].forms()[1]
            return sentence(joined(subject.text, auxiliary, form) + predicate.after_verb())

        return _twins(said)

    def tag_question(self) -> list[Contrast]:
        """ "The girl is hungry, isn't she / *he?", "The girls are hungry, aren't they / *isn't she?" """
        people = self._gendered() if self.chance.coin(0.6) else self._numbers_of_gendered()
        predicate = self._free_predicate(people[0])
        tense = self.clauses.tense(predicate)
        clauses = [Clause(person, predicate, tense) for person in people]
        return _twins(lambda one, other: sentence(f"{clauses[one].statement}, {clauses[other].tag}", "?"))

    def adjective_order(self) -> list[Contrast]:
        """ "The red ball is here. / *The ball red is here." """
        noun = self._countable(self.chance.pick(("object", "animal", "people", "snack", "vehicle")))
        adjectives = self.phrases.adjectives(noun.kind, 1)
        determiner, form = noun.text.split(" ", 1)
        predicate = self._free_predicate(noun)
        tense = self.clauses.tense(predicate)

        def said(*words: str) -> str:
            return sentence(Clause(replace(noun, text=" ".join(words)), predicate, tense).statement)

        return [(said(determiner, *adjectives, form), said(determiner, form, *adjectives))]

    def wh_inversion(self) -> list[Contrast]:
        """ "What is the dog eating? / *What the dog is eating?", "I know what the dog is / *is the dog eating." """
        subject = self.phrases.noun_phrase(self.chance.pick(("person", "animal")), determiner="the")
        predicate = self.clauses.simple(subject, with_object=True)
        tense = (
            "past" if predicate.verb.stative else self.chance.pick(("progressive", "will", "can", "perfect", "past"))
        )
        clause = Clause(subject, predicate, tense)
        auxiliary = clause.auxiliary
        inverted = clause.question(gap=True)
        straight = joined(subject.text, auxiliary, inverted.removeprefix(f"{auxiliary} {subject.text} "))
        contrasts = [(sentence(f"{clause.wh_word} {inverted}", "?"), sentence(f"{clause.wh_word} {straight}", "?"))]
        if tense != "past":
            knows = f"I {self.chance.pick(('know', 'see', 'remember'))} {clause.wh_word}"
            contrasts.append((f"{knows} {straight}.", f"{knows} {inverted}."))
        return contrasts

    def transitivity(self) -> list[Contrast]:
        """ "Anna chased / *slept the dog.", "Anna slept / *chased near the door." """
        subject = self.phrases.noun_phrase(self.chance.pick(("person", "animal")), determiner="the")
        verbs = self.chance.pick(_TRANSITIVE), self.chance.pick(_INTRANSITIVE)
        endings = self.clauses.other_than(subject, "animate").text, self.phrases.at_place()

        def said(ending: int, main: int) -> str:
            return sentence(Clause(subject, Predicate(verbs[main], rest=f" {endings[ending]}"), "past").statement)

        return _twins(said)

    def polarity(self) -> list[Contrast]:
        """ "Anna has some bread, but Tom doesn't have any milk." with the two exchanged; "... too" and "... either"."""
        first, second = (self.phrases.noun_phrase("person", determiner="the", adjectives=0) for _ in "12")
        return self._too(first, second) if self.chance.coin(0.5) else self._any(first, second)

    def _any(self, first: NounPhrase, second: NounPhrase) -> list[Contrast]:
        main = self.chance.pick(_LACKING)
        kinds = [self.chance.pick(("snack", "mass", "object")) for _ in "12"]
        things = [self.phrases.noun_phrase(kind, plural=True, determiner="", adjectives=0).text for kind in kinds]
        negations = ("", NOT) if self.chance.coin(0.5) else (NOT, "")
        tense = self.chance.pick(("present", "past"))

        def said(words: tuple[str, ...]) -> str:
            parts = [
                Clause(subject, Predicate(main, rest=f" {word} {thing}"), tense, negation).statement
                for subject, word, thing, negation in zip((first, second), words, things, negations, strict=True)
            ]
            return sentence(f"{parts[0]}, but {parts[1]}")

        right = ("some", "any") if negations[1] else ("any", "some")
        return [(said(right), said(right[::-1]))]

    def _too(self, first: NounPhrase, second: NounPhrase) -> list[Contrast]:
        predicate = self._free_predicate(first)
        negations, adverbs = ("", NOT), ("too", "either")

        def said(negation: int, adverb: int) -> str:
            clauses = [Clause(who, predicate, "past", negations[negation]) for who in (first, second)]
            auxiliary = "did" if predicate.verb is not BE else clauses[1].auxiliary
            answer = joined(second.text, auxiliary, "not" if negation else "", adverbs[adverb])
            return sentence(f"{clauses[0].statement}, and {answer}")

        return _twins(said)

    # What the phenomena are made of.

    def _countable(self, kind: str) -> NounPhrase:
        """ "the dog" or "the dogs", of a noun whose two numbers differ."""
        while True:
            phrase = self.phrases.noun_phrase(kind, determiner="the", adjectives=0)
            if phrase.noun is not None and phrase.noun.plural not in ("", phrase.noun.singular):
                return phrase

    def _both_numbers(self, kind: str | None = None) -> tuple[NounPhrase, NounPhrase]:
        """ "the dog", "the dogs" """
        drawn = kind or self.chance.weighted({"people": 3, "animal": 3, "object": 2, "snack": 1})
        phrase = self._countable(drawn)
        assert phrase.noun is not None
        return self._numbered(phrase, phrase.noun, plural=False), self._numbered(phrase, phrase.noun, plural=True)

    @staticmethod
    def _numbered(phrase: NounPhrase, noun: Noun, *, plural: bool) -> NounPhrase:
        agreement = replace(phrase.agreement, plural=plural)
        return replace(phrase, text=f"the {noun.plural if plural else noun.singular}", agreement=agreement)

    def _gendered(self) -> tuple[NounPhrase, NounPhrase]:
        """A woman or girl and a man or boy; both names, or both nouns."""
        kind = self.chance.pick(("name", "people"))
        found: dict[str, NounPhrase] = {}
        while len(found) < 2:
            phrase = self.phrases.noun_phrase(kind, plural=False, determiner="the", adjectives=0)
            if phrase.noun is not None and phrase.noun.gender:
                found[phrase.noun.gender] = phrase
        return found["f"], found["m"]

    def _numbers_of_gendered(self) -> tuple[NounPhrase, NounPhrase]:
        """ "the girl", "the girls": of a noun that fixes the gender."""
        while True:
            people = self._both_numbers("people")
            if people[0].noun is not None and people[0].noun.gender:
                return people

    def _free_predicate(self, subject: NounPhrase) -> Predicate:
        """A predicate in which nothing but the verb agrees with the subject."""
        if subject.kind not in ("person", "animal") or self.chance.coin(0.3):
            return self.clauses.copula(subject)
        frame = self.clauses.frame(subject, lambda frame: not frame.embeds and frame.verbs not in _AGREEING)
        return self.clauses.from_frame(frame, subject)


def _twins(said: Callable[[int, int], str]) -> list[Contrast]:
    """Two contrasts in which the choice 0 or 1 is right for its own context and wrong for the other."""
    return [(said(0, 0), said(0, 1)), (said(1, 1), said(1, 0))]


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())
