"""From files with text to a corpus folder: `prepare_corpus`.

The text is read up to four times: to decide which documents are kept, to check and measure it, to train a tokenizer,
and to encode it. Memory does not grow with the text, but with the number of documents if some are left out.

Suffixes: N tokens, P pieces, D documents of one batch, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
import math
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
from ltg_mdlm.core.terminal import busy, byte_progress
from ltg_mdlm.data.boundaries import cut
from ltg_mdlm.data.corpus import (
    FORMAT,
    MAX_SOURCES,
    Corpus,
    digest_of,
    fingerprint_of,
    read_description,
    split_files,
)
from ltg_mdlm.data.encode import Encoded, EncoderPool, id_type
from ltg_mdlm.data.readers import PIECE_CHARACTERS, Advance, Piece, Reading, read_pieces
from ltg_mdlm.data.selection import Budget, Choice, Selection
from ltg_mdlm.data.sources import find_sources, sha256_of
from ltg_mdlm.data.text_files import TextFile, source_names
from ltg_mdlm.data.tokenizer import UNK, Tokenizer
from ltg_mdlm.data.word_sequences import SharedNgrams
from ltg_mdlm.data.words import WHITESPACE, WordUnit

SAMPLE_BYTES = 256 << 20
"""A new tokenizer is trained on at most about this much text, sampled from a larger corpus."""

_BATCH_CHARACTERS = 1 << 20

_BYTES_PER_WORKER = 8 << 20
"""With less text, starting another process takes more time than it saves."""

_SAMPLE_CHARACTERS = 1 << 14
"""Documents are sampled in parts of this size."""

_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio; its multiples modulo 2^64 are evenly spread (Knuth, TAOCP vol. 3, section 6.4)."""

MAX_REPEATS = 20
"""How often a balanced sample for the tokenizer repeats the text of a small source at most."""

Files = Sequence[str | Path]


def prepare_corpus(
    files: Files,
    out: str | Path,
    *,
    valid: Files = (),
    tokenizer: str | Path | None = None,
    vocab_size: int = 16384,
    text_field: str = "text",
    source_field: str | None = None,
    skip_nulls: bool = False,
    words: str = WHITESPACE,
    drop_headings: bool = False,
    nfkc: bool = False,
    drop_controls: bool = False,
    drop_duplicates: bool = False,
    near_duplicates: float | None = None,
    evaluation: SharedNgrams | None = None,
    budget: Budget | None = None,
    balance: bool = False,
    sample_bytes: int = SAMPLE_BYTES,
    workers: int | None = None,
    progress: bool = True,
) -> Corpus:
    """Tokenise text into a corpus folder, which is complete or absent at any time.

    Args:
        files: text of the training split; `sources.find_sources` has the places, `readers.read_pieces` the formats
        out: the corpus folder; if it already contains this corpus, it is opened and nothing is written
        valid: text of the validation split
        tokenizer: tokenizer file to use; by default a tokenizer is trained on the training split
        vocab_size: vocabulary size of a tokenizer trained here
        text_field: column, or field of JSON objects, with the text
        source_field: column or field with the name of each document's source; elsewhere a file is a source
        skip_nulls: leave out rows whose text is null, instead of refusing them
        words: unit in which words are counted (`words`)
        drop_headings: delete lines like `= = = Title = = =` of text files
        nfkc: normalise the text by NFKC
        drop_controls: delete control characters, soft hyphens and spaces of no width
        drop_duplicates: leave out documents that are equal to an earlier one of their split
        near_duplicates: leave out documents with at least this Jaccard similarity to an earlier one of their split
        evaluation: leave out training documents that share an n-gram with evaluation data
        budget: leave out training documents of all sources in proportion, until the rest is within the budget
        balance: train the tokenizer on equally much text of every source, of small sources repeatedly
        sample_bytes: if there is more text, train the tokenizer on an evenly spread sample of about this size
        workers: number of processes that encode, by default one per core; does not change the result
        progress: show progress on standard error

    Raises:
        UserError: input that cannot be read, a split without text, a file in both splits, an `out` that contains
            something else, or not enough disk space.
    """
    out, unit = Path(out), WordUnit.named(words)
    if out.is_symlink():  # a folder cannot be renamed to a link
        out = out.resolve()
    given = Tokenizer.read(tokenizer) if tokenizer else None
    if given and given.dropout:
        raise UserError(
            f"{tokenizer}: has BPE dropout {given.dropout}, which makes every corpus different; set dropout to null"
        )
    request: dict[str, Any] = {
        "tokenizer": given.fingerprint if given else None,
        "vocab_size": None if given else vocab_size,
        "sample_bytes": None if given else sample_bytes,
        "drop_headings": drop_headings,
        "source_field": source_field,
    }
    # Settings of newer versions are recorded only where they differ from their defaults, so that older corpora compare.
    changed = {
        "text_field": text_field if text_field != "text" else None,
        "words": None if unit.is_whitespace else unit.name,
        "skip_nulls": skip_nulls,
        "nfkc": nfkc,
        "drop_controls": drop_controls,
        "drop_duplicates": drop_duplicates,
        "near_duplicates": near_duplicates,
        "evaluation": evaluation.describe() if evaluation else None,
        "budget": {"words": budget.words, "byte_premiums": dict(budget.premiums)} if budget else None,
        "balance": balance if given is None else None,
    }
    request |= {key: value for key, value in changed.items() if value}
    reading = Reading(
        text_field=text_field,
        source_field=source_field,
        drop_headings=drop_headings,
        skip_nulls=skip_nulls,
        nfkc=nfkc,
        drop_controls=drop_controls,
    )
    choice = Choice(drop_duplicates, near_duplicates, evaluation, budget)
    splits = [SplitText("train", find_sources(files), reading, choice, unit)]
    if valid:
        choice = Choice(drop_duplicates, near_duplicates)
        splits.append(SplitText("valid", find_sources(valid, "validation"), reading, choice, unit))
        train_file = {source.sha256: source.file.name for source in splits[0].sources}
        for source in splits[1].sources:
            if same := train_file.get(source.sha256):
                raise UserError(f"{source.file.name}: the validation file is also a training file ({same})")
    if _is_prepared(out, request, splits):
        return Corpus.open(out)

    for split in splits:  # unreadable text is reported before anything is trained or written
        split.measure(progress)
    with write_errors(out), written_folder(out) as folder:
        # Tokens have at least two bytes of text on average; each has one bit that marks the beginning of a word.
        per_byte = id_type(given.vocab_size if given else vocab_size).itemsize / 2 + (
            1 / 16 if unit.is_whitespace else 1 / 2
        )
        per_document = 14
        require_free_space(
            folder, sum(int(split.text_bytes * per_byte) + per_document * split.documents for split in splits)
        )
        trained_on = None
        if given is None:
            given, trained_on = _train_tokenizer(splits[0], vocab_size, sample_bytes, balance, progress)
        given.save(folder / "tokenizer.json")
        description: dict[str, Any] = {
            "format": FORMAT,
            "made_by": f"ltg_mdlm {ltg_mdlm.__version__}",
            "request": request,
            "tokenizer": {"fingerprint": given.fingerprint, "vocab_size": given.vocab_size, "trained_on": trained_on},
            "words": unit.name,
            "splits": _encode_splits(splits, given, folder, unit, workers or _logical_cores(), progress),
        }
        if evaluation is not None:
            _write_shared(folder / "evaluation_data.tsv", evaluation)
        if names := _names_of_sources(splits):
            description["source_names"] = names
        written = sorted(path for path in folder.rglob("*") if path.is_file())
        with busy("hashing the corpus", show=progress):
            description["files"] = {path.relative_to(folder).as_posix(): sha256_of(path) for path in written}
        description["fingerprint"] = fingerprint_of(description)
        description["digest"] = digest_of(description)
        (folder / "corpus.json").write_text(json.dumps(description, indent=1), "utf-8")
    return Corpus.open(out)


@dataclass(frozen=True, slots=True)
class Source:
    """A file with text and what identifies its content."""

    file: TextFile
    bytes: int
    sha256: str

    def describe(self) -> dict[str, Any]:
        """The entry in corpus.json."""
        hub = {"dataset": self.file.origin} if self.file.origin else {}
        return {"file": self.file.path.name, "bytes": self.bytes, "sha256": self.sha256, **hub}


class SplitText:
    """The text of one split.

    Attributes:
        name: "train" or "valid"
        sources: its files
        text_bytes: size of the text in UTF-8, once it is measured
        documents: number of documents, once it is measured
        bytes_of_source: size of the text of each source, once it is measured
        selection: what was left out, once it is measured
    """

    def __init__(self, name: str, files: Sequence[TextFile], reading: Reading, choice: Choice, unit: WordUnit) -> None:
        self.name = name
        self.sources = [Source(file, file.path.stat().st_size, sha256_of(file.path)) for file in files]
        self.documents = 0
        self.bytes_of_source: dict[str, int] = {}
        self.selection: Selection | None = None
        self._reading, self._choice, self._unit = reading, choice, unit
        self._kept_D: NDArray[np.bool_] | None = None

    @property
    def text_bytes(self) -> int:
        return sum(self.bytes_of_source.values())

    def pieces(self, limit: int | None, advance: Advance | None = None) -> Iterator[Piece]:
        """The documents of all files that are kept, long ones in pieces of at most `limit` characters."""
        number, room = -1, math.inf
        files = [source.file for source in self.sources]
        for file, name in zip(files, source_names(files), strict=True):
            for piece in read_pieces(file, self._reading, limit=limit, advance=advance):
                number += piece.opens_document
                piece = piece if piece.source else piece._replace(source=name)
                if self.selection is None or self._kept_D is None:
                    yield piece
                elif number < len(self._kept_D) and self._kept_D[number]:
                    room = self.selection.room.get(number, math.inf) if piece.opens_document else room
                    if room < math.inf:
                        piece, room = self.selection.shorten(piece, room)
                    if piece.text:
                        yield piece

    def measure(self, progress: bool) -> None:
        """Read all text, and decide which documents are kept.

        Raises UserError if it cannot be read, or if there is none.
        """
        if not self._choice.is_everything:
            self.selection = Selection(self._choice, self._unit)
            total = sum(source.bytes for source in self.sources)
            with byte_progress(f"selecting {self.name}", total, show=progress) as advance:
                for piece in self.pieces(PIECE_CHARACTERS, advance):
                    self.selection.add(piece)
            with busy(f"comparing documents of {self.name}", show=progress):
                self._kept_D = self.selection.decide()
        with byte_progress(
            f"reading {self.name}", sum(source.bytes for source in self.sources), show=progress
        ) as advance:
            for piece in self.pieces(PIECE_CHARACTERS, advance):
                self.documents += piece.opens_document
                length = len(piece.text.encode())
                self.bytes_of_source[piece.source] = self.bytes_of_source.get(piece.source, 0) + length
        if not self.documents:
            paths = ", ".join(source.file.name for source in self.sources)
            why = "" if self.selection is None else f"; left out: {json.dumps(self.selection.left_out)}"
            raise UserError(f"{paths}: no text for the {self.name} split{why}")


def _is_prepared(out: Path, request: dict[str, Any], splits: Sequence[SplitText]) -> bool:
    """Whether `out` contains the corpus of this request. Raises UserError if it contains anything else."""
    description = read_description(out)
    if description is None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists and is not a corpus folder; choose another place")
        # The finished folder is renamed to `out`.
        if os.path.ismount(out) or out.resolve() == Path.cwd():
            raise UserError(f"{out}: choose a new folder inside of this one, such as {out / 'corpus'}")
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
    """The names of all sources in alphabetical order; none if there are more than `MAX_SOURCES`."""
    names = sorted(set().union(*(split.bytes_of_source for split in splits)))
    return names if len(names) <= MAX_SOURCES else []


def _train_tokenizer(
    train: SplitText, vocab_size: int, sample_bytes: int, balance: bool, progress: bool
) -> tuple[Tokenizer, dict[str, int]]:
    """A tokenizer, the number of bytes it was trained on, and the number of bytes available."""
    used, target = 0, min(train.text_bytes, sample_bytes)
    share = dict.fromkeys(train.bytes_of_source, target / train.text_bytes)
    if balance:
        per_source = target / len(share)
        share = {name: min(per_source / size, MAX_REPEATS) for name, size in train.bytes_of_source.items()}
    with ExitStack() as stack:
        advance = stack.enter_context(byte_progress("counting words for the tokenizer", target, show=progress))

        def texts() -> Iterator[str]:
            nonlocal used
            parts_of: dict[str, int] = dict.fromkeys(share, 0)
            for piece in train.pieces(PIECE_CHARACTERS):
                for part in cut(piece.text, _SAMPLE_CHARACTERS):
                    for _ in range(copies(parts_of[piece.source], share[piece.source])):
                        length = len(part.encode())
                        used += length
                        advance(length)
                        yield part
                    parts_of[piece.source] += 1
            stack.close()
            stack.enter_context(busy("merging tokens for the tokenizer", show=progress))

        tokenizer = Tokenizer.train(texts(), vocab_size)
    return tokenizer, {"bytes": used, "of_bytes": train.text_bytes}


def _encode_splits(
    splits: Sequence[SplitText], tokenizer: Tokenizer, folder: Path, unit: WordUnit, workers: int, progress: bool
) -> dict[str, dict[str, Any]]:
    """Write the splits into `folder`; returns their entries in corpus.json."""
    limit = PIECE_CHARACTERS if tokenizer.cuts_at_spaces else None
    total = sum(split.text_bytes for split in splits)
    workers = max(1, min(workers, total // _BYTES_PER_WORKER))
    names = _names_of_sources(splits)
    entries = {}
    with (
        byte_progress("encoding", total, show=progress) as advance,
        EncoderPool(tokenizer, folder / "tokenizer.json", workers, unit) as pool,
    ):
        for split in splits:
            with SplitWriter(folder / split.name, tokenizer.vocab_size, names, unit) as writer:
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
            if split.selection is not None:
                entries[split.name] |= split.selection.describe()
    return entries


def _write_shared(path: Path, evaluation: SharedNgrams) -> None:
    """Write the report on documents that share text with evaluation data: number and n-gram of each."""
    with path.open("w", encoding="utf-8") as file:
        file.write("document\tshared\n")
        file.writelines(f"{number + 1}\t{ngram}\n" for number, ngram in sorted(evaluation.found.items()))


def _logical_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def copies(number: int, share: float) -> int:
    """How often text number `number` occurs in an evenly spread sample of `share` of all texts.

    A share above 1 repeats texts.
    """
    whole = int(share)
    return whole + ((number * _GOLDEN) % 2**64 < (share - whole) * 2**64)


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

    def __init__(self, folder: Path, vocab_size: int, source_names: Sequence[str], unit: WordUnit) -> None:
        folder.mkdir()
        self._open = ExitStack()
        self._unit = unit
        self._starts = 0  # of words, of which each `unit.every`-th counts
        files = split_files(0, 0, vocab_size, has_sources=bool(source_names), unit=unit)
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

        words_N = encoded.word_start_N
        if self._unit.is_whitespace:
            bit_N = np.concatenate([self._last_bits, words_N.astype(bool)])
            whole = len(bit_N) // 8 * 8
            self._append("word_bits", np.packbits(bit_N[:whole], bitorder="little"))
            self._last_bits = bit_N[whole:]
        else:
            end_N = self._starts + np.cumsum(words_N, dtype=np.int64)
            words_N = end_N // self._unit.every - (end_N - words_N) // self._unit.every
            self._starts += int(encoded.word_start_N.sum(dtype=np.int64))
            self._append("words_N", words_N)
        words_N1 = np.concatenate([[0], np.cumsum(words_N, dtype=np.int64)])
        words_P = np.diff(words_N1[np.cumsum(encoded.tokens_P)], prepend=0)

        # The pieces before the first opening continue the last document; a document is complete when the next opens.
        bound_D = np.concatenate([[0], np.flatnonzero(encoded.opens_P), [len(encoded.opens_P)]])
        tokens_D, words_D = (
            np.diff(np.concatenate([[0], np.cumsum(count_P)])[bound_D]) for count_P in (encoded.tokens_P, words_P)
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
        if self._unit.is_whitespace:
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
