"""Opening a corpus folder."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import VOCAB, documents, small_tokenizer, split_of_lengths, write_text

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    small_tokenizer().save(folder / "tokenizer.json")
    text = write_text(folder / "a.txt", documents(30))
    return prepare_corpus([text], folder / "corpus", tokenizer=folder / "tokenizer.json", progress=False)


@pytest.fixture
def copied(prepared, tmp_path):
    """A copy of the corpus folder that may be damaged."""
    for path in prepared.path.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(prepared.path)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path


def test_an_opened_corpus_is_memory_mapped(prepared):
    corpus = Corpus.open(prepared.path)
    assert isinstance(corpus.train.tokens.base, np.memmap)
    assert corpus.vocab_size == VOCAB
    assert corpus.tokenizer_path.read_bytes() == (prepared.path / "tokenizer.json").read_bytes()
    assert "30 documents" in corpus.describe()


def test_a_folder_without_a_corpus_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="not a corpus folder; `ltg-mdlm prepare FILES --out"):
            Corpus.open(path)


def test_another_tokenizer_than_the_corpus_was_made_with_is_refused(prepared, copied):
    assert Corpus.open(prepared.path, tokenizer=small_tokenizer()).vocab_size == VOCAB
    other = Tokenizer.train(documents(50, seed=9), 300)
    with pytest.raises(UserError, match="made with another tokenizer than the tokenizer given"):
        Corpus.open(prepared.path, tokenizer=other)
    other.save(copied / "tokenizer.json")
    with pytest.raises(UserError, match=r"made with another tokenizer than its tokenizer\.json"):
        Corpus.open(copied)


@pytest.mark.parametrize("name", ["tokens", "offsets", "words", "word_bits", "token_count_V"])
def test_a_file_of_the_wrong_size_is_damaged(copied, name):
    path = copied / "train" / f"{name}.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{name}.bin: damaged \(\d+ bytes, not \d+\)"):
        Corpus.open(copied)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}.bin: damaged \(0 bytes"):
        Corpus.open(copied)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"format": 1}', '{"format": 1, "request": {}}'])
def test_a_damaged_description_is_refused(copied, content):
    (copied / "corpus.json").write_text(content)
    with pytest.raises(UserError, match=r"corpus.json: damaged"):
        Corpus.open(copied)


def test_a_folder_of_another_format_is_refused(copied):
    description = json.loads((copied / "corpus.json").read_text())
    (copied / "corpus.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(UserError, match="corpus format 99, this version reads 1"):
        Corpus.open(copied)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.data())
def test_words_are_counted_between_any_tokens(lengths, data):
    split = split_of_lengths(lengths, seed=sum(lengths))
    marks = split.word_start(0, split.num_tokens)
    cuts = data.draw(st.lists(st.integers(0, split.num_tokens), unique=True).map(sorted))
    bounds = np.unique([0, *cuts, split.num_tokens])
    expected = [marks[a:b].sum() for a, b in pairwise(bounds)]
    assert split.words_between(bounds).tolist() == expected
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, split.num_tokens)] * 2)))
    assert split.word_start(start, stop).tolist() == marks[start:stop].tolist()


def test_a_split_made_from_tokens_has_the_words_of_the_decoded_text():
    texts = documents(20)
    split = Split.of([np.array(small_tokenizer().encode(text)) for text in texts], small_tokenizer())
    assert split.words.tolist() == [len(text.replace("´", " ").split()) for text in texts]  # as normalised
    assert split.text_bytes == sum(len(text.replace("´", " ́").encode()) for text in texts)


def test_empty_documents_are_skipped():
    split = Split.of([np.array([], int), np.array([20, 21]), np.array([], int)], small_tokenizer())
    assert split.offsets.tolist() == [0, 2]
    assert split.num_documents == 1
    with pytest.raises(UserError, match="no documents, or only empty ones"):
        Split.of([np.array([], int)], small_tokenizer())
