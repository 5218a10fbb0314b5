"""The built-in corpus: generated on first use and kept in the user's cache, so that training needs no download."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_errors, written_folder
from ltg_mdlm.data.corpus import FORMAT, Corpus
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.records import write_minimal_pairs
from ltg_mdlm.data.synthetic.grammar import documents
from ltg_mdlm.data.synthetic.grammar_lexicon import Lexicon
from ltg_mdlm.data.synthetic.grammar_pairs import Attested, minimal_pairs

GENERATOR_VERSION = 1
"""Rises whenever the same parameters give another text, so that nobody trains on a stale cache."""


MINIMAL_PAIRS = "minimal_pairs.jsonl"


_VALID_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class BuiltinText:
    """Files that `write_builtin_text` made."""

    train: Path
    valid: Path
    minimal_pairs: Path


def builtin_corpus(
    cache_dir: Path | str | None = None,
    *,
    words: int = 300_000,
    zipf_exponent: float = 1.0,
    vocab_size: int = 2048,
    seed: int = 0,
) -> Corpus:
    """The built-in corpus with these parameters, made now unless the cache has it.

    Any number of processes may call this at once: the folder is complete or absent, and the first to finish gives it
    its name. It holds the text under `text/` and the minimal pairs (`MINIMAL_PAIRS`) beside the prepared corpus.

    Args:
        cache_dir: default `${XDG_CACHE_HOME:-$HOME/.cache}/ltg_mdlm`.
        words: of the training text; the validation text has a twentieth of them.
        zipf_exponent: of the lexicon, see `Lexicon`.
        vocab_size: of the tokenizer.

    Raises:
        UserError: parameters that make no corpus, or a cache that cannot be written.
    """
    parameters = (GENERATOR_VERSION, FORMAT, words, float(zipf_exponent), vocab_size, seed)
    key = hashlib.sha256(repr(parameters).encode()).hexdigest()[:12]
    folder = (Path(cache_dir) if cache_dir is not None else default_cache_dir()) / f"builtin-{key}"
    if not folder.exists():
        try:
            _make(folder, words=words, zipf_exponent=zipf_exponent, vocab_size=vocab_size, seed=seed)
        except UserError:
            if not folder.exists():  # otherwise another process was faster, with the same result
                raise
    return Corpus.open(folder)


def default_cache_dir() -> Path:
    """Where generated corpora are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ltg_mdlm"


def write_builtin_text(out: Path | str, words: int = 300_000, seed: int = 0, zipf_exponent: float = 1.0) -> BuiltinText:
    """Write `train.txt`, `valid.txt` and the minimal pairs into a folder; the same bytes for the same arguments.

    Documents are separated by blank lines. No validation document occurs in the training text, and no sentence of a
    minimal pair does, while all words of the pairs do.

    Raises:
        UserError: fewer than 1000 words, or an exponent that is negative or not finite.
    """
    if words < 1000:
        raise UserError(f"built-in corpus: {words} words are too few; ask for at least 1000")
    if not (math.isfinite(zipf_exponent) and zipf_exponent >= 0):
        raise UserError(f"built-in corpus: Zipf exponent {zipf_exponent}; it must be 0 (all words alike) or larger")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = BuiltinText(out / "train.txt", out / "valid.txt", out / MINIMAL_PAIRS)
    lexicon = Lexicon(zipf_exponent)
    train = list(_until(words, documents(lexicon, seed, "train")))
    known = frozenset(train)
    unseen = (document for document in documents(lexicon, seed, "valid") if document not in known)
    _write(files.train, train)
    _write(files.valid, _until(math.ceil(words * _VALID_SHARE), unseen))
    write_minimal_pairs(files.minimal_pairs, minimal_pairs(lexicon, seed, Attested.in_text(train)))
    return files


def _make(folder: Path, *, words: int, zipf_exponent: float, vocab_size: int, seed: int) -> None:
    with write_errors(folder), written_folder(folder) as aside:
        files = write_builtin_text(aside / "text", words, seed, zipf_exponent)
        made = aside / "prepared"
        prepare_corpus([files.train], made, valid=[files.valid], vocab_size=vocab_size, progress=False)
        for part in (*made.iterdir(), files.minimal_pairs):
            part.rename(aside / part.name)
        made.rmdir()


def _until(words: int, texts: Iterator[str]) -> Iterator[str]:
    """The first texts, until they have this many words."""
    for text in texts:
        yield text
        words -= len(text.split())
        if words <= 0:
            return


def _write(path: Path, texts: Iterator[str] | list[str]) -> None:
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8", newline="\n")
