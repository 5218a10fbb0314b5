"""Duplicates, evaluation data and what exceeds a budget are left out, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import documents, sentences, small_tokenizer, write_text

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data import prepare, word_sequences
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.readers import Piece
from ltg_mdlm.data.selection import BYTES_PER_WORD, Budget, Choice, Selection, premiums_of, within_share
from ltg_mdlm.data.word_sequences import SharedNgrams
from ltg_mdlm.data.words import WHITESPACE, WordUnit, terms_of

UNIT = WordUnit(WHITESPACE)


def kept(choice: Choice, texts: list[str]) -> list[bool]:
    selection = Selection(choice, UNIT)
    for text in texts:
        for start in range(0, len(text), 30):
            selection.add(Piece(text[start : start + 30], start == 0, "a"))
    return selection.decide().tolist()


@given(st.lists(st.sampled_from(["a b", "a c", "the same text that is longer than one piece of it", "d"]), min_size=1))
def test_exactly_the_later_equal_documents_are_duplicates(texts):
    assert kept(Choice(duplicates=True), texts) == [text not in texts[:i] for i, text in enumerate(texts)]


def test_near_duplicates_are_similar_documents():
    pytest.importorskip("rensa")
    words = " ".join(str(n) for n in range(400)).split()
    texts = [" ".join(words), " ".join([*words[:395], "other"]), " ".join(words[200:]), " ".join(reversed(words)), "."]
    assert kept(Choice(near_duplicates=0.8), texts) == [True, False, True, True, True]


@given(
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), min_size=1, max_size=8),
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), min_size=1, max_size=8),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_exactly_the_documents_that_share_an_ngram_are_found(questions, texts, n, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_sequences, "_WORDS_PER_PART", at_once)
        search = SharedNgrams(map(" ".join, questions), n)
        for words in texts:
            for start in range(0, len(words), 7):
                search.add(Piece(" ".join(words[start : start + 7]) + " ", start == 0))
        search.finish()
    wanted = {tuple(words[i : i + n]) for words in questions for i in range(len(words) - n + 1)}
    grams = [{tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in texts]
    assert sorted(search.found) == [number for number, own in enumerate(grams) if own & wanted]
    for number, shared in search.found.items():
        assert tuple(terms_of(shared)) in grams[number] & wanted


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_share_is_never_exceeded_and_missed_by_less_than_the_largest_document(sizes, share):
    size_D = np.array(sizes, float)
    chosen = size_D[within_share(size_D, share)].sum()
    assert chosen <= share * size_D.sum() + 1e-6
    assert chosen > share * size_D.sum() - size_D.max() - 1e-6


def test_a_budget_in_bytes_depends_on_the_premium():
    premiums = premiums_of(["nld", "zho=zho", "other=2"])
    budget = Budget(10, premiums)
    assert budget.size("x", 5, 546) == pytest.approx(546 / BYTES_PER_WORD / 1.051606)
    assert budget.size("zho", 5, 546) == pytest.approx(546 / BYTES_PER_WORD / 0.935966)
    assert budget.size("other", 5, 546) == pytest.approx(50)
    assert Budget(10, premiums_of(["eng"])).size("x", 5, 546) == 5
    with pytest.raises(UserError, match="--language xyz: the byte premium of 'xyz' is not known here; known: eng, nld"):
        premiums_of(["xyz"])
    with pytest.raises(UserError, match="--language zho: there already is one for all other sources"):
        premiums_of(["nld", "zho"])


@pytest.fixture
def corpus(tmp_path):
    """A function that prepares two sources with options, always with the same tokenizer."""
    small_tokenizer().save(tmp_path / "tokenizer.json")
    files = [
        write_text(tmp_path / "a.train", documents(300)),
        write_text(tmp_path / "b.train", [*documents(100, seed=1), *documents(50)]),
    ]

    def make(name: str, **options) -> Corpus:
        options = {"tokenizer": tmp_path / "tokenizer.json", "progress": False, **options}
        return prepare_corpus(files, tmp_path / name, **options)

    return make


def test_a_budget_cuts_all_sources_in_proportion(corpus):
    whole, cut = corpus("whole"), corpus("cut", budget=Budget(1500))
    assert 1450 < cut.train.num_words <= 1500
    shares = [{k: v / c.train.num_words for k, v in c.train.words_by_source().items()} for c in (whole, cut)]
    assert shares[0] == pytest.approx(shares[1], abs=0.02)
    assert 0 <= cut.description["splits"]["train"]["budget_size"] - cut.train.num_words <= 2
    assert "of 1,500 words of English in the budget" in cut.describe()
    assert corpus("all", budget=Budget(10**9)).description["fingerprint"] == whole.description["fingerprint"]


@pytest.mark.parametrize("limit", [60, 10_000])
def test_a_document_that_is_larger_than_the_budget_is_cut_after_a_word(corpus, tmp_path, limit, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE_CHARACTERS", limit)
    text = " ".join(documents(100))
    write_text(tmp_path / "a.train", [text])
    made = corpus("made", budget=Budget(500))
    assert 498 <= made.train.num_words <= 500
    first = made.tokenizer.decode(made.train.tokens[: made.train.offsets[1]].tolist())
    assert small_tokenizer().decode(small_tokenizer().encode(text)).startswith(first)


def test_a_premium_of_an_unknown_source_is_an_error(corpus):
    with pytest.raises(UserError, match=r"--language bb=...: no such source \(did you mean 'b'\?\)\n  sources: a, b"):
        corpus("made", budget=Budget(1500, premiums_of(["bb=zho"])))


def test_what_is_left_out_is_recorded(corpus):
    evaluation = SharedNgrams(sentences(1, seed=3003), 3)
    made = corpus("made", drop_duplicates=True, evaluation=evaluation)
    entry = made.description["splits"]["train"]["left_out"]
    assert entry["duplicates"]["documents"] == 50
    assert entry["evaluation_data"]["documents"] >= 1
    assert made.train.num_documents == 450 - sum(counts["documents"] for counts in entry.values())
    report = (made.path / "evaluation_data.tsv").read_text().splitlines()
    assert len(report) - 1 >= entry["evaluation_data"]["documents"]
    assert "left out, duplicates: 50 documents" in made.describe()


def test_a_split_of_which_nothing_is_left_is_refused(corpus):
    with pytest.raises(UserError, match=r'no text for the train split; left out: \{"evaluation'):
        corpus("made", evaluation=SharedNgrams(["a the one, 1 2 3 4 5 6 7 8 9 0"], 1))
