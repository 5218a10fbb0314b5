"""The byte-level BPE tokenizer of the stack: read from a file or trained, with the text of every token.

A word is what `str.split` returns: a run of characters without white space.

Suffixes: V vocabulary, N tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ltg_mdlm.core.errors import UserError

SPECIAL_TOKENS: Final = ("<unk>", "<s>", "</s>", "<pad>", "<mask>", *(f"<special_{i}>" for i in range(11)))
"""The special tokens in the order of their ids: the first ids of every vocabulary of the stack."""

UNK, BOS, EOS, PAD, MASK = range(5)

NUM_SPECIAL: Final = len(SPECIAL_TOKENS)
"""Ids below this one are special: never masked, never counted (16)."""

SMALLEST_VOCABULARY = NUM_SPECIAL + 256
"""The special tokens and the 256 bytes."""

_LONGEST_TOKEN = 24
"""Bytes of the longest token that training can learn."""

_WORD_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pre-tokenizer's regex: runs of letters, single digits, runs of other characters, line breaks, white space."""

_WHITE_BYTES = b"\t\n\v\f\r\x1c\x1d\x1e\x1f "
"""The ASCII characters that `str.split` takes for white space."""

_WORD_AFTER_WHITE = re.compile(rb"[%b][^%b]" % (_WHITE_BYTES, _WHITE_BYTES))


class Tokenizer:
    """A byte-level BPE tokenizer whose ids 0 to 15 are the special tokens.

    Attributes:
        definition: the JSON object of the tokenizer file
        backend: the tokenizer of the `tokenizers` library; it encodes special tokens in a text as ordinary text
        vocabulary: the tokens in the order of their ids, in the byte alphabet
        token_text: the text of every token, and where words begin in it
    """

    def __init__(self, definition: dict[str, Any], *, origin: str = "tokenizer") -> None:
        """Create a tokenizer from its definition. Special tokens that `added_tokens` lacks are added.

        Raises:
            UserError: not a byte-level BPE with the special tokens of the stack; the message begins with `origin`.
        """
        self.definition = _with_special_tokens(definition, origin)
        try:
            self.backend = tokenizers.Tokenizer.from_str(json.dumps(self.definition))
        except Exception as error:  # the library raises nothing more specific
            raise UserError(f"{origin}: not a tokenizer file: {error}") from error
        self.backend.encode_special_tokens = True
        token_of_id = {i: token for token, i in self.backend.get_vocab(with_added_tokens=True).items()}
        if sorted(token_of_id) != list(range(len(token_of_id))):
            raise UserError(f"{origin}: the ids are not 0 to {len(token_of_id) - 1} without a gap")
        self.vocabulary = [token_of_id[i] for i in range(len(token_of_id))]
        try:
            self.token_text = TokenText.of(self.vocabulary)
        except ValueError as error:
            raise UserError(f"{origin}: not a byte-level tokenizer: {error}") from error

    @classmethod
    def read(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer file (JSON). Raises UserError if it is missing or not usable."""
        try:
            definition = json.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{path}: not a tokenizer file: it is not JSON") from error
        return cls(definition, origin=str(path))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from texts. The result does not depend on the order of the texts.

        The vocabulary is smaller than `vocab_size` if the texts do not contain enough different pairs. A long text
        may come in parts made by `boundaries.cut`.

        Raises:
            UserError: `vocab_size` is too small for the special tokens and the bytes.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"vocabulary of {vocab_size}: must be at least {SMALLEST_VOCABULARY} (bytes and special tokens)"
            )
        backend = untrained_tokenizer()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,  # a pair that occurs once is not a regularity
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(json.loads(backend.to_str()))

    def save(self, path: Path) -> None:
        """Write the tokenizer file."""
        path.write_text(self.to_json(), "utf-8")

    def to_json(self) -> str:
        """The text of the tokenizer file."""
        return json.dumps(self.definition, ensure_ascii=False, indent=1)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without `<s>`."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special tokens are skipped."""
        return str(self.backend.decode(list(ids)))

    @property
    def vocab_size(self) -> int:
        """Number of ids, including the special tokens."""
        return len(self.vocabulary)

    @cached_property
    def tokens(self) -> list[str]:
        """Readable text of every token (`tokens_V`); incomplete characters are U+FFFD, special tokens their names."""
        plain = self.token_text.bytes_V[NUM_SPECIAL:]
        return [*SPECIAL_TOKENS, *(text.decode("utf-8", errors="replace") for text in plain)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what determines the tokens of a text. Layout and added tokens of the file do not change it."""
        model = self.definition["model"]
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        parts = [self.vocabulary, merges, self.definition.get("normalizer"), self.definition.get("pre_tokenizer")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def cuts_at_spaces(self) -> bool:
        """Whether text can be cut as in `boundaries`: the tokenizer splits text exactly as the stack's does."""
        stack, own = (json.loads(backend.to_str()) for backend in (untrained_tokenizer(), self.backend))
        same = all(stack[part] == own[part] for part in ("normalizer", "pre_tokenizer"))
        return same and len(own["added_tokens"]) == NUM_SPECIAL and not own["model"]["dropout"]


def _with_special_tokens(definition: Any, origin: str) -> dict[str, Any]:
    """A copy of a definition in which the special tokens are added tokens.

    Some published files do not list them there. Such a tokenizer would split the text `<mask>` into characters.
    """
    try:
        id_of_token = dict(definition["model"]["vocab"])
        model_type = definition["model"].get("type", "BPE")
        added = list(definition.get("added_tokens") or [])
        id_of_token |= {token["content"]: token["id"] for token in added}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{origin}: not a tokenizer file: it has no BPE vocabulary") from error
    if model_type != "BPE":
        raise UserError(f"{origin}: a {model_type} tokenizer; must be a byte-level BPE")
    for i, name in enumerate(SPECIAL_TOKENS):
        if id_of_token.get(name) != i:
            found = f"has id {id_of_token[name]}" if name in id_of_token else "is missing"
            raise UserError(
                f"{origin}: {name} {found}, but must have id {i}: not a tokenizer for masked language models"
            )
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": i, "content": name, **flags} for i, name in enumerate(SPECIAL_TOKENS)]
    others = [token for token in added if token["content"] not in SPECIAL_TOKENS]
    return {**definition, "added_tokens": special + others}


def untrained_tokenizer() -> tokenizers.Tokenizer:
    """The stack's tokenizer without a vocabulary: how text is normalised and split into parts."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False, ignore_merges=True))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend(" "),
            normalizers.NFKC(),
            normalizers.Replace(Regex("\n"), "\n "),
            normalizers.Replace(Regex(" *\n"), "\n"),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(Regex(f".{{1,{_LONGEST_TOKEN}}}"), behavior="isolated"),
        ]
    )
    backend.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Strip(" ", 1, 0), decoders.Replace("\n ", "\n")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return backend


@dataclass(frozen=True, slots=True)
class TokenText:
    """The text of every token of a vocabulary, and where words begin in it."""

    bytes_V: tuple[bytes, ...]
    """The text of each token in UTF-8; empty for special tokens."""
    length_V: NDArray[np.int64]
    """Bytes of each token."""
    opens_word_V: NDArray[np.bool_]
    """A word begins inside the token, after white space that belongs to the token."""
    starts_solid_V: NDArray[np.bool_]
    """The first byte of the token is not white space."""
    ends_blank_V: NDArray[np.bool_]
    """The last byte of the token is white space, or the token is special."""

    @classmethod
    def of(cls, vocabulary: Sequence[str]) -> TokenText:
        """From a byte-level vocabulary in the order of its ids. Raises ValueError if a token is not byte-level."""
        byte_of = byte_alphabet()
        try:
            plain = [bytes(byte_of[character] for character in token) for token in vocabulary[NUM_SPECIAL:]]
        except KeyError as error:
            raise ValueError(f"{error.args[0]!r} in its vocabulary stands for no byte") from error
        bytes_V = (b"",) * NUM_SPECIAL + tuple(plain)
        return cls(
            bytes_V=bytes_V,
            length_V=np.array([len(text) for text in bytes_V]),
            opens_word_V=np.array([bool(_WORD_AFTER_WHITE.search(text)) for text in bytes_V]),
            starts_solid_V=np.array([text[:1] not in _WHITE_BYTES for text in bytes_V]),
            ends_blank_V=np.array([text[-1:] in _WHITE_BYTES for text in bytes_V]),
        )

    def word_starts(self, ids_N: NDArray[np.integer], first_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool[N]: the token contains the first character of a word; `first_N` marks the first token of each text."""
        after_white_N = np.roll(self.ends_blank_V[ids_N], 1) | first_N
        starts: NDArray[np.bool_] = self.opens_word_V[ids_N] | (after_white_N & self.starts_solid_V[ids_N])
        return starts

    def text_bytes(self, ids_N: NDArray[np.integer], first_N: NDArray[np.bool_]) -> int:
        """Size in UTF-8 of the decoded text, without the spaces that the normaliser puts before texts and lines."""
        starts_space_V = np.array([text.startswith(b" ") for text in self.bytes_V])
        ends_line_V = np.array([text.endswith(b"\n") for text in self.bytes_V])
        inner_V = np.array([text.count(b"\n ") for text in self.bytes_V])
        before_N = starts_space_V[ids_N] & (first_N | np.roll(ends_line_V[ids_N], 1))
        return int(self.length_V[ids_N].sum() - inner_V[ids_N].sum() - np.count_nonzero(before_N))


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary represents (the table of GPT-2).

    Visible Latin-1 characters represent themselves; the characters from U+0100 on represent the other bytes in order.
    """
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = (byte for byte in range(256) if byte not in visible)
    return {chr(byte): byte for byte in sorted(visible)} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
