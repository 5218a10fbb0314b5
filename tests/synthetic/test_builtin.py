"""The built-in corpus as files: splits, cache, and generation by several processes at once."""

import hashlib
import json
import multiprocessing
import re

import pytest

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.records import read_minimal_pairs
from ltg_mdlm.data.synthetic import builtin
from ltg_mdlm.data.synthetic.builtin import (
    FLOOR,
    GENERATOR_VERSION,
    MINIMAL_PAIRS,
    builtin_corpus,
    default_cache_dir,
    floor_nats,
    write_builtin_text,
)
from ltg_mdlm.data.synthetic.document_likelihood import DocumentLikelihood
from ltg_mdlm.data.synthetic.feature_grammar import english

WORDS = 30_000
SMALL = {"words": 3000, "vocab_size": 300}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_builtin_text(tmp_path_factory.mktemp("text"), words=WORDS)


def documents(path):
    return path.read_text("utf-8").strip().split("\n\n")


def test_training_text_has_the_requested_words_and_validation_text_a_twentieth(text):
    longest = max(len(document.split()) for document in documents(text.train))
    assert WORDS <= len(text.train.read_text("utf-8").split()) < WORDS + longest
    assert WORDS / 20 <= len(text.valid.read_text("utf-8").split()) < WORDS / 20 + longest


def test_no_validation_document_is_in_the_training_text(text):
    training = text.train.read_text("utf-8")
    assert [document for document in documents(text.valid) if f"{document}\n" in training] == []


def test_sentences_of_minimal_pairs_are_new_but_their_words_are_not(text):
    training = " ".join(text.train.read_text("utf-8").split())
    words = set(re.findall(r"[\w'-]+", training.lower()))
    for pair in read_minimal_pairs(text.minimal_pairs):
        for said in (pair.good, pair.bad):
            assert f" {said} " not in training
            assert words.issuperset(re.findall(r"[\w'-]+", said.lower())), said


def test_the_bytes_depend_on_the_seed_and_are_reproducible(text, tmp_path):
    again = write_builtin_text(tmp_path / "again", words=WORDS)
    other = write_builtin_text(tmp_path / "other", words=WORDS, seed=1)
    for name in ("train", "valid", "minimal_pairs"):
        assert getattr(again, name).read_bytes() == getattr(text, name).read_bytes()
        assert getattr(other, name).read_bytes() != getattr(text, name).read_bytes()


def test_text_and_pairs_belong_to_the_generator_version(tmp_path):
    """If this fails, the generator writes other bytes: increase GENERATOR_VERSION and update the digest."""
    files = write_builtin_text(tmp_path, words=3000)
    written = b"".join(path.read_bytes() for path in (files.train, files.valid, files.minimal_pairs))
    assert (GENERATOR_VERSION, hashlib.sha256(written).hexdigest()[:16]) == (4, "77f66db3e9998c1e")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"words": 999}, "999 words"), ({"zipf_exponent": -0.1}, "-0.1"), ({"zipf_exponent": float("nan")}, "nan")],
)
def test_parameters_out_of_range_are_user_errors_and_write_nothing(parameters, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_builtin_text(tmp_path / "text", **parameters)
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_is_generated_once_and_then_opened(tmp_path, monkeypatch):
    corpus = builtin_corpus(tmp_path, **SMALL)
    assert corpus.train.num_words >= SMALL["words"]
    assert corpus.valid.num_words >= SMALL["words"] / 20
    assert corpus.vocab_size == SMALL["vocab_size"]
    assert len(read_minimal_pairs(corpus.path / MINIMAL_PAIRS)) > 500
    assert {path.name for path in (corpus.path / "text").iterdir()} == {
        f"{split}.{suffix}" for split in ("train", "valid") for suffix in ("txt", "jsonl")
    }
    monkeypatch.setattr(builtin, "_make", lambda *_, **__: pytest.fail("generated twice"))
    assert builtin_corpus(tmp_path, **SMALL).description == corpus.description


def test_the_sources_of_the_documents_are_their_styles(tmp_path):
    corpus = builtin_corpus(tmp_path, **SMALL)
    lines = (corpus.path / "text" / "train.jsonl").read_text("utf-8").splitlines()
    styles = [json.loads(line)["style"] for line in lines]
    assert [corpus.train.source_names[source] for source in corpus.train.source_D] == styles
    assert set(styles) == set(corpus.valid.source_names) == {"book", "diary", "story", "talk"}
    assert [json.loads(line)["text"] for line in lines] == documents(corpus.path / "text" / "train.txt")


def test_the_floor_is_the_mean_negative_log_probability_of_the_held_out_documents(tmp_path):
    corpus = builtin_corpus(tmp_path, **SMALL)
    likelihood = DocumentLikelihood(english())
    texts = documents(corpus.path / "text" / "valid.txt")
    nats = -sum(likelihood.log_probability(text) for text in texts)
    assert floor_nats(corpus) == pytest.approx(nats)
    assert 0 < nats / corpus.valid.num_tokens < 2.5
    for damaged in (b"", b"3", b"{}", b'{"nats": null}', b"\xff"):
        (corpus.path / FLOOR).write_bytes(damaged)
        with pytest.raises(UserError, match=r"floor.json: damaged\n  delete .*; the next start generates"):
            floor_nats(corpus)
    (corpus.path / FLOOR).unlink()
    assert floor_nats(corpus) is None, "other corpora have none"


def test_different_parameters_give_different_corpora(tmp_path):
    paths = {
        builtin_corpus(tmp_path, **SMALL | change).path for change in ({}, {"zipf_exponent": 0.5}, {"vocab_size": 320})
    }
    assert len(paths) == 3


def test_processes_that_generate_a_corpus_at_once_get_the_same_corpus(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        fingerprints = set(pool.map(_fingerprint, [str(tmp_path)] * 3, chunksize=1))
    assert len(fingerprints) == 1
    assert len(list(tmp_path.iterdir())) == 1, "no incomplete folder is left"


def _fingerprint(cache_dir):
    return json.dumps(builtin_corpus(cache_dir, **SMALL).description)


def test_a_process_opens_the_corpus_that_another_published_first(tmp_path, monkeypatch):
    def late(folder, **parameters):
        make(folder, **parameters)
        raise UserError("another process made this folder meanwhile")

    make = builtin._make
    monkeypatch.setattr(builtin, "_make", late)
    assert builtin_corpus(tmp_path, **SMALL).train.num_documents > 0


def test_a_cache_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        builtin_corpus(tmp_path / "file", **SMALL)


def test_the_cache_folder_depends_on_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "ltg_mdlm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "ltg_mdlm"


def test_the_error_for_a_damaged_corpus_in_the_cache_names_the_folder_to_delete(tmp_path):
    folder = builtin_corpus(tmp_path, **SMALL).path
    (folder / "train" / "offsets.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"offsets.bin: damaged \(0 bytes, not") as caught:
        builtin_corpus(tmp_path, **SMALL)
    assert f"delete {folder}; the next start generates this built-in corpus again" in str(caught.value)
