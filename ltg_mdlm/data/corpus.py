"""A tokenised corpus on disk: memory-mapped, complete or absent.

    corpus.json      format, tokenizer, settings, unit of words, names of the sources; for each split its counts and the
                     hash of every source file; the hash of every other file of the folder, a fingerprint of the
                     content, and a digest of corpus.json itself
    tokenizer.json
    train/  valid/   tokens.bin  offsets.bin  words.bin  word_bits.bin  token_count_V.bin  source_D.bin
                     (little-endian arrays; corpora of older versions have no sources; there is words_N.bin instead of
                     word_bits.bin if words are not runs of characters without white space)

Suffixes: V vocabulary, N tokens of the split, D documents, I bounds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.encode import id_type
from ltg_mdlm.data.sources import sha256_of
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.data.words import WHITESPACE, WordUnit

FORMAT = 1
"""Version of the layout of the folder."""

MAX_SOURCES = 2**15 - 1
"""Sources of a corpus with more are not stored: the number of a source is an int16."""

_SOURCES_SHOWN = 12
"""Sources that `Corpus.describe` names."""

_BITS_SET = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """The documents of a split, back to back and without `<s>`."""

    tokens: NDArray[np.unsignedinteger]
    """[N] ids, uint16 or uint32"""
    offsets: NDArray[np.int64]
    """[D + 1] the first token of each document, and the number of tokens"""
    words: NDArray[np.int32]
    """[D] words of each document"""
    word_bits: NDArray[np.uint8]
    """[ceil(N / 8)] one bit per token, lowest first: the token contains the first character of a word; empty if there
    is `words_N`"""
    token_count_V: NDArray[np.int64]
    text_bytes: int
    """Size of the text in UTF-8."""
    words_N: NDArray[np.uint8] | None = None
    """[N] words that begin in each token, if words are counted in another unit than whitespace"""
    sources: tuple[dict[str, Any], ...] = ()
    """Name, size and SHA-256 of every source file."""
    source_D: NDArray[np.int16] | None = None
    """[D] index of each document's source in `source_names`; None if the corpus does not say"""
    source_names: tuple[str, ...] = ()
    """The sources of all splits of the corpus."""

    @classmethod
    def of(
        cls, documents: Sequence[NDArray[Any]], tokenizer: Tokenizer, *, sources: tuple[dict[str, Any], ...] = ()
    ) -> Split:
        """A split in memory from the tokens of documents; empty documents are skipped.

        Words and the size of the text are those of the decoded text, that is, of the text after normalisation.

        Raises:
            UserError: there are no tokens, or an id is not in the vocabulary.
        """
        documents = [document for document in documents if len(document)]
        if not documents:
            raise UserError("no documents, or only empty ones")
        ids_N = np.concatenate(documents)
        for extreme in (ids_N.min(), ids_N.max()):
            if not 0 <= extreme < tokenizer.vocab_size:
                raise UserError(f"token id {extreme} is not in the vocabulary of {tokenizer.vocab_size}")
        tokens = ids_N.astype(id_type(tokenizer.vocab_size))
        offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
        first_N = np.zeros(len(tokens), bool)
        first_N[offsets[:-1]] = True
        word_start_N = tokenizer.token_text.word_starts(tokens, first_N)
        return cls(
            tokens=tokens,
            offsets=offsets,
            words=np.add.reduceat(word_start_N, offsets[:-1], dtype=np.int32),
            word_bits=np.packbits(word_start_N, bitorder="little"),
            token_count_V=np.bincount(tokens, minlength=tokenizer.vocab_size),
            text_bytes=tokenizer.token_text.text_bytes(tokens, first_N),
            sources=sources,
        )

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def num_documents(self) -> int:
        return len(self.words)

    @property
    def num_words(self) -> int:
        return int(self.words.sum(dtype=np.int64))

    def maskable_tokens(self, *, end_of_document: bool) -> int:
        """Tokens that a bound averages: those of the text and, with `end_of_document`, one `</s>` per document."""
        return self.num_tokens + end_of_document * self.num_documents

    def words_by_source(self) -> dict[str, int]:
        """Words of each source that has documents in this split; empty if sources are unknown."""
        if self.source_D is None:
            return {}
        # Sums of float64 are exact up to 2^53.
        count_G = np.bincount(self.source_D, self.words, minlength=len(self.source_names))
        present_G = np.bincount(self.source_D, minlength=len(self.source_names)) > 0
        return {name: int(count_G[g]) for g, name in enumerate(self.source_names) if present_G[g]}

    def word_start(self, start: int, stop: int) -> NDArray[np.bool_]:
        """bool[stop - start]: whether a word begins in each of the tokens `start` to `stop`."""
        if self.words_N is not None:
            return self.words_N[start:stop] > 0
        bits = np.unpackbits(self.word_bits[start // 8 : -(-stop // 8)], bitorder="little")
        return bits[start % 8 :][: stop - start].astype(bool)

    def words_between(self, bound_I: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[I - 1]: words that begin between consecutive bounds, which are increasing token indices."""
        if self.words_N is not None:
            between: NDArray[np.int64] = np.add.reduceat(np.append(self.words_N, 0), bound_I, dtype=np.int64)[:-1]
            between[bound_I[:-1] == bound_I[1:]] = 0
            return between
        byte_I, bit_I = bound_I // 8, bound_I % 8
        whole = np.add.reduceat(np.append(_BITS_SET[self.word_bits], 0), byte_I, dtype=np.int64)[:-1]
        whole[byte_I[:-1] == byte_I[1:]] = 0
        below = (1 << bit_I) - 1
        partial_I = _BITS_SET[np.append(self.word_bits, 0)[byte_I] & below].astype(np.int64)
        words: NDArray[np.int64] = whole - partial_I[:-1] + partial_I[1:]
        return words


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A folder made by `prepare_corpus`, or files of the existing stack (`tokenized_bin`)."""

    path: Path
    tokenizer_path: Path
    tokenizer: Tokenizer
    train: Split
    valid: Split | None
    description: dict[str, Any]
    """The object in corpus.json."""

    @classmethod
    def open(cls, path: str | Path, *, tokenizer: Tokenizer | None = None) -> Corpus:
        """Map a corpus folder into memory. Sizes and ranges of all arrays are checked, but not their hashes.

        Raises:
            UserError: not a corpus folder, a damaged one, or one that was not made with `tokenizer` (by default the
                tokenizer in the folder).
        """
        path = Path(path)
        description = read_description(path)
        if description is None:
            raise UserError(f"{path}: not a corpus folder; `ltg-mdlm prepare FILES --out {path}` makes one")
        own = Tokenizer.read(path / "tokenizer.json")
        for other, name in ((own, "its tokenizer.json"), (tokenizer or own, "the tokenizer given")):
            if description["tokenizer"]["fingerprint"] not in (other.fingerprint, other.earlier_fingerprint):
                raise UserError(f"{path}: this corpus was made with another tokenizer than {name}")
        splits, names = description["splits"], tuple(description.get("source_names", ()))
        unit = WordUnit(description.get("words", WHITESPACE))
        return cls(
            path=path,
            tokenizer_path=path / "tokenizer.json",
            tokenizer=own,
            train=_open_split(path / "train", splits["train"], own, names, unit),
            valid=_open_split(path / "valid", splits["valid"], own, names, unit) if "valid" in splits else None,
            description=description,
        )

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def word_unit(self) -> str:
        """The unit in which words are counted; `words` lists them."""
        return str(self.description.get("words", WHITESPACE))

    def verify(self) -> str:
        """Compare the content of all files with the hashes in corpus.json; returns what was verified.

        A corpus without hashes was made by an older version. There the counts are compared with the tokens, which
        finds most damage, but not tokens in another order. Corpora without a corpus.json are read and checked as a
        whole when they are opened.

        Raises:
            UserError: a file is damaged; the message names it.
        """
        if "splits" not in self.description:
            return "checked when it was read"
        if recorded := self.description.get("files"):
            for name, expected in recorded.items():
                if sha256_of(self.path / name) != expected:
                    raise _damaged(self.path / name, "its content is not what was written")
            return f"{len(recorded)} files have the recorded SHA-256"
        for name, split in (("train", self.train), ("valid", self.valid)):
            if split is None:
                continue
            if not np.array_equal(np.bincount(split.tokens, minlength=self.vocab_size), split.token_count_V):
                raise _damaged(self.path / name, "tokens.bin contradicts token_count_V.bin")
            if not np.array_equal(split.words_between(split.offsets), split.words):
                raise _damaged(self.path / name, "words.bin contradicts word_bits.bin")
        return "no hashes are recorded (prepared by an older version), but all counts agree"

    @property
    def training_text(self) -> str:
        """SHA-256 of the tokenizer, and of the tokens, documents and words of the training split."""
        recorded: dict[str, str] = self.description.get("files", {})
        # Not source_D, which depends on the sources of the other splits.
        files = {name: recorded.get(f"train/{name}.bin") for name in ("tokens", "offsets", "words")}
        content = files if recorded else [source["sha256"] for source in self.train.sources]
        parts = [self.tokenizer.fingerprint, self.word_unit, content]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def describe(self) -> str:
        """The tokenizer and the size of each split, as text for the terminal."""
        facts = self.description["tokenizer"]
        tokenizer = f"  tokenizer: {facts['vocab_size']:,} tokens, fingerprint {facts['fingerprint'][:12]}"
        if text := facts.get("trained_on"):
            tokenizer += f", trained on {text['bytes'] / 1e6:,.1f} of {text['of_bytes'] / 1e6:,.1f} MB of text"
            wanted = self.description.get("request", {}).get("vocab_size") or 0
            if facts["vocab_size"] < wanted:
                tokenizer += f"\n    fewer than the {wanted:,} asked for: no other pair of tokens occurs twice"
        lines = [f"corpus {self.path}", tokenizer]
        if fingerprint := self.description.get("fingerprint"):
            lines.append(f"  content: fingerprint {fingerprint[:12]}, words counted by {self.word_unit}")
        for name, split in (("train", self.train), ("valid", self.valid)):
            if split is not None:
                lines.append(
                    f"  {name}: {split.num_documents:,} documents, {split.num_words:,} words, "
                    f"{split.num_tokens:,} tokens, {split.text_bytes / 1e6:,.1f} MB of text "
                    f"in {len(split.sources)} file(s)"
                )
                entry = self.description.get("splits", {}).get(name, {})
                for reason, counts in entry.get("left_out", {}).items():
                    lines.append(
                        f"    left out, {reason.replace('_', ' ')}: {counts['documents']:,} documents,"
                        f" {counts['words']:,} words"
                    )
                if size := entry.get("budget_size"):
                    budget = self.description["request"]["budget"]["words"]
                    lines.append(f"    adjusted size: {size:,} of {budget:,} words of English in the budget")
        if len(by_source := self.train.words_by_source()) > 1:
            largest = sorted(by_source.items(), key=lambda item: -item[1])
            shares = [f"{name} {words / max(self.train.num_words, 1):.1%}" for name, words in largest[:_SOURCES_SHOWN]]
            more = f" and {len(largest) - _SOURCES_SHOWN} more" if len(largest) > _SOURCES_SHOWN else ""
            lines.append(f"  sources of train, by words: {', '.join(shares)}{more}")
        return "\n".join(lines)


class _Entry(BaseModel):
    """What opening a corpus needs to know about a split."""

    model_config = ConfigDict(strict=True)
    documents: int = Field(ge=1)
    tokens: int = Field(ge=1)
    words: int | None = None
    text_bytes: int = Field(ge=0)
    sources: list[dict[str, Any]]


class _TrainedOn(BaseModel):
    model_config = ConfigDict(strict=True)
    bytes: int
    of_bytes: int


class _TokenizerEntry(BaseModel):
    model_config = ConfigDict(strict=True)
    fingerprint: str
    vocab_size: int = Field(ge=1)
    trained_on: _TrainedOn | None = None


class _Splits(BaseModel):
    train: _Entry
    valid: _Entry | None = None


class _Description(BaseModel):
    """Types of the entries in corpus.json; other entries are not checked."""

    model_config = ConfigDict(strict=True)
    request: dict[str, Any]
    tokenizer: _TokenizerEntry
    splits: _Splits
    files: dict[str, str] = {}
    source_names: list[str] = []


def read_description(path: Path) -> dict[str, Any] | None:
    """The object in corpus.json of a folder, None if there is no such file. Raises UserError if it is not usable."""
    file = path / "corpus.json"
    try:
        description = json.loads(file.read_text("utf-8"))
        version = description["format"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except KeyError as error:
        raise _damaged(file, f"{error} is missing") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(file, str(error)) from error
    if version != FORMAT:
        raise UserError(f"{path}: corpus format {version}, this version reads {FORMAT}; prepare the corpus again")
    try:
        _Description.model_validate(description)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(file, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    # A corpus of an older version has neither; damage may change the name of one of them, but not of both.
    if ("files" in description or "digest" in description) and description.get("digest") != digest_of(description):
        raise _damaged(file, "its content is not what was written")
    return dict(description)


def digest_of(description: dict[str, Any]) -> str:
    """SHA-256 of the content of corpus.json without its entry `digest`; the layout of the file does not change it."""
    content = {key: value for key, value in description.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fingerprint_of(description: dict[str, Any]) -> str:
    """SHA-256 of the tokens, documents, words and sources of a corpus, whichever files they came from."""
    files = {name: digest for name, digest in description["files"].items() if name.endswith(".bin")}
    parts = [description["tokenizer"]["fingerprint"], description["words"], description.get("source_names", []), files]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: damaged ({problem}); prepare the corpus again")


def split_files(
    num_tokens: int, num_documents: int, vocab_size: int, *, has_sources: bool, unit: WordUnit
) -> dict[str, tuple[np.dtype[Any], int]]:
    """Type and length of the array in each file of a split; the files are named after the fields of `Split`."""
    sources = {"source_D": (np.dtype("<i2"), num_documents)} if has_sources else {}
    return {
        "tokens": (id_type(vocab_size).newbyteorder("<"), num_tokens),
        "offsets": (np.dtype("<i8"), num_documents + 1),
        "words": (np.dtype("<i4"), num_documents),
        **(
            {"word_bits": (np.dtype("u1"), -(-num_tokens // 8))}
            if unit.is_whitespace
            else {"words_N": (np.dtype("u1"), num_tokens)}
        ),
        "token_count_V": (np.dtype("<i8"), vocab_size),
        **sources,
    }


def _open_split(
    folder: Path, entry: dict[str, Any], tokenizer: Tokenizer, source_names: tuple[str, ...], unit: WordUnit
) -> Split:
    arrays: dict[str, Any] = {} if unit.is_whitespace else {"word_bits": np.zeros(0, np.uint8)}
    files = split_files(
        entry["tokens"], entry["documents"], tokenizer.vocab_size, has_sources=bool(source_names), unit=unit
    )
    for name, (dtype, length) in files.items():
        path, expected = folder / f"{name}.bin", length * dtype.itemsize
        try:
            size = path.stat().st_size if path.exists() else 0
            if size != expected:
                raise _damaged(path, f"{size} bytes, not {expected}")
            arrays[name] = np.asarray(np.memmap(path, dtype, "r"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    offsets, words, count_V = arrays["offsets"], arrays["words"], arrays["token_count_V"]
    if offsets[0] != 0 or offsets[-1] != entry["tokens"] or (offsets[1:] <= offsets[:-1]).any():
        raise _damaged(folder / "offsets.bin", f"it does not increase from 0 to {entry['tokens']}")
    if count_V.min() < 0 or count_V.sum() != entry["tokens"]:
        raise _damaged(folder / "token_count_V.bin", f"it does not count {entry['tokens']} tokens")
    if words.min() < 0 or entry.get("words") not in (None, words.sum(dtype=np.int64)):
        raise _damaged(folder / "words.bin", f"it does not count {entry.get('words')} words")
    if (largest := int(arrays["tokens"].max())) >= tokenizer.vocab_size:
        raise _damaged(folder / "tokens.bin", f"token id {largest} is not in the vocabulary of {tokenizer.vocab_size}")
    if source_names and not 0 <= arrays["source_D"].min() <= arrays["source_D"].max() < len(source_names):
        raise _damaged(folder / "source_D.bin", f"it names other sources than the {len(source_names)} of the corpus")
    return Split(**arrays, text_bytes=entry["text_bytes"], sources=tuple(entry["sources"]), source_names=source_names)
