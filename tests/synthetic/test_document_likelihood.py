"""Probabilities of documents against enumeration, frequencies of samples, and another parser."""

import math
import random
from collections import Counter
from itertools import islice

import pytest
from lark import Lark, Token
from lark.exceptions import UnexpectedInput
from lark.lexer import Lexer
from support.toy_grammar import FINITE, RECURSIVE, all_documents

from ltg_mdlm.data.synthetic.document_generator import DocumentGenerator
from ltg_mdlm.data.synthetic.document_likelihood import DocumentLikelihood
from ltg_mdlm.data.synthetic.feature_grammar import FeatureGrammar, english
from ltg_mdlm.data.synthetic.spelling import sentence_words, sentences


@pytest.fixture(scope="module")
def likelihood():
    return DocumentLikelihood(english())


def generated(count, seed="test", exponent=1.0):
    """Sentences of documents, speakers left out."""
    texts = (text for _, text in DocumentGenerator(english(exponent), seed).documents())
    said = (said for text in texts for line in text.split("\n") for said in sentences(line.split("\t")[-1]))
    return list(islice(said, count))


def test_the_probability_of_every_document_of_a_small_grammar_is_the_sum_over_its_derivations():
    grammar = FeatureGrammar(FINITE)
    expected = all_documents(grammar)
    likelihood = DocumentLikelihood(grammar)
    assert len(expected) > 1000
    assert math.fsum(expected.values()) == pytest.approx(1, abs=1e-12)
    found = {text: math.exp(likelihood.log_probability(text)) for text in expected}
    assert math.fsum(found.values()) == pytest.approx(1, abs=1e-12)
    assert all(found[text] == pytest.approx(p, rel=1e-9) for text, p in expected.items())


def test_probabilities_of_a_recursive_grammar_are_the_frequencies_of_its_samples():
    grammar = FeatureGrammar(RECURSIVE)
    likelihood, count = DocumentLikelihood(grammar), 20_000
    drawn = Counter(text for _, text in islice(DocumentGenerator(grammar, "0").documents(), count))
    assert any(text.count(".") > 4 for text in drawn)
    for text, times in drawn.most_common(40):
        probability = math.exp(likelihood.log_probability(text))
        assert times / count == pytest.approx(probability, abs=5 * math.sqrt(probability / count)), text


def test_documents_of_the_built_in_grammar_have_a_probability(likelihood):
    documents = [text for _, text in islice(DocumentGenerator(english(), "0").documents(), 60)]
    assert all(-1000 < likelihood.log_probability(text) < 0 for text in documents)
    assert likelihood.log_probability(documents[0].replace(".", "!", 1)) == -math.inf


def test_a_long_document_does_not_underflow(likelihood):
    text = next(t for _, t in DocumentGenerator(english(), "0").documents() if t.startswith("Yesterday"))
    start, *_, end = sentences(text)
    longer = " ".join([start, *["I was happy."] * 300, end])
    shorter = " ".join([start, *["I was happy."] * 299, end])
    step = likelihood.log_probability(longer) - likelihood.log_probability(shorter)
    assert -20 < step < 0
    assert likelihood.log_probability(longer) == pytest.approx(300 * step, rel=0.05)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_generated_sentences_are_accepted_also_with_rare_words(likelihood, exponent):
    assert [said for said in generated(300, exponent=exponent) if not likelihood.accepts(said)] == []


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("The dog is hungry.", "The dog are hungry."),
        ("The girl hurt herself.", "The girl hurt himself."),
        ("Anna found those red balls.", "Anna found those red ball."),
        ("I was happy.", "I were happy."),
        ("What is the dog doing?", "What the dog is doing?"),
        ("There is an old cat.", "There is a old cat."),
        ("Anna didn't find the dog, and Tom didn't either.", "Anna didn't find the dog, and Tom didn't too."),
        ("Then she went home.", "Then she went house."),
        ("The boxes near the door were old.", "The boxes near the door was old."),
        ("The dog sleeps.", "the dog sleeps."),
        ("The dog sleeps.", "The  dog sleeps."),
        ("The dog sleeps.", "The dog sleeps"),
        ("The dog sleeps.", ""),
    ],
)
def test_agreement_order_choice_of_words_and_spelling_are_judged(likelihood, good, bad):
    assert likelihood.accepts(good)
    assert not likelihood.accepts(bad)


def test_an_earley_parser_accepts_the_same_sentences(likelihood):
    """Of the generator, and with two words exchanged."""
    parse, rng = earley_parser(english()), random.Random(0)
    good = [said for said in dict.fromkeys(generated(200)) if len(said.split()) > 3][:30]
    broken = [exchanged(said, rng) for said in good]
    for text in [*good, *broken]:
        words = sentence_words(text, english().vocabulary)
        assert likelihood.accepts(text) == (bool(words) and parse(words)), text
    assert sum(map(likelihood.accepts, broken)) < 10


def exchanged(text, rng):
    words = text.rstrip(".?").split()
    place = rng.randrange(1, len(words) - 1)
    words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words) + text[-1]


def earley_parser(grammar):
    """Whether lark's Earley parser accepts a list of words."""

    class Words(Lexer):
        def __init__(self, conf):
            pass

        def lex(self, words):
            return (Token(terminals[word], word) for word in words)

    terminals = {word: f"W{i}" for i, word in enumerate(sorted(grammar.vocabulary))}
    names = {symbol: f"s{i}" for i, symbol in enumerate(grammar.rules) if symbol.name not in grammar.discourse}

    def right(rule):
        return " ".join(terminals[part] if isinstance(part, str) else names[part] for part in rule.parts)

    lines = [f"start: {' | '.join(names[symbol] for symbol in sorted(grammar.sentences))}"]
    for symbol, name in names.items():
        lines.append(f"{name}: {' | '.join(dict.fromkeys(map(right, grammar.rules[symbol])))}")
    lines.append(f"%declare {' '.join(terminals.values())}")
    parser = Lark("\n".join(lines), parser="earley", lexer=Words, ambiguity="resolve")

    def accepts(words):
        try:
            parser.parse(words)
        except UnexpectedInput:
            return False
        return True

    return accepts
