"""Samples judged by the grammar of the built-in corpus."""

import pytest

from ltg_mdlm.data.synthetic.recogniser import GrammarVerdict, acceptance, judge_grammar, split_sample


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


def test_a_sample_is_judged_sentence_by_sentence_and_its_cut_end_is_not():
    (verdict,) = judge_grammar(["*MOT:\tIs the dog happy?\n*CHI:\tYes, it are. The do"], [False])
    assert verdict.accepted == (True, False)
    assert (verdict.rejected, verdict.fragment) == (["Yes, it are."], "The do")
