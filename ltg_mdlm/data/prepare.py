"""From text files to a corpus folder: `prepare_corpus`.

The text is read up to three times: to check and measure it, to train a tokenizer, and to encode it. Memory does not
grow with the text.

Suffixes: N tokens, P pieces, D documents of one batch, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ltg_mdlm
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import require_free_space, write_errors, written_folder
from ltg_mdlm.core.terminal import byte_progress
from ltg_mdlm.data.boundaries import cut
from ltg_mdlm.data.corpus import FORMAT, MOST_SOURCES, Corpus, digest_of, read_description, split_files
from ltg_mdlm.data.encode import Encoded, EncoderPool, id_type
from ltg_mdlm.data.sources import (
    COMPRESSED_SUFFIXES,
    PIECE_CHARACTERS,
    Piece,
    find_sources,
    read_pieces,
    sha256_of,
    source_names,
)
from ltg_mdlm.data.tokenizer import UNK, Tokenizer

SAMPLE_BYTES = 256 << 20
"""A new tokenizer is trained on at most about this much text, sampled from a larger corpus."""

_BATCH_CHARACTERS = 1 << 20

_BYTES_PER_WORKER = 8 << 20
"""For less text another process is not worth its start."""

_SAMPLE_CHARACTERS = 1 << 14
"""Documents are sampled in parts of this size."""

_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio; its multiples modulo 2^64 are evenly spread (Knuth, TAOCP vol. 3, section 6.4)."""

Files = Sequence[str | Path]


def prepare_corpus(
    files: Files,
    out: str | Path,
    *,
    valid: Files = (),
    tokenizer: str | Path | None = None,
    vocab_size: int = 16384,
    drop_headings: bool = False,
    source_field: str | None = None,
    sample_bytes: int = SAMPLE_BYTES,
    workers: int | None = None,
    progress: bool = True,
) -> Corpus:
    """Tokenise text files and folders into a corpus folder, which is complete or absent at any time.

    Args:
        files: text of the training split; `sources.read_pieces` describes the formats
        out: the corpus folder; if it already contains this corpus, it is opened and nothing is written
        valid: text of the validation split
        tokenizer: tokenizer file to use; by default a tokenizer is trained on the training split
        vocab_size: vocabulary size of a tokenizer trained here
        drop_headings: delete lines like `= = = Title = = =`
        source_field: field of JSON lines with the name of each document's source; elsewhere a file is a source
        sample_bytes: if there is more text, train the tokenizer on an evenly spread sample of about this size
        workers: number of processes that encode, by default one per core; does not change the result
        progress: show progress bars on standard error

    Raises:
        UserError: input that cannot be read, a split without text, a file in both splits, an `out` that contains
            something else, or not enough disk space.
    """
    out = Path(out)
    given = Tokenizer.read(tokenizer) if tokenizer else None
    if given and given.dropout:
        raise UserError(
            f"{tokenizer}: has BPE dropout {given.dropout}, which makes every corpus different; set dropout to null"
        )
    request = {
        "tokenizer": given.fingerprint if given else None,
        "vocab_size": None if given else vocab_size,
        "sample_bytes": None if given else sample_bytes,
        "drop_headings": drop_headings,
        "source_field": source_field,
    }
    splits = [SplitText("train", files, drop_headings, source_field)]
    if valid:
        splits.append(SplitText("valid", valid, drop_headings, source_field))
        train_file = {source.sha256: source.path for source in splits[0].sources}
        for source in splits[1].sources:
            if same := train_file.get(source.sha256):
                raise UserError(f"{source.path}: the validation file is also a training file ({same})")
    if _is_prepared(out, request, splits):
        return Corpus.open(out)

    for split in splits:  # unreadable text is reported before anything is trained or written
        split.measure(progress)
    with write_errors(out), written_folder(out) as folder:
        # Tokens have at least two bytes of text on average; each has one bit that marks the beginning of a word.
        per_byte = id_type(given.vocab_size if given else vocab_size).itemsize / 2 + 1 / 16
        per_document = 14
        require_free_space(
            folder, sum(int(split.text_bytes * per_byte) + per_document * split.documents for split in splits)
        )
        trained_on = None
        if given is None:
            given, trained_on = _train_tokenizer(splits[0], vocab_size, sample_bytes, progress)
        given.save(folder / "tokenizer.json")
        description: dict[str, Any] = {
            "format": FORMAT,
            "made_by": f"ltg_mdlm {ltg_mdlm.__version__}",
            "request": request,
            "tokenizer": {"fingerprint": given.fingerprint, "vocab_size": given.vocab_size, "trained_on": trained_on},
            "splits": _encode_splits(splits, given, folder, workers or _logical_cores(), progress),
        }
        if names := _names_of_sources(splits):
            description["source_names"] = names
        written = sorted(path for path in folder.rglob("*") if path.is_file())
        description["files"] = {path.relative_to(folder).as_posix(): sha256_of(path) for path in written}
        description["digest"] = digest_of(description)
        (folder / "corpus.json").write_text(json.dumps(description, indent=1), "utf-8")
    return Corpus.open(out)


@dataclass(frozen=True, slots=True)
class Source:
    """A text file and what identifies its content."""

    path: Path
    bytes: int
    sha256: str

    def describe(self) -> dict[str, Any]:
        """The entry in corpus.json."""
        return {"file": self.path.name, "bytes": self.bytes, "sha256": self.sha256}


class SplitText:
    """The text of one split.

    Attributes:
        name: "train" or "valid"
        sources: its files
        text_bytes: size of the text in UTF-8, once it is measured
        documents: number of documents, once it is measured
        source_names: names of the sources of its documents, once it is measured
    """

    def __init__(self, name: str, files: Files, drop_headings: bool, source_field: str | None = None) -> None:
        self.name = name
        self.sources = [Source(path, path.stat().st_size, sha256_of(path)) for path in find_sources(files)]
        self.text_bytes = self.documents = 0
        self.source_names: set[str] = set()
        self._drop_headings, self._source_field = drop_headings, source_field

    def pieces(self, limit: int | None) -> Iterator[Piece]:
        """The documents of all files, long ones in pieces of at most `limit` characters."""
        paths = [source.path for source in self.sources]
        for path, name in zip(paths, source_names(paths), strict=True):
            pieces = read_pieces(path, drop_headings=self._drop_headings, limit=limit, source_field=self._source_field)
            yield from (piece if piece.source else piece._replace(source=name) for piece in pieces)

    def measure(self, progress: bool) -> None:
        """Read all text once. Raises UserError if it cannot be read, or if there is none."""
        is_compressed = any(source.path.suffix in COMPRESSED_SUFFIXES for source in self.sources)
        total = None if is_compressed else sum(source.bytes for source in self.sources)
        with byte_progress(f"reading {self.name}", total, show=progress) as advance:
            for piece in self.pieces(PIECE_CHARACTERS):
                length = len(piece.text.encode())
                self.documents += piece.opens_document
                self.source_names.add(piece.source)
                self.text_bytes += length
                advance(length)
        if not self.text_bytes:
            paths = ", ".join(str(source.path) for source in self.sources)
            raise UserError(f"{paths}: no text for the {self.name} split")


def _is_prepared(out: Path, request: dict[str, Any], splits: Sequence[SplitText]) -> bool:
    """Whether `out` contains the corpus of this request. Raises UserError if it contains anything else."""
    description = read_description(out)
    if description is None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists and is not a corpus folder; choose another place")
        return False
    asked = request | {f"{split.name} files": [source.describe() for source in split.sources] for split in splits}
    found = description["request"] | {
        f"{name} files": entry["sources"] for name, entry in description["splits"].items()
    }
    differing = sorted(key for key in asked.keys() | found.keys() if asked.get(key) != found.get(key))
    if differing:
        raise UserError(
            f"{out}: contains another corpus (different {', '.join(differing)}); choose another folder or delete it"
        )
    return True


def _names_of_sources(splits: Sequence[SplitText]) -> list[str]:
    """The names of all sources in alphabetical order; none if there are more than `MOST_SOURCES`."""
    names = sorted(set().union(*(split.source_names for split in splits)))
    return names if len(names) <= MOST_SOURCES else []


def _train_tokenizer(
    train: SplitText, vocab_size: int, sample_bytes: int, progress: bool
) -> tuple[Tokenizer, dict[str, int]]:
    """A tokenizer, and the bytes of text that it was trained on, of how many."""
    used = 0
    with byte_progress("training the tokenizer", min(train.text_bytes, sample_bytes), show=progress) as advance:

        def texts() -> Iterator[str]:
            nonlocal used
            parts = (part for piece in train.pieces(PIECE_CHARACTERS) for part in cut(piece.text, _SAMPLE_CHARACTERS))
            for text in sample(parts, sample_bytes / train.text_bytes):
                length = len(text.encode())
                used += length
                advance(length)
                yield text

        tokenizer = Tokenizer.train(texts(), vocab_size)
    return tokenizer, {"bytes": used, "of_bytes": train.text_bytes}


def _encode_splits(
    splits: Sequence[SplitText], tokenizer: Tokenizer, folder: Path, workers: int, progress: bool
) -> dict[str, dict[str, Any]]:
    """Write the splits into `folder`; returns their entries in corpus.json."""
    limit = PIECE_CHARACTERS if tokenizer.cuts_at_spaces else None
    total = sum(split.text_bytes for split in splits)
    workers = max(1, min(workers, total // _BYTES_PER_WORKER))
    names = _names_of_sources(splits)
    entries = {}
    with (
        byte_progress("encoding", total, show=progress) as advance,
        EncoderPool(tokenizer, folder / "tokenizer.json", workers) as pool,
    ):
        for split in splits:
            with SplitWriter(folder / split.name, tokenizer.vocab_size, names) as writer:
                for encoded in pool.encode(batches(split.pieces(limit))):
                    if unknown := np.count_nonzero(encoded.ids_N == UNK):
                        missing = " ".join(f"{byte:02x}" for byte in tokenizer.missing_bytes)
                        raise UserError(
                            f"the {split.name} files contain text that the tokenizer cannot encode ({unknown} tokens"
                            f" <unk>); its vocabulary lacks {missing or 'characters'}; use one with all 256 bytes"
                        )
                    writer.add(encoded)
                    advance(encoded.text_bytes)
                counts = writer.finish()
            if counts["text_bytes"] != split.text_bytes:
                raise UserError(f"the {split.name} files changed while they were read; prepare them again")
            entries[split.name] = {**counts, "sources": [source.describe() for source in split.sources]}
    return entries


def _logical_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sample(texts: Iterable[str], share: float) -> Iterator[str]:
    """About `share` of the texts, evenly spread; always the same ones."""
    threshold = share * 2**64
    return (text for i, text in enumerate(texts) if (i * _GOLDEN) % 2**64 < threshold)


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Consecutive pieces, together about as long as one long piece."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class SplitWriter:
    """A context that appends encoded text to the files of one split."""

    def __init__(self, folder: Path, vocab_size: int, source_names: Sequence[str] = ()) -> None:
        folder.mkdir()
        self._open = ExitStack()
        files = split_files(0, 0, vocab_size, has_sources=bool(source_names))
        self._types = {name: dtype for name, (dtype, _) in files.items()}
        self._source_index = {name: index for index, name in enumerate(source_names)}
        self._files = {name: self._open.enter_context((folder / f"{name}.bin").open("wb")) for name in self._types}
        self._token_count_V = np.zeros(vocab_size, np.int64)
        self._last_bits = np.zeros(0, bool)  # fewer than eight, of a byte that is not complete
        self._last_tokens = self._last_words = self._last_source = 0  # of the document that is not complete
        self._counts = {"documents": 0, "tokens": 0, "words": 0, "text_bytes": 0}
        self._append("offsets", np.zeros(1))

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, encoded: Encoded) -> None:
        """Append a batch; its first piece may continue the last document."""
        self._append("tokens", encoded.ids_N)
        self._token_count_V += np.bincount(encoded.ids_N, minlength=len(self._token_count_V))
        self._counts["text_bytes"] += encoded.text_bytes

        bit_N = np.concatenate([self._last_bits, encoded.word_start_N])
        whole = len(bit_N) // 8 * 8
        self._append("word_bits", np.packbits(bit_N[:whole], bitorder="little"))
        self._last_bits = bit_N[whole:]

        # The pieces before the first opening continue the last document; a document is complete when the next opens.
        bound_D = np.concatenate([[0], np.flatnonzero(encoded.opens_P), [len(encoded.opens_P)]])
        tokens_D, words_D = (
            np.diff(np.concatenate([[0], np.cumsum(count_P)])[bound_D])
            for count_P in (encoded.tokens_P, encoded.words_P)
        )
        tokens_D[0] += self._last_tokens
        words_D[0] += self._last_words
        opening = itertools.compress(encoded.source_P, encoded.opens_P)
        source_D = np.array([self._last_source, *(self._source_index.get(name, 0) for name in opening)])
        self._last_tokens, self._last_words, self._last_source = int(tokens_D[-1]), int(words_D[-1]), int(source_D[-1])
        self._close_documents(tokens_D[:-1], words_D[:-1], source_D[:-1])

    def finish(self) -> dict[str, int]:
        """Write what is left; returns the counts of the split."""
        last = (np.array([value]) for value in (self._last_tokens, self._last_words, self._last_source))
        self._close_documents(*last)
        self._append("word_bits", np.packbits(self._last_bits, bitorder="little"))
        self._append("token_count_V", self._token_count_V)
        return self._counts

    def _close_documents(
        self, tokens_D: NDArray[np.int64], words_D: NDArray[np.int64], source_D: NDArray[np.int64]
    ) -> None:
        """Append complete documents, those without tokens left out."""
        tokens_D, words_D, source_D = (column[tokens_D > 0] for column in (tokens_D, words_D, source_D))
        self._append("offsets", self._counts["tokens"] + np.cumsum(tokens_D))
        self._append("words", words_D)
        if self._source_index:
            self._append("source_D", source_D)
        self._counts["documents"] += len(tokens_D)
        self._counts["tokens"] += int(tokens_D.sum())
        self._counts["words"] += int(words_D.sum())

    def _append(self, name: str, array: NDArray[Any]) -> None:
        self._files[name].write(array.astype(self._types[name], copy=False).tobytes())
