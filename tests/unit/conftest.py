"""Fixtures that several files share."""

from pathlib import Path

import pytest

from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def base_vocabulary_corpus(tmp_path_factory) -> Path:
    """A small corpus whose tokenizer has the published 16384 types."""
    folder = tmp_path_factory.mktemp("base")
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = folder / "words.txt"
    # Every three-letter word, often enough to become a token: more than fill the vocabulary.
    words = [f"{a}{b}{c}" for a in letters for b in letters for c in letters]
    text.write_text("\n\n".join(" ".join(words[i::40]) for i in range(40)) * 16 + "\n")
    corpus = prepare_corpus([text], folder / "corpus", vocab_size=16384, workers=1, progress=False)
    assert Tokenizer.read(corpus.tokenizer_path).vocab_size == 16384
    return corpus.path
