"""The rule file: its notation, its expansion, and the text that is drawn from it."""

import math
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from support.toy_grammar import FINITE

from ltg_mdlm.data.synthetic.document_generator import DocumentGenerator
from ltg_mdlm.data.synthetic.feature_grammar import FeatureGrammar, Symbol, english
from ltg_mdlm.data.synthetic.spelling import (
    gerund_of,
    past_of,
    plural_of,
    sentence_text,
    sentence_words,
    third_person_of,
)


@pytest.fixture(scope="module")
def text():
    """About 140,000 words."""
    return "\n".join(text for _, text in islice(DocumentGenerator(english(), "1").documents(), 2500))


@pytest.fixture(scope="module")
def sentences(text):
    return re.split(r"(?<=[.?!]) |\n", re.sub(r"^\*\w+:\t", "", text, flags=re.M))


@pytest.mark.parametrize(
    ("inflect", "pairs"),
    [
        (plural_of, "dog dogs, box boxes, bus buses, peach peaches, bush bushes, berry berries, toy toys"),
        (third_person_of, "run runs, go goes, watch watches, carry carries, play plays, have has, kiss kisses"),
        (past_of, "walk walked, like liked, carry carried, play played, stop stopped, visit visited, hum hummed"),
        (gerund_of, "run running, make making, die dying, see seeing, begin beginning, eat eating, sit sitting"),
        (gerund_of, "forget forgetting, open opening, fly flying, put putting, jump jumping, hurry hurrying"),
    ],
)
def test_regular_inflection_is_spelt_as_in_english(inflect, pairs):
    for word, expected in (pair.split() for pair in pairs.split(", ")):
        assert inflect(word) == expected


def test_words_are_read_back_from_a_sentence():
    words = ["a", "old", "dog", "is", "a", "dog", ",", "isn't", "it", "?"]
    assert sentence_text(words) == "An old dog is a dog, isn't it?"
    assert sentence_words("An old dog is a dog, isn't it?", set(words)) == words
    assert sentence_words("Ann is a dog.", {"Ann", "is", "a", "dog", "."}) == ["Ann", "is", "a", "dog", "."]
    for wrong in ("A old dog.", "an old dog.", "An old dog .", "An old cat.", "An  old dog."):
        assert sentence_words(wrong, {"a", "old", "dog", "."}) == []


def test_a_rule_is_expanded_once_for_each_value_of_its_features():
    rules = FeatureGrammar(FINITE).rules
    who, does, ape = (lambda num, name=name: Symbol(name, (num,)) for name in ("Who", "Does", "Animal"))
    assert [rule.parts for rule in rules[Symbol("Fact", ("sg",))]] == [
        (who("sg"), does("sg"), "."),
        ("the", ape("sg"), Symbol("Near"), "the", ape("pl"), does("sg"), "."),
        ("the", "old", ape("sg"), does("sg"), "."),
    ]
    assert [rule.parts for rule in rules[who("pl")]] == [("the", ape("pl"))], "names have no plural"
    assert [rule.parts for rule in rules[Symbol("Near")]] == [("by",), ("next", "to")]
    assert [rule.parts for rule in rules[Symbol("Verb", ("sg",))]] == [("runs",), ("fishes",)]


def test_probabilities_of_a_symbol_sum_to_one_and_follow_weights_priors_and_ranks():
    rules = FeatureGrammar(FINITE, exponent=2.0).rules
    for symbol, of_symbol in rules.items():
        assert math.fsum(rule.probability for rule in of_symbol) == pytest.approx(1), symbol
    assert [rule.probability for rule in rules[Symbol("Fact", ("sg",))]] == [0.5, 0.25, 0.25]
    assert [rule.probability for rule in rules[Symbol("Animal", ("pl",))]] == pytest.approx([0.8, 0.2])
    start = {rule.parts[0]: rule.probability for rule in rules[Symbol("Document")]}
    assert start[Symbol("Short", ("sg",))] == pytest.approx(3 / 4 * 2 / 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Fact[num] -> ", "line 2: cannot be read: Fact"),
        ("Fact[gender] -> Who", "line 2: cannot be read"),
        ("word A[num]: a/b/c", "line 2: cannot be read"),
        ("! uid field: Who", "line 2: cannot be read"),
        ('Fact -> Cat "."', "line 2: can never be used: Fact"),
    ],
)
def test_errors_in_a_rule_file_name_the_line(line, message):
    with pytest.raises(ValueError, match=message):
        FeatureGrammar(f"feature num = sg:1 pl:1\n{line}\n")


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5])
def test_words_of_the_text_follow_zipfs_law_with_the_exponent_asked_for(exponent):
    """Least squares of log frequency on log rank; names are in no other category."""
    texts = islice(DocumentGenerator(english(exponent), "3").documents(), 3000)
    counts = Counter(re.findall(r"[\w'-]+", "\n".join(text for _, text in texts)))
    for gender in "fm":
        names = [rule.parts[0] for rule in english(exponent).rules[Symbol("Name", (gender,))]]
        rank, count = np.array([(rank, counts[name]) for rank, name in enumerate(names, 1)], dtype=np.float64).T
        slope = np.polyfit(np.log(rank), np.log(count), 1, w=np.sqrt(count))[0]
        assert slope == pytest.approx(-exponent, abs=0.15)


def test_no_category_has_a_word_twice_and_names_are_no_other_words():
    rules = english().rules
    for symbol, of_symbol in rules.items():
        words = [rule.parts for rule in of_symbol if all(isinstance(part, str) for part in rule.parts)]
        assert len(set(words)) == len(words), symbol
    assert [w for w in english().vocabulary if w[0].isupper() and w.lower() in english().vocabulary] == []


def test_text_does_not_depend_on_the_hash_seed():
    code = """if True:
        from hashlib import sha256
        from itertools import islice
        from ltg_mdlm.data.synthetic.document_generator import DocumentGenerator
        from ltg_mdlm.data.synthetic.feature_grammar import english
        print(sha256(repr(list(islice(DocumentGenerator(english(), "0").documents(), 50))).encode()).hexdigest())
    """
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


def test_sentences_begin_with_a_capital_and_end_with_a_stop(sentences):
    assert [said for said in sentences if not re.fullmatch(r"[A-Z][^.?!\t]*[.?]", said)] == []


@pytest.mark.parametrize(
    "mistake",
    [
        r"^(He|She|It) (are|were|have|do|am)\b",
        r"^They (is|was|has|does|am)\b",
        r"^I (is|are|were|has|does)\b",
        r"\b(this|every|another|a|an) (dogs|cats|boys|girls|men|women|mice|geese|balls)\b",
        r"\b(these|those|two|many) (dog|cat|boy|girl|man|woman|mouse|goose|ball)\b",
        r"\b(mans|gooses|mouses|knifes|goed|eated|runned|taked|maked)\b",
        r"\ba [aeio]\w+", r"\ban [^aeiou\W]\w+",
        r"\b(is|are|was|were) (sleep|run|eat|eats|sleeps|runs)\b",
        r"\b(can|will|could|did|does|do|don't|didn't) (sleeping|slept|sleeps|eating|ate|ran|running)\b",
        r"\b(has|have) (ate|took|gave|went|saw|eat|take|go)\b",
        r"^(Anna|Emma|Lucy|Mary|The (girl|mother|woman|queen)) \w+ (himself|itself|themselves)\b",
        r"^(Tom|Ben|Jack|Adam|The (boy|father|man|king)) \w+ (herself|itself|themselves)\b",
        r"^The (boys|girls|dogs|men|women) \w+ (himself|herself|itself)\b",
        r"\b(the|a|is|are|was|were|to|in|and|some|not) \1\b", r"\b(no|No), \w+ (is|are|do|does|can|will)\.",
        r"  ", r" [.,?!]", r"_",
    ],
)  # fmt: skip
def test_text_has_none_of_the_mistakes_that_a_reader_would_notice(sentences, mistake):
    assert [said for said in sentences if re.search(mistake, said)] == []


@pytest.mark.parametrize(
    ("answered", "pronouns"),
    [("Anna|Emma|Lucy", {"she"}), ("Tom|Ben|Jack", {"he"}), ("the dogs|the girls", {"they"}), ("the dog", {"it"})],
)
def test_answers_refer_back_with_the_right_pronoun(text, answered, pronouns):
    asked = re.findall(rf"\t(?:Is|Are|Does|Do) (?:{answered}) .*\?\n\*\w+:\t\w+, (\w+) ", text)
    assert len(asked) > 20
    assert set(asked) == pronouns


def test_a_story_keeps_the_pronoun_of_its_first_sentence(text):
    stories = re.findall(r"^One day (\w+) .*", text, re.M)
    told = [line for line in text.split("\n") if line.startswith("One day ")]
    assert len(stories) > 100
    women = {rule.parts[0] for rule in english().rules[Symbol("Name", ("f",))]}
    for name, story in zip(stories, told, strict=True):
        assert set(re.findall(r"\b([Ss]he|[Hh]e) ", story)) <= ({"she", "She"} if name in women else {"he", "He"})
