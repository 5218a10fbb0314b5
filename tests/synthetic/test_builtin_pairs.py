"""The minimal pairs of the built-in corpus."""

import math
import re
from collections import Counter, defaultdict
from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.data.records import read_minimal_pairs
from ltg_mdlm.data.synthetic.builtin import write_builtin_text
from ltg_mdlm.data.synthetic.document_generator import DocumentGenerator
from ltg_mdlm.data.synthetic.document_likelihood import DocumentLikelihood
from ltg_mdlm.data.synthetic.feature_grammar import FeatureGrammar, Symbol, english
from ltg_mdlm.data.synthetic.pair_generator import balanced_set
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.inference.choices import accuracy_by_group, answer, pair_questions
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.inference.trained_model import Denoiser


class UnigramModel:
    """Predicts the same distribution everywhere."""

    config = SimpleNamespace(max_position_embeddings=512, cond_dim=None)
    output_weight_VD = torch.zeros(1)

    def __init__(self, count_V):
        self.logits_V = torch.tensor(count_V, dtype=torch.float64).add(0.5).log()

    def __call__(self, ids_BT, document_BT=None, causal_B=None, conditioning_B=None):
        return self.logits_V.expand(*ids_BT.shape, -1)

    def head(self, hidden_ND):
        return hidden_ND

    def logits(self, features_ND):
        return features_ND


@pytest.fixture(scope="module")
def builtin(tmp_path_factory):
    return write_builtin_text(tmp_path_factory.mktemp("builtin"), words=40_000)


@pytest.fixture(scope="module")
def by_uid(builtin):
    groups = defaultdict(list)
    for pair in read_minimal_pairs(builtin.minimal_pairs):
        groups[pair.uid].append(pair)
    return groups


def words_of(said):
    return re.findall(r"[\w'-]+", said.lower())


def test_builtin_pairs_cover_thirteen_phenomena_of_about_a_hundred_pairs(by_uid):
    assert len(by_uid) == 13
    assert all(100 <= len(pairs) <= 102 for pairs in by_uid.values())
    assert all(pair.field and pair.term for pairs in by_uid.values() for pair in pairs)


def test_no_builtin_pair_occurs_twice_or_is_its_own_counterpart(by_uid):
    pairs = [(pair.good, pair.bad) for group in by_uid.values() for pair in group]
    assert len(set(pairs)) == len(pairs)
    assert {good for good, _ in pairs}.isdisjoint(bad for _, bad in pairs)


def test_good_and_bad_have_the_same_number_of_words(by_uid):
    for group in by_uid.values():
        for pair in group:
            assert len(words_of(pair.good)) == len(words_of(pair.bad)), pair


def log_count(count, said):
    return sum(math.log(count[word]) for word in words_of(said))


def test_a_model_of_word_frequencies_is_at_chance_on_every_phenomenon(builtin, by_uid):
    """With words counted in the training text and without the scorer: one half, because the pairs are balanced."""
    count = Counter(words_of(builtin.train.read_text("utf-8")))
    for uid, pairs in by_uid.items():
        gains = [
            sum(math.log(count[w]) for w in words_of(p.good)) - sum(math.log(count[w]) for w in words_of(p.bad))
            for p in pairs
        ]
        accuracy = sum((gain > 1e-9) + 0.5 * (abs(gain) <= 1e-9) for gain in gains) / len(gains)
        assert accuracy == pytest.approx(0.5, abs=0.01), uid


def test_a_model_of_token_frequencies_is_at_chance(builtin, by_uid):
    """With the scorer and a byte-pair tokenizer, in which the rarer form may have more tokens."""
    text = builtin.train.read_text("utf-8")
    tokenizer = Tokenizer.train([text], 1024)
    count_V = np.bincount(tokenizer.backend.encode(text, add_special_tokens=False).ids, minlength=tokenizer.vocab_size)
    questions = pair_questions(pair for group in by_uid.values() for pair in group)
    denoiser = Denoiser(
        model=UnigramModel(count_V),
        tokenizer=tokenizer,
        predicts="same",
        modes=frozenset({"masked"}),
        value_for_rate=lambda rate_B: None,
    )
    scores = LikelihoodScorer(denoiser, ScoringRule(), Ranks.alone())([question.candidates for question in questions])
    found = [answer(question, scored) for question, scored in zip(questions, scores, strict=True)]
    by_phenomenon = accuracy_by_group(questions, found)["UID"]
    assert 0.45 <= sum(by_phenomenon.values()) / len(by_phenomenon) <= 0.55
    assert all(0.4 <= accuracy <= 0.6 for accuracy in by_phenomenon.values()), by_phenomenon


ONE_WORD = {
    "determiner_noun_agreement": None,
    "subject_verb_agreement": None,
    "subject_verb_agreement_attractor": None,
    "subject_verb_agreement_relative_clause": None,
    "anaphor_gender_agreement": {"himself", "herself", "itself"},
    "anaphor_number_agreement": {"himself", "herself", "itself", "themselves"},
    "irregular_past_participle": None,
    "auxiliary_verb_form": None,
    "transitivity": None,
}


def test_pairs_that_claim_one_wrong_word_differ_in_that_word_only(by_uid):
    for uid, allowed in ONE_WORD.items():
        for pair in by_uid[uid]:
            differing = [(a, b) for a, b in zip(words_of(pair.good), words_of(pair.bad), strict=True) if a != b]
            assert len(differing) == 1, pair
            assert allowed is None or allowed.issuperset(differing[0]), pair


@pytest.mark.parametrize("uid", ["adjective_noun_order", "wh_question_inversion"])
def test_pairs_about_word_order_hold_the_same_words(by_uid, uid):
    for pair in by_uid[uid]:
        assert Counter(words_of(pair.good)) == Counter(words_of(pair.bad)), pair


def test_the_attractor_stands_before_the_verb_and_has_the_other_number(by_uid):
    """The lexicon has the number of nouns; that of verbs is listed here."""
    rules = english().rules
    is_plural = {
        rule.parts[0]: num == "pl"
        for num in ("sg", "pl")
        for name in ("Thing", "Landmark")
        for rule in rules[Symbol(name, (num,))]
    }
    takes_plural = {"are": True, "were": True, "is": False, "was": False}
    pattern = re.compile(r"The (\w+) (?:near|behind|next to|in front of|by) the (\w+) (is|are|was|were)\b")
    for pair in by_uid["subject_verb_agreement_attractor"]:
        head, attractor, verb = pattern.match(pair.good).groups()
        assert takes_plural[verb] == is_plural[head] != is_plural[attractor]
        assert takes_plural[pattern.match(pair.bad)[3]] != takes_plural[verb]


def test_the_grammar_accepts_the_good_sentences_and_rejects_the_bad_ones(by_uid):
    likelihood = DocumentLikelihood(english())
    for pairs in by_uid.values():
        assert [pair.good for pair in pairs if not likelihood.accepts(pair.good)] == []
        assert [pair.bad for pair in pairs if likelihood.accepts(pair.bad)] == []


def test_neighbouring_words_do_not_decide_agreement_over_a_distance(builtin, by_uid):
    """A bigram model with absolute discounting; chance is one half."""
    said = [line.split("\t")[-1] for line in builtin.train.read_text("utf-8").splitlines()]
    pairs = [(a, b) for line in said for a, b in zip(["", *words_of(line)], words_of(line), strict=False)]
    count, first = Counter(pairs), Counter(a for a, _ in pairs)

    def score(text):
        words = words_of(text)
        return sum(math.log((count[a, b] + 0.01) / (first[a] + 1)) for a, b in zip(["", *words], words, strict=False))

    for uid in (
        "subject_verb_agreement_attractor",
        "subject_verb_agreement_relative_clause",
        "determiner_noun_agreement",
        "anaphor_gender_agreement",
        "anaphor_number_agreement",
        "tag_question_agreement",
    ):
        gains = [score(pair.good) - score(pair.bad) for pair in by_uid[uid]]
        accuracy = sum((gain > 1e-9) + 0.5 * (abs(gain) <= 1e-9) for gain in gains) / len(gains)
        assert accuracy < 0.7, uid


ADDED = """
word Count[num]: a/two another/three
Fact -> "there" Is[num] Count[num] Thing[num] "."  1
  ! existential_agreement morphology subject_verb_agreement: "there" Is[-num] Count[num] Thing[num] "."
"""


def test_a_phenomenon_is_added_to_the_rule_file_in_three_lines():
    text = resources.files("ltg_mdlm.data.synthetic").joinpath("english.grammar").read_text("utf-8")
    grammar = FeatureGrammar(text + ADDED)
    mistakes = [mistake for mistake in grammar.mistakes if mistake.uid == "existential_agreement"]
    pairs = balanced_set(DocumentGenerator(grammar, "0"), mistakes)
    assert len(pairs) == 2
    for good, bad in pairs:
        assert good.startswith("There ")
        assert DocumentLikelihood(grammar).accepts(good)
        assert not DocumentLikelihood(grammar).accepts(bad)
