"""The training split as components see it, and the counts of its n-grams."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import documents, small_tokenizer, write_text

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data import corpus_view
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.corpus_view import TrainingText, count_ngrams
from ltg_mdlm.data.prepare import prepare_corpus


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> Corpus:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small_tokenizer().save(tmp_path / "tokenizer.json")
    files = [write_text(tmp_path / f"{name}.txt", documents(20, seed)) for seed, name in enumerate("ab")]
    return prepare_corpus(files, tmp_path / "corpus", tokenizer=tmp_path / "tokenizer.json", progress=False)


def expected_counts(split, n: int) -> dict[tuple[int, ...], int]:
    texts = [split.tokens[a:b].tolist() for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)]
    return dict(sorted(Counter(tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)).items()))


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=8),
    st.integers(1, 6),
    st.integers(1, 12),
    st.sampled_from([0, 65_000, 2**30]),
)
def test_ngrams_are_those_within_documents_in_sorted_order(texts, n, at_once, base):
    """With few occurrences at once, and with ids so large that a key of 64 bits holds two of them."""
    tokens = np.concatenate(texts).astype(np.uint32) + np.uint32(base if base < 2**30 else 0)
    offsets = np.cumsum([0, *map(len, texts)])
    parts = list(count_ngrams(tokens, offsets, n, at_once=at_once))
    found = [
        (tuple(ids), count) for ids_Kn, count_K in parts for ids, count in zip(ids_Kn.tolist(), count_K, strict=True)
    ]
    base = int(tokens.min() - min(map(min, texts)))
    counted = Counter(tuple(base + t for t in text[i : i + n]) for text in texts for i in range(len(text) - n + 1))
    assert found == sorted(counted.items())


def test_the_view_is_the_training_split(corpus):
    view = TrainingText(corpus)
    assert isinstance(view.tokens.base, np.memmap)
    assert np.array_equal(view.offset_D1, corpus.train.offsets)
    assert view.source_names == ("a", "b")
    assert view.source_D.tolist() == [0] * 20 + [1] * 20


@pytest.mark.parametrize("n", [1, 2, 3, 500])
def test_ngrams_are_counted_once_and_kept_beside_the_corpus(corpus, n, monkeypatch):
    ids_Kn, count_K = TrainingText(corpus).ngram_counts(n)
    expected = expected_counts(corpus.train, n)
    assert list(map(tuple, ids_Kn.tolist())) == list(expected)
    assert count_K.tolist() == list(expected.values())
    assert ids_Kn.dtype == np.int64  # arithmetic on the type of the corpus, uint16, would wrap
    (folder,) = corpus.path.glob("ngrams-*")
    assert sorted(path.name for path in folder.iterdir()) == ["count.bin", "ids.bin"]
    assert corpus.verify() == "7 files have the recorded SHA-256"
    monkeypatch.setattr(corpus_view, "count_ngrams", lambda *_: pytest.fail("counted twice"))
    again = TrainingText(Corpus.open(corpus.path)).ngram_counts(n)
    assert all(map(np.array_equal, again, (ids_Kn, count_K)))


def test_torn_counts_are_counted_again(corpus):
    expected = TrainingText(corpus).ngram_counts(2)
    (folder,) = corpus.path.glob("ngrams-*")
    expected = expected[0].copy(), expected[1].copy()
    (folder / "count.bin").write_bytes((folder / "count.bin").read_bytes()[:-8])
    found = TrainingText(corpus).ngram_counts(2)
    assert all(map(np.array_equal, found, expected))


def refuse(folders: list[Path], monkeypatch) -> None:
    """Make the folders read-only, also for root."""
    write = corpus_view.written_folder

    def written_folder(final: Path, **options):
        if any(final.is_relative_to(folder) for folder in folders):
            raise OSError(30, "Read-only file system")
        return write(final, **options)

    monkeypatch.setattr(corpus_view, "written_folder", written_folder)


def test_counts_of_a_read_only_corpus_are_kept_in_the_cache(corpus, tmp_path, monkeypatch):
    refuse([corpus.path], monkeypatch)
    ids_Kn, _ = TrainingText(corpus).ngram_counts(2)
    assert len(ids_Kn) == len(expected_counts(corpus.train, 2))
    assert list((tmp_path / "cache" / "ltg_mdlm").glob("ngrams-2-*"))
    assert not list(corpus.path.glob("ngrams-*"))


def test_without_any_writable_folder_there_is_a_clear_error(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_view.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    refuse([tmp_path], monkeypatch)
    with pytest.raises(
        UserError, match=r"counts of 2-grams cannot be written anywhere\n.*corpus: the disk is read-only"
    ):
        TrainingText(corpus).ngram_counts(2)
    with pytest.raises(ValueError, match="at least one token, not 0"):
        TrainingText(corpus).ngram_counts(0)
