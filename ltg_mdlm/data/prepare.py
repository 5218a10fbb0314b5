"""From text files to a corpus folder: `prepare_corpus`.

Writing a split as it streams by.
"""

from __future__ import annotations

import json
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
from ltg_mdlm.data import sources as compressed
from ltg_mdlm.data.boundaries import cut
from ltg_mdlm.data.corpus import FORMAT, Corpus, read_description, split_files
from ltg_mdlm.data.encode import Encoded, EncoderPool, available_cores, id_type
from ltg_mdlm.data.sources import PIECE_CHARACTERS, Piece, find_sources, read_pieces, sha256_of
from ltg_mdlm.data.tokenizer import Tokenizer

SAMPLE_BYTES = 256 << 20
"""Text that a new tokenizer is trained on, at most; a larger corpus is sampled."""


_BATCH_CHARACTERS = 1 << 20


_BYTES_PER_WORKER = 8 << 20  # less text is not worth another process


_SAMPLE_CHARACTERS = 1 << 14


_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: its multiples are spread evenly (Knuth, TAOCP 6.4)


Files = Sequence[str | Path]


def prepare_corpus(
    files: Files,
    out: str | Path,
    *,
    valid: Files = (),
    tokenizer: str | Path | None = None,
    vocab_size: int = 16384,
    drop_headings: bool = False,
    sample_bytes: int = SAMPLE_BYTES,
    workers: int | None = None,
    progress: bool = True,
) -> Corpus:
    """Tokenise text files and folders into the corpus folder `out`, which is complete or absent at any time.

    Args:
        files: text of the training split, see `sources.read_pieces` for the formats
        out: the folder to make; if it holds this very corpus already, nothing is done
        valid: text of the validation split
        tokenizer: tokenizer file to use; by default one is trained on the training split
        vocab_size: of a tokenizer trained here
        drop_headings: delete lines like `= = = Title = = =`
        sample_bytes: train the tokenizer on an evenly spread sample of about this size if there is more text
        workers: processes that encode, default one per core; the result does not depend on it
        progress: show progress bars on standard error

    Raises UserError for input that cannot be read, a split without text, a file that is in both splits, an `out`
    that holds something else, and a disk without room for the result.
    """
    out = Path(out)
    given = Tokenizer.read(tokenizer) if tokenizer else None
    request = {
        "tokenizer": given.fingerprint if given else None,
        "vocab_size": None if given else vocab_size,
        "sample_bytes": None if given else sample_bytes,
        "drop_headings": drop_headings,
    }
    splits = {"train": _find(files), **({"valid": _find(valid)} if valid else {})}
    _check_disjoint(splits)
    if _is_made_already(out, request, splits):
        return Corpus.open(out)
    job = _Job(splits, drop_headings=drop_headings, progress=progress)
    with write_errors(out), written_folder(out) as folder:
        require_free_space(folder, job.disk_bytes(given.vocab_size if given else vocab_size))
        own, trained_on = (given, None) if given else job.train_tokenizer(vocab_size, sample_bytes)
        own.save(folder / "tokenizer.json")
        entries = job.encode(own, folder, workers or available_cores())
        facts = {"fingerprint": own.fingerprint, "vocab_size": own.vocab_size, "trained_on": trained_on}
        _describe(folder, request=request, tokenizer=facts, splits=entries)
    return Corpus.open(out)


def _describe(folder: Path, **facts: dict[str, Any]) -> None:
    """Write corpus.json."""
    description = {"format": FORMAT, "made_by": f"ltg_mdlm {ltg_mdlm.__version__}", **facts}
    (folder / "corpus.json").write_text(json.dumps(description, indent=1), "utf-8")


@dataclass(frozen=True, slots=True)
class Source:
    """A text file and what identifies its content."""

    path: Path
    bytes: int
    sha256: str

    def describe(self) -> dict[str, Any]:
        """As it stands in corpus.json."""
        return {"file": self.path.name, "bytes": self.bytes, "sha256": self.sha256}


def _find(paths: Files) -> list[Source]:
    return [Source(path, path.stat().st_size, sha256_of(path)) for path in find_sources(paths)]


def _check_disjoint(splits: dict[str, list[Source]]) -> None:
    train = {source.sha256: source for source in splits["train"]}
    for source in splits.get("valid", []):
        if twin := train.get(source.sha256):
            raise UserError(f"{source.path}: the validation file is also a training file ({twin.path})")


def _is_made_already(out: Path, request: dict[str, Any], splits: dict[str, list[Source]]) -> bool:
    """Whether `out` holds the corpus of this request; raises UserError if it holds anything else."""
    description = read_description(out)
    if description is None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists and is not a corpus folder; choose another place")
        return False
    asked = {**request, **{f"{name} files": [source.describe() for source in splits[name]] for name in splits}}
    there = {**description["request"]}
    there |= {f"{name} files": split["sources"] for name, split in description["splits"].items()}
    differing = sorted(key for key in asked.keys() | there.keys() if asked.get(key) != there.get(key))
    if differing:
        raise UserError(
            f"{out}: holds another corpus (other {', '.join(differing)}); choose another folder or delete it"
        )
    return True


class _Job:
    """The passes over the text: reading it all once, training a tokenizer, encoding."""

    def __init__(self, splits: dict[str, list[Source]], *, drop_headings: bool, progress: bool) -> None:
        """Read all text, so that what cannot be read is found at once, and measure it."""
        self._splits = splits
        self._drop_headings = drop_headings
        self._progress = progress
        self._documents = 0
        self._text_bytes = {name: self._measure(name, sources) for name, sources in splits.items()}

    def _measure(self, name: str, sources: list[Source]) -> int:
        """UTF-8 bytes of a split's text."""
        is_compressed = any(source.path.suffix in compressed.SUFFIXES for source in sources)
        total = None if is_compressed else sum(source.bytes for source in sources)
        size = 0
        with byte_progress(f"reading {name}", total, show=self._progress) as advance:
            for piece in self._pieces(name):
                length = len(piece.text.encode())
                self._documents += piece.opens_document
                size += length
                advance(length)
        if not size:
            raise UserError(f"{', '.join(str(source.path) for source in sources)}: no text for the {name} split")
        return size

    def disk_bytes(self, vocab_size: int) -> int:
        """Room that the corpus needs, if tokens have two bytes of text or more on average."""
        per_byte = id_type(vocab_size).itemsize / 2 + 1 / 16
        return int(sum(self._text_bytes.values()) * per_byte) + 12 * self._documents

    def train_tokenizer(self, vocab_size: int, sample_bytes: int) -> tuple[Tokenizer, dict[str, int]]:
        """A tokenizer, and what it was trained on: bytes of text, of how many."""
        of_bytes = self._text_bytes["train"]
        used = 0
        with byte_progress("training the tokenizer", min(of_bytes, sample_bytes), show=self._progress) as advance:

            def texts() -> Iterator[str]:
                nonlocal used
                for text in sample(self._sample_texts(), sample_bytes / of_bytes):
                    length = len(text.encode())
                    used += length
                    advance(length)
                    yield text

            tokenizer = Tokenizer.train(texts(), vocab_size)
        return tokenizer, {"bytes": used, "of_bytes": of_bytes}

    def encode(self, tokenizer: Tokenizer, folder: Path, workers: int) -> dict[str, dict[str, Any]]:
        """Write the splits into `folder`; returns their entries in corpus.json."""
        limit = PIECE_CHARACTERS if tokenizer.cuts_at_spaces else None
        total = sum(self._text_bytes.values())
        workers = max(1, min(workers, total // _BYTES_PER_WORKER))
        entries = {}
        with (
            byte_progress("encoding", total, show=self._progress) as advance,
            EncoderPool(tokenizer, folder / "tokenizer.json", workers) as pool,
        ):
            for name, sources in self._splits.items():
                with SplitWriter(folder / name, tokenizer.vocab_size) as writer:
                    for encoded in pool.encode(batches(self._pieces(name, limit))):
                        writer.add(encoded)
                        advance(encoded.text_bytes)
                    if writer.text_bytes != self._text_bytes[name]:
                        raise UserError(f"the {name} files changed while they were read; prepare them again")
                    entries[name] = {**writer.finish(), "sources": [source.describe() for source in sources]}
        return entries

    def _pieces(self, name: str, limit: int | None = PIECE_CHARACTERS) -> Iterator[Piece]:
        for source in self._splits[name]:
            yield from read_pieces(source.path, drop_headings=self._drop_headings, limit=limit)

    def _sample_texts(self) -> Iterator[str]:
        for piece in self._pieces("train"):
            yield from cut(piece.text, _SAMPLE_CHARACTERS)


def sample(texts: Iterable[str], share: float) -> Iterator[str]:
    """About `share` of the texts, evenly spread; the same ones every time."""
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
    """Appends encoded text to the files of one split while its context lasts; memory does not grow with the text.

    Suffixes: N tokens, P pieces, D documents of one batch, V vocabulary.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        folder.mkdir()
        self._open = ExitStack()
        self._types = {name: dtype for name, (dtype, _) in split_files(0, 0, vocab_size).items()}
        self._files = {name: self._open.enter_context((folder / f"{name}.bin").open("wb")) for name in self._types}
        self._token_count_V = np.zeros(vocab_size, np.int64)
        self._bits_left = np.zeros(0, bool)
        self._open_tokens = self._open_words = 0  # of the document that is not complete
        self.tokens = self.documents = self.words = self.text_bytes = 0
        self._append("offsets", np.zeros(1))

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, encoded: Encoded) -> None:
        """Append a batch; its first piece may go on with the last document."""
        self._append("tokens", encoded.ids_N)
        self._token_count_V += np.bincount(encoded.ids_N, minlength=len(self._token_count_V))
        bit_N = np.concatenate([self._bits_left, encoded.word_start_N])
        whole = len(bit_N) // 8 * 8
        self._append("word_bits", np.packbits(bit_N[:whole], bitorder="little"))
        self._bits_left = bit_N[whole:]
        self.text_bytes += encoded.text_bytes
        self._add_documents(encoded)

    def _add_documents(self, encoded: Encoded) -> None:
        """The documents that end in this batch are complete when the next one opens."""
        first_D = np.flatnonzero(encoded.opens_P)
        bound_D = np.concatenate([[0], first_D, [len(encoded.opens_P)]])
        tokens_D, words_D = (_sums(count_P, bound_D) for count_P in (encoded.tokens_P, encoded.words_P))
        tokens_D[0] += self._open_tokens
        words_D[0] += self._open_words
        self._open_tokens, self._open_words = int(tokens_D[-1]), int(words_D[-1])
        self._close_documents(tokens_D[:-1], words_D[:-1])

    def _close_documents(self, tokens_D: NDArray[np.int64], words_D: NDArray[np.int64]) -> None:
        tokens_D, words_D = tokens_D[tokens_D > 0], words_D[tokens_D > 0]
        self._append("offsets", self.tokens + np.cumsum(tokens_D))
        self._append("words", words_D)
        self.tokens += int(tokens_D.sum())
        self.words += int(words_D.sum())
        self.documents += len(words_D)

    def finish(self) -> dict[str, int]:
        """Write what is left, and return the counts of the split."""
        self._close_documents(np.array([self._open_tokens]), np.array([self._open_words]))
        self._append("word_bits", np.packbits(self._bits_left, bitorder="little"))
        self._append("token_count_V", self._token_count_V)
        return {name: getattr(self, name) for name in ("documents", "tokens", "words", "text_bytes")}

    def _append(self, name: str, array: NDArray[Any]) -> None:
        self._files[name].write(array.astype(self._types[name], copy=False).tobytes())


def _sums(count_P: NDArray[np.int64], bound_D: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of `count_P` between consecutive bounds."""
    total_P1 = np.concatenate([[0], np.cumsum(count_P)])
    return np.asarray(np.diff(total_P1[bound_D]))
