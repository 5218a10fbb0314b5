"""Reading the tokenised corpora of the existing stack."""

import numpy as np
import pytest
import torch
from support.corpora import VOCAB, documents, small_tokenizer, write_text

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.tokenized_bin import open_tokenized_bin, read_tokenized_bin
from ltg_mdlm.data.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXTS = [text.replace("´", "'") for text in documents(25)]


def save(path, documents):
    torch.save([torch.tensor(ids, dtype=torch.int16) for ids in documents], path)
    return path


def test_a_file_is_the_same_split_as_its_prepared_text(tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    small_tokenizer().save(tokenizer)
    text = write_text(tmp_path / "a.txt", TEXTS)
    expected = prepare_corpus([text], tmp_path / "corpus", tokenizer=tokenizer, progress=False).train
    path = save(tmp_path / "train_tokenized.bin", [small_tokenizer().encode(text) for text in TEXTS])
    corpus = open_tokenized_bin(path, tokenizer, valid=path)
    assert corpus.valid is not None
    assert corpus.tokenizer_path == tokenizer
    for split in (corpus.train, corpus.valid):
        for name in ("tokens", "offsets", "words", "word_bits", "token_count_V"):
            assert getattr(split, name).tolist() == getattr(expected, name).tolist(), name
        assert split.text_bytes == expected.text_bytes
        assert split.sources[0]["file"] == "train_tokenized.bin"
    assert "25 documents" in corpus.describe()


def test_negative_int16_are_ids_above_32767(tmp_path):
    vocabulary = {**small_tokenizer().definition["model"]["vocab"]}
    vocabulary |= {f"Ġ{i}": i for i in range(VOCAB, 40_000)}
    model = {**small_tokenizer().definition["model"], "vocab": vocabulary}
    large = Tokenizer({**small_tokenizer().definition, "model": model})
    path = save(tmp_path / "large.bin", [np.array([17, 39_999], np.uint16).astype(np.int16).tolist()])
    assert read_tokenized_bin(path, large).tokens.tolist() == [17, 39_999]


def test_int16_cannot_hold_the_ids_of_a_larger_vocabulary(tmp_path):
    vocabulary = {**small_tokenizer().definition["model"]["vocab"]}
    vocabulary |= {f"Ġ{i}": i for i in range(VOCAB, 66_000)}
    model = {**small_tokenizer().definition["model"], "vocab": vocabulary}
    large = Tokenizer({**small_tokenizer().definition, "model": model})
    with pytest.raises(UserError, match=r"a.bin: int16 cannot hold the ids of a vocabulary of 66000; prepare the text"):
        read_tokenized_bin(save(tmp_path / "a.bin", [[17, 18]]), large)
    torch.save([torch.tensor([17, 65_999])], tmp_path / "b.bin")
    assert read_tokenized_bin(tmp_path / "b.bin", large).tokens.tolist() == [17, 65_999]


def test_a_file_of_another_tokenizer_is_refused_although_its_ids_are_in_the_vocabulary(tmp_path):
    """The own file is accepted, also with documents that were cut at any token."""
    other = Tokenizer.train(TEXTS[:10], 300)
    ids = [small_tokenizer().encode(text) for text in TEXTS]
    own = save(tmp_path / "own.bin", [document[i % 5 :] for i, document in enumerate(ids)])
    foreign = save(tmp_path / "valid.bin", [other.encode(text) for text in TEXTS])
    small_tokenizer().save(tmp_path / "tokenizer.json")
    assert open_tokenized_bin(own, tmp_path / "tokenizer.json", valid=own).valid is not None
    with pytest.raises(UserError, match=r"valid.bin: made with another tokenizer: only \d+% of its tokens"):
        open_tokenized_bin(own, tmp_path / "tokenizer.json", valid=foreign)


@pytest.mark.parametrize("beyond", [VOCAB, -1])
def test_ids_that_are_not_in_the_vocabulary_are_refused(tmp_path, beyond):
    path = save(tmp_path / "a.bin", [[20, 30], [20, beyond]])
    message = rf"a.bin: token id {beyond} is not in the vocabulary of {VOCAB}; was it made with another tokenizer"
    with pytest.raises(UserError, match=message):
        read_tokenized_bin(path, small_tokenizer())


def test_a_file_without_tokens_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a.bin: no documents"):
        read_tokenized_bin(save(tmp_path / "a.bin", [[]]), small_tokenizer())


@pytest.mark.parametrize(
    "content",
    [{"a": 1}, torch.zeros(3), [1, 2], [torch.zeros(2)], [torch.zeros(2, 2, dtype=torch.int16)], SPECIAL_TOKENS],
)
def test_other_torch_files_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"a.bin: not a tokenised corpus: it is not a list"):
        read_tokenized_bin(tmp_path / "a.bin", small_tokenizer())


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("content", [b"", b"text\n", b"PK\x03\x04", "harmful", None])
def test_files_that_torch_cannot_load_safely_are_refused(tmp_path, content, capsys):
    path = tmp_path / "a.bin"
    if content == "harmful":
        torch.save([Harmful()], path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"a.bin: (not a tokenised corpus: torch.load cannot|no such file)"):
        read_tokenized_bin(path, small_tokenizer())
    assert capsys.readouterr().out == ""
