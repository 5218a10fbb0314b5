"""The text of the built-in corpus: reproducible, Zipfian, and free of mistakes that patterns can find."""

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltg_mdlm.data.synthetic.grammar import documents
from ltg_mdlm.data.synthetic.grammar_chance import Chance
from ltg_mdlm.data.synthetic.grammar_clauses import BE, NOT, Clause, Predicate
from ltg_mdlm.data.synthetic.grammar_lexicon import (
    Lexicon,
    WordClass,
    comparative_of,
    gerund_of,
    indefinite_article,
    past_of,
    plural_of,
    third_person_of,
    verb,
)
from ltg_mdlm.data.synthetic.grammar_phrases import THEY, YOU, Agreement, I, NounPhrase, pronoun

LEXICON = Lexicon()
DIGEST = "print(__import__('hashlib').sha256('\\n'.join(__import__('itertools').islice("
DIGEST += "g.documents(g.Lexicon(), 0, 'train'), 50)).encode()).hexdigest())"


@pytest.fixture(scope="module")
def text():
    """About 170,000 words."""
    return "\n".join(islice(documents(LEXICON, 1, "train"), 2500))


@pytest.fixture(scope="module")
def sentences(text):
    said = re.sub(r"^\*\w+:\t", "", text, flags=re.M)
    return re.split(r"(?<=[.?!]) |\n", said)


@pytest.mark.parametrize(
    ("inflect", "pairs"),
    [
        (
            plural_of,
            "dog dogs, box boxes, bus buses, peach peaches, bush bushes, berry berries, toy toys, piano pianos",
        ),
        (
            third_person_of,
            "run runs, go goes, watch watches, carry carries, play plays, have has, kiss kisses, fix fixes",
        ),
        (
            past_of,
            "walk walked, like liked, carry carried, play played, stop stopped, visit visited, fix fixed, rain rained",
        ),
        (past_of, "hum hummed, listen listened, enjoy enjoyed, prefer preferred, obey obeyed, chew chewed, mix mixed"),
        (gerund_of, "run running, make making, die dying, see seeing, begin beginning, eat eating, tiptoe tiptoeing"),
        (gerund_of, "sit sitting, forget forgetting, open opening, fly flying, dye dyeing, put putting, jump jumping"),
        (comparative_of, "big bigger, nice nicer, heavy heavier, tall taller, slow slower, quiet quieter"),
        (
            indefinite_article,
            "dog a, apple an, uniform a, umbrella an, unicorn a, old an, ukulele a, ugly an, yellow a",
        ),
    ],
)
def test_regular_inflection_is_spelt_as_in_english(inflect, pairs):
    for word, expected in (pair.split() for pair in pairs.split(", ")):
        assert inflect(word) == expected


@pytest.mark.parametrize(
    ("subject", "tense", "negation", "statement", "question"),
    [
        (pronoun(I), "present", "", "I chase it", "do I chase it"),
        (pronoun(I), "progressive", NOT, "I am not chasing it", "am I chasing it"),
        (pronoun(YOU), "past progressive", NOT, "you weren't chasing it", "were you chasing it"),
        (
            NounPhrase("the dog", Agreement(), "animal"),
            "present",
            NOT,
            "the dog doesn't chase it",
            "does the dog chase it",
        ),
        (NounPhrase("the dog", Agreement(), "animal"), "perfect", "", "the dog has chased it", "has the dog chased it"),
        (pronoun(THEY), "past", "not", "they did not chase it", "did they chase it"),
        (pronoun(THEY), "will", NOT, "they won't chase it", "will they chase it"),
    ],
)
def test_verb_agrees_and_auxiliary_moves_in_questions(subject, tense, negation, statement, question):
    it = NounPhrase("it", Agreement(), "animal", is_pronoun=True)
    clause = Clause(subject, Predicate(verb("chase"), it), tense, negation)
    assert clause.statement == statement
    assert Clause(subject, clause.predicate, tense).question() == question


def test_copula_is_its_own_auxiliary():
    clause = Clause(NounPhrase("the girls", Agreement(plural=True), "person"), Predicate(BE, rest=" sad"), "present")
    assert (clause.statement, clause.question(), clause.tag) == (
        "the girls are sad",
        "are the girls sad",
        "aren't they",
    )


def test_particle_stands_behind_a_pronoun_but_before_a_noun():
    pick_up = verb("pick~up")
    ball = NounPhrase("the ball", Agreement(), "object")
    assert Predicate(pick_up, ball).after_verb() == " up the ball"
    assert Predicate(pick_up, ball.as_object()).after_verb() == " it up"
    assert Predicate(verb("look_at"), ball.as_object()).after_verb() == " at it"


@given(st.floats(0, 2), st.integers(2, 30))
def test_zipf_class_draws_rank_r_in_proportion_to_its_power(exponent, size):
    """The cumulative shares of the class against an independent sum."""
    drawn = WordClass(range(size), exponent)
    shares = np.arange(1, size + 1, dtype=np.float64) ** -exponent
    bounds = np.cumsum(shares / shares.sum())

    class Fixed:
        def __init__(self, u):
            self.uniform = lambda: u

    for rank in range(size):
        inside = bounds[rank] - 0.5 * shares[rank] / shares.sum()
        assert drawn.draw(Fixed(inside)) == rank


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_words_of_the_text_follow_zipfs_law_with_the_exponent_asked_for(exponent):
    """Least squares of log frequency on log rank, for every class of nouns whose forms are in no other class."""
    lexicon = Lexicon(exponent)
    counts = Counter(re.findall(r"[\w'-]+", "\n".join(islice(documents(lexicon, 3, "train"), 3000))))
    for name in ("girl", "boy", "people", "animal", "food", "toy", "clothes", "place"):
        slope = fitted_slope(lexicon, name, counts)
        assert slope == pytest.approx(-exponent, abs=0.15), name


def fitted_slope(lexicon, name, counts):
    forms = Counter(form for words in lexicon.nouns.values() for word in words.members for form in forms_of(word))
    forms.update(form for words in lexicon.verbs.values() for word in words.members for form in verb_forms(word))
    points = [
        (rank, sum(counts[form] for form in forms_of(word)))
        for rank, word in enumerate(lexicon.nouns[name].members, 1)
        if all(forms[form] == 1 for form in forms_of(word))
    ]
    rank, count = np.array([point for point in points if point[1] > 0], dtype=np.float64).T
    # A count of n has a relative error of n ** -0.5, so that is what its logarithm is worth.
    return np.polyfit(np.log(rank), np.log(count), 1, w=np.sqrt(count))[0]


def forms_of(noun):
    return {noun.singular, noun.plural} - {""}


def verb_forms(word):
    return {word.base, word.third, word.past, word.participle, word.gerund}


def test_lexicon_has_more_than_a_thousand_words_and_no_class_a_word_twice():
    classes = [*LEXICON.nouns.values(), *LEXICON.verbs.values(), *LEXICON.adjectives.values(), LEXICON.manners]
    for words in classes:
        assert len(set(words.members)) == len(words.members)
    assert len({word for words in classes for word in words.members}) > 1000


def test_text_does_not_depend_on_the_hash_seed():
    code = f"import ltg_mdlm.data.synthetic.grammar as g; {DIGEST}"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_streams_and_seeds_give_different_texts():
    texts = {"\n".join(islice(documents(LEXICON, seed, part), 5)) for seed in (0, 1) for part in ("train", "valid")}
    assert len(texts) == 4


def test_sentences_begin_with_a_capital_and_end_with_a_stop(sentences):
    for said in sentences:
        assert re.fullmatch(r'"?[A-Z][^.?!\t]*(?:[.?!]|[?!]" [a-z][^.?!]*\.|," [\w ]+\.)', said) or said == "", said


@pytest.mark.parametrize(
    "mistake",
    [
        r"^(He|She|It) (are|were|have|do|am)\b",
        r"^(They|We|You) (is|was|has|does|am)\b",
        r"^I (is|are|were|has|does)\b",
        r"\b(this|every|another|a|an) (dogs|cats|boys|girls|men|women|children|mice|geese|balls|feet|teeth)\b",
        r"\b(these|those|two|many|both|several) (dog|cat|boy|girl|man|woman|child|mouse|goose|ball|foot|tooth)\b",
        r"\b(mans|childs|gooses|mouses|foots|tooths|knifes|goed|eated|runned|taked|seed the|maked)\b",
        r"\ba [aeio]\w+", r"\ban [^aeiou\W]\w+",
        r"\b(is|are|was|were) (sleep|run|eat|eats|sleeps|runs)\b",
        r"\b(can|will|should|could|must|did|does|do|don't|didn't) (sleeping|slept|sleeps|eating|ate|ran|running)\b",
        r"\b(has|have) (ate|took|gave|went|saw|eat|take|go)\b",
        r"^(Anna|Emma|Lucy|Mary|The (girl|mother|woman|queen)) \w+ (himself|itself|themselves)\b",
        r"^(Tom|Ben|Jack|Adam|The (boy|father|man|king)) \w+ (herself|itself|themselves)\b",
        r"^The (boys|girls|dogs|men|women) \w+ (himself|herself|itself)\b",
        r"\b(to|at|for|with|after) (he|she|they|we)\b", r"\b(dogs|cats|boys|girls|balls) (is|was|has)\b\?",
        r"\b(the|a|is|are|was|were|to|in|and|some|not) \1\b", r"\b(no|No), \w+ (is|are|do|does|can|will)\.",
        r"\b(my|your|his|her|the|a) (my|your|his|her|the|a|this|that|some)\b", r"  ", r" [.,?!]", r"\bNone\b",
    ],
)  # fmt: skip
def test_text_has_none_of_the_mistakes_that_a_reader_would_notice(sentences, mistake):
    assert [said for said in sentences if re.search(mistake, said)] == []


@pytest.mark.parametrize(
    ("construction", "least"),
    [
        (r"\b(himself|herself|itself|themselves|myself|yourself)\b", 600),
        (r"\b(who|that) (is|are|was|were|has|have|can|will) ", 200),
        (r"\b(near|behind|next to|by) the \w+ (is|are|was|were|has|have)\b", 100),
        (r"^(Who|What|Where|Why|Whose|How many) ", 1500),
        (r"^(Is|Are|Do|Does|Did|Can|Has|Have|Will) ", 1500),
        (r"\bany \w+", 500),
        (r" either\.", 200),
        (r", (isn't|aren't|doesn't|don't|can't|won't|hasn't) (it|he|she|they)\?", 200),
        (r"\b(has|have) (eaten|taken|seen|given|broken|gone|driven|drawn|bitten|hidden)\b", 40),
        (r"\b(know|see|remember) (what|who|where) ", 300),
        (r"\bThere (is|are) ", 400),
        (r"\b(this|these|that|those) \w+ (is|are|was|were)\b", 500),
        (r"\bbecause (he|she|it|they|I|we) ", 200),
    ],
)
def test_constructions_that_minimal_pairs_ask_for_are_frequent(sentences, construction, least):
    assert sum(bool(re.search(construction, said, re.I)) for said in sentences) >= least


@pytest.mark.parametrize(
    "pattern",
    [
        r"^(?:\*\w+:\t)?([A-Z]\w+) .*, \w+n't (\w+)\?",
        r"^(?:\*\w+:\t)?(?:Is|Does|Did|Has|Can) ([A-Z]\w+) .*\?\n\*\w+:\t\w+, (\w+) ",
    ],
)
def test_pronouns_have_the_gender_of_the_name_they_refer_to(text, pattern):
    gender = {
        noun.singular: pronoun
        for name, pronoun in (("girl", "she"), ("boy", "he"))
        for noun in LEXICON.nouns[name].members
    }
    found = [(name, pronoun) for name, pronoun in re.findall(pattern, text, re.M) if name in gender]
    assert len(found) > 50
    assert [(name, pronoun) for name, pronoun in found if pronoun != gender[name]] == []


def test_chance_is_fair():
    chance = Chance("fair")
    drawn = Counter(chance.weighted({"a": 1, "b": 3}) for _ in range(4000))
    assert drawn["b"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert {chance.number(2, 4) for _ in range(200)} == {2, 3, 4}
