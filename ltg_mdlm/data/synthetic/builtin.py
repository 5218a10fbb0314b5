"""The built-in corpus: generated on first use and kept in the user's cache, so that training needs no download."""

from __future__ import annotations

import hashlib
import json
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
from ltg_mdlm.data.synthetic.document_generator import DocumentGenerator
from ltg_mdlm.data.synthetic.document_likelihood import DocumentLikelihood
from ltg_mdlm.data.synthetic.feature_grammar import english
from ltg_mdlm.data.synthetic.pair_generator import minimal_pairs, new_with_known_words

GENERATOR_VERSION = 4
"""Increases whenever the same parameters give a different corpus, so that an old cache is not used."""

MINIMAL_PAIRS = "minimal_pairs.jsonl"
"""File of the minimal pairs in the corpus folder."""

FLOOR = "floor.json"
"""File of the corpus folder with -log p of the held-out text under the generator: no model is below it on average."""

STYLE_FIELD = "style"
"""Field of the JSON lines with the style of a document, which is its source in the corpus."""

_VALID_SHARE = 0.05


def builtin_corpus(
    cache_dir: Path | str | None = None,
    *,
    words: int = 300_000,
    zipf_exponent: float = 1.0,
    vocab_size: int = 2048,
    seed: int = 0,
) -> Corpus:
    """The built-in corpus with these parameters, generated if it is not in the cache.

    Several processes may call this at once: the folder is complete or absent, and the first process that finishes
    publishes it. Besides the prepared corpus it contains the text (`text/`), the minimal pairs (`MINIMAL_PAIRS`) and
    the floor (`FLOOR`).

    Args:
        cache_dir: parent of the corpus folder, by default `${XDG_CACHE_HOME:-$HOME/.cache}/ltg_mdlm`
        words: words of the training text; the validation text has a twentieth of them
        zipf_exponent: exponent of the word frequencies in each category; 0 makes its words equally frequent
        vocab_size: vocabulary size of the tokenizer
        seed: seed of the text

    Raises:
        UserError: parameters out of range, or a cache that cannot be written.
    """
    parameters = (GENERATOR_VERSION, FORMAT, words, float(zipf_exponent), vocab_size, seed)
    key = hashlib.sha256(repr(parameters).encode()).hexdigest()[:12]
    folder = (Path(cache_dir) if cache_dir is not None else default_cache_dir()) / f"builtin-{key}"
    if not folder.exists():
        try:
            _make(folder, words=words, zipf_exponent=zipf_exponent, vocab_size=vocab_size, seed=seed)
        except UserError:
            if not folder.exists():  # otherwise another process published the same corpus first
                raise
    try:
        return Corpus.open(folder)
    except UserError as error:
        raise UserError(f"{error}{_again(folder)}") from error


def _again(folder: Path) -> str:
    return f"\n  delete {folder}; the next start generates this built-in corpus again"


def default_cache_dir() -> Path:
    """The folder of generated corpora.  Raises UserError if the user has no home folder."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "ltg_mdlm"
    try:
        return Path.home() / ".cache" / "ltg_mdlm"
    except RuntimeError:
        raise UserError(
            "there is no home folder in which to keep the built-in corpus"
            "\n  set the environment variable XDG_CACHE_HOME to a folder for it, or use your own text with data.corpus"
        ) from None


def _make(folder: Path, *, words: int, zipf_exponent: float, vocab_size: int, seed: int) -> None:
    advice = "; set the environment variable XDG_CACHE_HOME to a folder that can be written"
    with write_errors(folder, advice), written_folder(folder) as aside:
        files = write_builtin_text(aside / "text", words, seed, zipf_exponent)
        made = aside / "prepared"
        train, valid = (path.with_suffix(".jsonl") for path in (files.train, files.valid))
        prepare_corpus([train], made, valid=[valid], vocab_size=vocab_size, source_field=STYLE_FIELD, progress=False)
        for part in (*made.iterdir(), files.minimal_pairs):
            part.rename(aside / part.name)
        made.rmdir()
        likelihood = DocumentLikelihood(english(zipf_exponent))
        texts = [json.loads(line)["text"] for line in valid.read_text("utf-8").splitlines()]
        nats = -math.fsum(map(likelihood.log_probability, texts))
        held_out = Corpus.open(aside).valid
        assert held_out is not None
        per_token = nats / held_out.num_tokens
        (aside / FLOOR).write_text(json.dumps({"nats": nats, "nats_per_token": per_token}) + "\n", encoding="utf-8")


def is_builtin(corpus: Corpus) -> bool:
    """Whether a corpus was made by `builtin_corpus`."""
    return (corpus.path / FLOOR).is_file()


def floor_nats(corpus: Corpus) -> float | None:
    """-log p of the held-out text under the generator, in nats; None unless the corpus is a built-in one.

    Raises UserError if its file is damaged.
    """
    if not is_builtin(corpus):
        return None
    try:
        return float(json.loads((corpus.path / FLOOR).read_bytes())["nats"])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"{corpus.path / FLOOR}: damaged{_again(corpus.path)}") from error


@dataclass(frozen=True, slots=True)
class BuiltinText:
    """The files that `write_builtin_text` wrote."""

    train: Path
    valid: Path
    minimal_pairs: Path


def write_builtin_text(out: Path | str, words: int = 300_000, seed: int = 0, zipf_exponent: float = 1.0) -> BuiltinText:
    """Write `train.txt`, `valid.txt` and the minimal pairs to a folder; the same bytes for the same arguments.

    Blank lines separate documents. `train.jsonl` and `valid.jsonl` are the same documents with their styles. The
    training text contains no validation document and no sentence of a minimal pair, but all words of the pairs.

    Raises:
        UserError: fewer than 1000 words, or an exponent that is negative or not finite.
    """
    if words < 1000:
        raise UserError(f"built-in corpus: {words} words are too few; must be at least 1000")
    if not (math.isfinite(zipf_exponent) and zipf_exponent >= 0):
        raise UserError(f"built-in corpus: Zipf exponent {zipf_exponent}; must be 0 (equal frequencies) or positive")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = BuiltinText(out / "train.txt", out / "valid.txt", out / MINIMAL_PAIRS)
    for_train, for_valid, for_pairs = (
        DocumentGenerator(english(zipf_exponent), f"{seed}/{part}") for part in ("train", "valid", "pairs")
    )
    train = _until(words, for_train.documents())
    known = frozenset(text for _, text in train)
    unseen = (document for document in for_valid.documents() if document[1] not in known)
    valid = _until(math.ceil(words * _VALID_SHARE), unseen)
    for path, documents in ((files.train, train), (files.valid, valid)):
        path.write_text("\n\n".join(text for _, text in documents) + "\n", encoding="utf-8", newline="\n")
        lines = [json.dumps({STYLE_FIELD: style, "text": text}, ensure_ascii=False) for style, text in documents]
        path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    write_minimal_pairs(files.minimal_pairs, minimal_pairs(for_pairs, new_with_known_words(known)))
    return files


def _until(words: int, documents: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first (style, text) whose texts have this many words together."""
    taken = []
    while words > 0:
        taken.append(next(documents))
        words -= len(taken[-1][1].split())
    return taken
