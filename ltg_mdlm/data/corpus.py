"""A tokenised corpus on disk: memory-mapped, complete or absent.

    corpus.json      format, tokenizer, settings; for each split its counts and the hash of every source file
    tokenizer.json
    train/  valid/   tokens.bin  offsets.bin  words.bin  word_bits.bin  token_count_V.bin  (little-endian arrays)

Suffixes: V vocabulary, N tokens of the split, D documents, I bounds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.encode import id_type
from ltg_mdlm.data.tokenizer import Tokenizer

FORMAT = 1
"""Version of the layout of the folder."""

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
    """[ceil(N / 8)] one bit per token, lowest first: the token contains the first character of a word"""
    token_count_V: NDArray[np.int64]
    text_bytes: int
    """Size of the text in UTF-8."""
    sources: tuple[dict[str, Any], ...] = ()
    """Name, size and SHA-256 of every source file."""

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

    def word_start(self, start: int, stop: int) -> NDArray[np.bool_]:
        """bool[stop - start]: whether a word begins in each of the tokens `start` to `stop`."""
        bits = np.unpackbits(self.word_bits[start // 8 : -(-stop // 8)], bitorder="little")
        return bits[start % 8 :][: stop - start].astype(bool)

    def words_between(self, bound_I: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[I - 1]: words that begin between consecutive bounds, which are increasing token indices."""
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
        """Map a corpus folder into memory.

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
            if other.fingerprint != description["tokenizer"]["fingerprint"]:
                raise UserError(f"{path}: this corpus was made with another tokenizer than {name}")
        splits = description["splits"]
        return cls(
            path=path,
            tokenizer_path=path / "tokenizer.json",
            tokenizer=own,
            train=_open_split(path / "train", splits["train"], own),
            valid=_open_split(path / "valid", splits["valid"], own) if "valid" in splits else None,
            description=description,
        )

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def describe(self) -> str:
        """The tokenizer and the size of each split, as text for the terminal."""
        facts = self.description["tokenizer"]
        tokenizer = f"  tokenizer: {facts['vocab_size']:,} tokens, fingerprint {facts['fingerprint'][:12]}"
        if text := facts.get("trained_on"):
            tokenizer += f", trained on {text['bytes'] / 1e6:,.1f} of {text['of_bytes'] / 1e6:,.1f} MB of text"
        lines = [f"corpus {self.path}", tokenizer]
        for name, split in (("train", self.train), ("valid", self.valid)):
            if split is not None:
                lines.append(
                    f"  {name}: {split.num_documents:,} documents, {split.num_words:,} words, "
                    f"{split.num_tokens:,} tokens, {split.text_bytes / 1e6:,.1f} MB of text "
                    f"in {len(split.sources)} file(s)"
                )
        return "\n".join(lines)


def read_description(path: Path) -> dict[str, Any] | None:
    """The object in corpus.json of a folder, None if there is no such file. Raises UserError if it is not usable."""
    try:
        description = json.loads((path / "corpus.json").read_text("utf-8"))
        version = description["format"]
        if version == FORMAT and (missing := {"request", "tokenizer", "splits"} - description.keys()):
            raise KeyError(*sorted(missing))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path / 'corpus.json'}: damaged ({error}); prepare the corpus again") from error
    if version != FORMAT:
        raise UserError(f"{path}: corpus format {version}, this version reads {FORMAT}; prepare the corpus again")
    return dict(description)


def split_files(num_tokens: int, num_documents: int, vocab_size: int) -> dict[str, tuple[np.dtype[Any], int]]:
    """Type and length of the array in each file of a split; the files are named after the fields of `Split`."""
    return {
        "tokens": (id_type(vocab_size).newbyteorder("<"), num_tokens),
        "offsets": (np.dtype("<i8"), num_documents + 1),
        "words": (np.dtype("<i4"), num_documents),
        "word_bits": (np.dtype("u1"), -(-num_tokens // 8)),
        "token_count_V": (np.dtype("<i8"), vocab_size),
    }


def _open_split(folder: Path, entry: dict[str, Any], tokenizer: Tokenizer) -> Split:
    arrays = {}
    for name, (dtype, length) in split_files(entry["tokens"], entry["documents"], tokenizer.vocab_size).items():
        path, expected = folder / f"{name}.bin", length * dtype.itemsize
        size = path.stat().st_size if path.exists() else 0
        if size != expected:
            raise UserError(f"{path}: damaged ({size} bytes, not {expected}); prepare the corpus again")
        arrays[name] = np.asarray(np.memmap(path, dtype, "r"))
    if arrays["offsets"][-1] != entry["tokens"] or arrays["token_count_V"].sum() != entry["tokens"]:
        raise UserError(f"{folder}: damaged (its counts contradict each other); prepare the corpus again")
    return Split(**arrays, text_bytes=entry["text_bytes"], sources=tuple(entry["sources"]))
