"""Word sequences are found exactly where a search by hand finds them, however the text is cut."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import documents, real_data, small_tokenizer

from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.sources import Piece, find_sources, read_pieces
from ltg_mdlm.evaluation import contamination as decoded
from ltg_mdlm.evaluation import contamination as word_sequences
from ltg_mdlm.evaluation.contamination import WordSequences, decoded_pieces, words_of

WORDS = st.sampled_from("abcd")
SEQUENCES = st.lists(st.lists(WORDS, min_size=1, max_size=7), min_size=1, max_size=20)
DOCUMENTS = st.lists(st.lists(st.lists(WORDS, max_size=8), min_size=1, max_size=3), max_size=6)


def searched(sequences, pieces):
    """(found, words read)"""
    length_S = np.array([len(words) for words in sequences])
    flat = [word for words in sequences for word in words]
    search = WordSequences(flat, np.cumsum(length_S) - length_S, length_S)
    return search.found_in(pieces).tolist(), search.words_read


def words_by_document(pieces):
    found = []
    for piece in pieces:
        if piece.opens_document:
            found.append([])
        found[-1] += words_of(piece.text)
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't!", ["don", "t"]),
        ("A: What?\nB: It's 1984…", ["a", "what", "b", "it", "s", "1984"]),
        ("well-known_fact (e.g. naïve Ω)", ["well", "known", "fact", "e", "g", "naïve", "ω"]),
        ("\ufb01ne nai\u0308ve ①", ["fine", "naïve", "1"]),
        (" \n–", []),
    ],
)
def test_words_are_runs_of_letters_and_digits(text, words):
    assert words_of(text) == words


@given(SEQUENCES, DOCUMENTS, st.integers(1, 30))
def test_exactly_the_sequences_within_a_document_are_found(sequences, text, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_sequences, "_WORDS_PER_PART", at_once)
        pieces = [Piece(" ".join(part) + " ", i == 0) for parts in text for i, part in enumerate(parts)]
        found, words_read = searched(sequences, pieces)
    whole = [list(chain.from_iterable(parts)) for parts in text]
    expected = [any(words[i : i + len(s)] == s for words in whole for i in range(len(words))) for s in sequences]
    assert found == expected
    assert words_read == sum(map(len, whole))


@pytest.mark.parametrize("cut", range(1, 6))
def test_the_longest_sequence_is_found_across_parts(monkeypatch, cut):
    monkeypatch.setattr(word_sequences, "_WORDS_PER_PART", 1)
    words = list("xabcde")
    pieces = [Piece(" ".join(words[:cut]), True), Piece(" ".join(words[cut:]), False)]
    assert searched([list("abcde"), list("abced")], pieces)[0] == [True, False]


def test_words_that_are_in_no_sequence_stand_between_the_others():
    assert searched([["a", "b"], ["c"]], [Piece("a x b c", True)]) == ([False, True], 4)


@pytest.mark.parametrize("at_once", [1, 3, 50, 1 << 18])
def test_decoded_documents_have_the_words_of_their_text(monkeypatch, at_once):
    monkeypatch.setattr(decoded, "_TOKENS_PER_PART", at_once)
    texts = documents(30)
    split = Split.of([np.array(small_tokenizer().encode(text)) for text in texts], small_tokenizer())
    assert words_by_document(decoded_pieces(split, small_tokenizer())) == [words_of(text) for text in texts]


def test_pieces_of_a_decoded_document_follow_each_other(monkeypatch):
    text = documents(1)[0]
    split = Split.of([np.array(small_tokenizer().encode(text))], small_tokenizer())
    (whole,) = decoded_pieces(split, small_tokenizer())
    monkeypatch.setattr(decoded, "_TOKENS_PER_PART", 5)
    pieces = list(decoded_pieces(split, small_tokenizer()))
    assert len(pieces) > 2
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.opens_document for piece in pieces] == [True] + [False] * (len(pieces) - 1)


def test_a_prepared_corpus_has_the_words_of_its_files(tmp_path):
    text = real_data("babylm_2024_merged", "train_100k", "childes.train")
    small_tokenizer().save(tmp_path / "tokenizer.json")
    prepare_corpus([text], tmp_path / "corpus", tokenizer=tmp_path / "tokenizer.json", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    expected = words_by_document(piece for source in find_sources([text]) for piece in read_pieces(source))
    assert words_by_document(decoded_pieces(corpus.train, corpus.tokenizer)) == expected
