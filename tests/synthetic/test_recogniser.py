"""The recogniser of the built-in grammar against the generator that it goes the ways of."""

import random
import re
from itertools import islice, product

import pytest

from ltg_mdlm.data.synthetic.grammar import documents
from ltg_mdlm.data.synthetic.grammar_lexicon import Lexicon
from ltg_mdlm.data.synthetic.grammar_recogniser import Recogniser, sentences
from ltg_mdlm.data.synthetic.grammar_search import DeadEnd, Search
from ltg_mdlm.evaluation.sample_measures import GrammarVerdict, acceptance, split_sample


@pytest.fixture(scope="module")
def grammar():
    return Recogniser()


def generated(seed, count, exponent=1.0):
    """Sentences of some documents, speakers left out."""
    lines = (line for text in islice(documents(Lexicon(exponent), seed, "test"), count) for line in text.split("\n"))
    return [said for line in lines for said in sentences(line.split("\t")[-1])]


@pytest.mark.parametrize(("seed", "exponent"), [(0, 1.0), (1, 1.0), (2, 0.0), (3, 0.0)])
def test_whatever_is_generated_is_accepted(grammar, seed, exponent):
    """Also where all words are equally frequent, so that rare ones and rare combinations occur."""
    assert [said for said in generated(seed, 3, exponent) if not grammar.accepts(said)] == []


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("The dog is hungry.", "The dog are hungry."),
        ("The dogs like bones.", "The dogs likes bones."),
        ("There are two dogs near the door.", "There is two dogs near the door."),
        ("This ball is red.", "These ball is red."),
        ("Did the girl hurt herself?", "Did the girl hurt himself?"),
        ("Yes, she hurt herself.", "Yes, she hurt himself."),
        ("I don't want any milk.", "I don't wants any milk."),
        ("What is the dog doing?", "What the dog is doing?"),
        ("He ate an apple.", "He ate a apple."),
        ("Anna doesn't like peas either.", "Anna doesn't likes peas either."),
        ("It's red.", "Its red."),
        ("Then she went home.", "Then she went house."),
        ("The boxes near the door were open.", "The boxes near the door was open."),
    ],
)
def test_agreement_order_and_choice_of_words_are_judged(grammar, good, bad):
    assert not grammar.accepts(bad)
    if good in ATTESTED:
        assert grammar.accepts(good)


ATTESTED = {
    "The dog is hungry.",
    "There are two dogs near the door.",
    "This ball is red.",
    "Did the girl hurt herself?",
    "Yes, she hurt herself.",
    "What is the dog doing?",
    "He ate an apple.",
    "It's red.",
    "Then she went home.",
}


def test_shuffled_sentences_are_rejected(grammar):
    rng = random.Random(0)
    long = [said for said in generated(4, 3) if len(said.split()) > 5]
    shuffled = [" ".join(rng.sample(said.split(), len(said.split()))) for said in long]
    accepted = [said for said, was in zip(shuffled, long, strict=True) if said != was and grammar.accepts(said)]
    assert len(accepted) <= 0.02 * len(long)


def test_most_sentences_with_one_other_word_are_rejected(grammar):
    """Not all can be: "dog" for "cat" gives another sentence of the grammar."""
    rng, said = random.Random(0), generated(5, 3)
    words = [word for one in said for word in one.split()]
    changed = [with_another_word(one, words, rng) for one in said]
    assert sum(map(grammar.accepts, changed)) < 0.1 * len(changed)


def with_another_word(said, words, rng):
    parts = said.split()
    place = rng.randrange(len(parts))
    parts[place] = rng.choice([word for word in words if word != parts[place]])
    return " ".join(parts)


@pytest.mark.parametrize(
    "text", ["", " ", ".", "dog", "The dog is hungry", "the dog is hungry.", "The  dog is hungry."]
)
def test_what_is_no_sentence_is_rejected(grammar, text):
    assert not grammar.accepts(text)


def test_a_search_goes_all_ways_and_leaves_dead_ends_out():
    search = Search()

    def run():
        low = search.number(1, 3)
        if low == 2:
            raise DeadEnd
        return low, search.coin(0.5), search.pick("xy") if low == 3 else "-"

    expected = [*product([1], [False, True], "-"), *product([3], [False, True], "xy")]
    assert search.outcomes(run) == expected
    assert search.outcomes(lambda: (search.coin(0.0), search.coin(1.0))) == [(False, True)]


def test_a_search_within_a_search_is_gone_through_on_every_way():
    search = Search()
    inner = lambda: tuple(search.outcomes(lambda: search.number(0, 2)))  # noqa: E731
    assert search.outcomes(lambda: (search.coin(0.5), inner(), search.coin(0.5))) == [
        (first, (0, 1, 2), last) for first in (False, True) for last in (False, True)
    ]


@pytest.mark.parametrize(
    ("text", "complete", "said", "fragment"),
    [
        ("*MOT:\tIs it red?\n*CHI:\tYes, it is.\n*MOT:\tLook at", False, ["Is it red?", "Yes, it is."], "Look at"),
        ("She ran. He sat! The do", False, ["She ran.", "He sat!"], "The do"),
        ("She ran. He sat", True, ["She ran.", "He sat"], ""),
        ('"Where are you going?" asked Tom. "I', False, ['"Where are you going?" asked Tom.'], '"I'),
        ("*DOG:\tYes.", False, ["*DOG:\tYes."], ""),
        ("She ran\nHe sat.", False, ["She ran", "He sat."], ""),
        ("", False, [], ""),
    ],
)
def test_samples_are_cut_into_sentences_and_what_the_length_cut_off(text, complete, said, fragment):
    assert split_sample(text, complete) == (said, fragment)


def test_shares_are_of_sentences_and_of_samples_that_have_any():
    verdicts = [
        GrammarVerdict(("a", "b"), (True, False), ""),
        GrammarVerdict(("c",), (True,), "d"),
        GrammarVerdict((), (), "e"),
    ]
    assert acceptance(verdicts) == {"grammatical_sentences": 2 / 3, "grammatical_samples": 0.5, "sentences": 3}
    assert verdicts[0].to_json() == {"sentences": 2, "rejected": ["b"], "fragment": ""}


def test_the_splitter_of_sentences_agrees_with_the_generator():
    assert all(re.search(r"[.?!]$", said) for said in generated(6, 10))
