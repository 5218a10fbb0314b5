"""Small texts, tokenizers and splits for tests."""

import os
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from ltg_mdlm.data.corpus import Split
from ltg_mdlm.data.tokenizer import NUM_SPECIAL, Tokenizer

WORDS = [
    "the",
    "a",
    "dog",
    "cats",
    "ran",
    "saw",
    "it's",
    "don´t",
    "naïve",
    "1984",
    "(quickly)",
    "one,",
    "two.",
    "Ω-level",
    "*CHI:\ttree",
]

VOCAB = 320
"""Size of the small tokenizer."""


def sentences(count: int, seed: int = 0) -> list[str]:
    """`count` lines of three to nine words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(count)]


def documents(count: int, seed: int = 0) -> list[str]:
    """`count` documents of one to six lines, all different."""
    rng = random.Random(seed)
    return ["\n".join([f"{i} {seed}", *sentences(rng.randint(1, 6), seed * 1000 + i)]) for i in range(count)]


def write_text(path: Path, texts: list[str]) -> Path:
    """A text file of blank-line separated documents."""
    path.write_text("\n\n".join(texts) + "\n", "utf-8")
    return path


@cache
def small_tokenizer() -> Tokenizer:
    """A tokenizer trained on some of the documents."""
    return Tokenizer.train(documents(200), VOCAB)


def split_of_lengths(lengths: list[int], seed: int = 0) -> Split:
    """Documents of the given lengths, of random ordinary tokens."""
    rng = np.random.default_rng(seed)
    return Split.of([rng.integers(NUM_SPECIAL, VOCAB, length) for length in lengths], small_tokenizer())


def real_data(*parts: str) -> Path:
    """A path in the folder with real data; skips the test if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(os.environ.get("LTG_MDLM_DATA") or cache / "ltg_mdlm_data").joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no real data at {path} (set LTG_MDLM_DATA)")
    return path
