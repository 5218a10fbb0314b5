"""Opening a corpus folder."""

import functools
import json
import os
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import VOCAB, documents, small_tokenizer, split_of_lengths, write_text

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.corpus import Corpus, Split, _open_split, digest_of, read_description
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.data.words import WHITESPACE, WordUnit


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


@pytest.mark.parametrize("name", ["tokens", "offsets", "words", "word_bits", "token_count_V", "source_D"])
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A corpus of a few words, so that every byte of it can be damaged."""
    folder = tmp_path_factory.mktemp("tiny")
    Tokenizer.train(["a"], 272).save(folder / "tokenizer.json")
    text = write_text(folder / "a.txt", ["The dog ran.", "A cat"])
    return prepare_corpus([text], folder / "corpus", tokenizer=folder / "tokenizer.json", progress=False)


def test_no_flipped_bit_of_any_byte_is_accepted(tiny):
    """Opening is right or a UserError that names the file; verification finds what opening does not."""
    rng = random.Random(0)
    for path in sorted(path for path in tiny.path.rglob("*") if path.is_file()):
        content = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for i, byte in enumerate(content):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << rng.randrange(8)]), i)
                problem = problem_with(path, tiny, reads_tokenizer=i % 40 == 0)
                os.pwrite(file.fileno(), content[i : i + 1], i)
                assert problem.startswith(str(path)) or "corpus format" in problem, f"byte {i} of {path.name}"
    assert tiny.verify() == "7 files have the recorded SHA-256"


def problem_with(path: Path, corpus: Corpus, *, reads_tokenizer: bool) -> str:
    """The message about a damaged file of a corpus folder."""
    try:
        if path.name == "corpus.json":
            read_description(path.parent)
        elif path.suffix == ".bin":
            entry, names = corpus.description["splits"]["train"], corpus.train.source_names
            _open_split(path.parent, entry, corpus.tokenizer, names, WordUnit(WHITESPACE))
        elif reads_tokenizer:
            Tokenizer.read(path)
        corpus.verify()
    except UserError as error:
        return str(error)
    return ""


def test_a_corpus_without_hashes_opens_and_its_counts_are_compared(copied):
    """As prepared by an older version. Two exchanged tokens are not found, another token is."""
    description = json.loads((copied / "corpus.json").read_text())
    del description["files"], description["digest"]
    (copied / "corpus.json").write_text(json.dumps(description))
    assert "no hashes are recorded" in Corpus.open(copied).verify()
    tokens = np.memmap(copied / "train" / "tokens.bin", np.uint16, "r+")
    tokens[5] = tokens[5] ^ 1
    with pytest.raises(UserError, match=r"train: damaged \(tokens.bin contradicts token_count_V.bin\)"):
        Corpus.open(copied).verify()
    tokens[5] = tokens[5] ^ 1
    np.memmap(copied / "train" / "words.bin", np.int32, "r+")[:2] += np.array([1, -1], np.int32)
    with pytest.raises(UserError, match=r"train: damaged \(words.bin contradicts word_bits.bin\)"):
        Corpus.open(copied).verify()


@pytest.mark.parametrize(
    ("name", "dtype", "index", "value", "message"),
    [
        ("tokens", np.uint16, 7, VOCAB, f"token id {VOCAB} is not in the vocabulary of {VOCAB}"),
        ("offsets", np.int64, 3, 1, "it does not increase from 0 to"),
        ("offsets", np.int64, 0, -1, "it does not increase from 0 to"),
        ("words", np.int32, 0, -1, "it does not count"),
        ("token_count_V", np.int64, 20, -1, "it does not count"),
    ],
)
def test_a_value_out_of_range_is_found_when_the_corpus_is_opened(copied, name, dtype, index, value, message):
    np.memmap(copied / "train" / f"{name}.bin", dtype, "r+")[index] = value
    with pytest.raises(UserError, match=rf"{name}.bin: damaged \({message}"):
        Corpus.open(copied)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("request", [None, "x", []]),
        ("tokenizer", [None, "x", {}]),
        ("tokenizer.fingerprint", [None, 1, "x"]),
        ("tokenizer.trained_on", ["x", {}, {"bytes": "1", "of_bytes": 2}]),
        ("splits", [None, [], {}]),
        ("splits.train", [None, [], {}]),
        ("splits.train.tokens", [None, "x", -1, 0, 1.5, True, 10**30]),
        ("splits.train.documents", [None, "x", -1, 0, 1.5, True, 10**30]),
        ("splits.train.sources", [None, "x", ["x"]]),
        ("files", [None, "x", {"x": 1}]),
    ],
)
def test_an_entry_of_another_type_is_one_message(copied, key, values):
    original = (copied / "corpus.json").read_text()
    for value in values:
        description = json.loads(original)
        *path, last = key.split(".")
        functools.reduce(dict.__getitem__, path, description)[last] = value
        (copied / "corpus.json").write_text(json.dumps({**description, "digest": digest_of(description)}))
        with pytest.raises(UserError, match=r"(corpus.json|\.bin): damaged|made with another tokenizer"):
            Corpus.open(copied)
