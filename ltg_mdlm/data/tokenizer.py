"""The byte-level BPE tokenizer of the stack: read from a file or trained, with the text of every token.

A word is what `str.split` returns: a run of characters without white space.

Suffixes: V vocabulary, N tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
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

_OTHER_NAMES: Final = (
    {"[UNK]"},
    {"[CLS]", "[BOS]", "<bos>", "<cls>"},
    {"[SEP]", "[EOS]", "<eos>", "<sep>"},
    {"[PAD]"},
    {"[MASK]"},
)
"""Names of the first five special tokens in other families of models, such as LTG-BERT."""

_UNUSED_NAME = re.compile(r"[<\[](special|unused|extra|reserved)[ _-]?(token[ _-]?)?\d*[>\]]")
"""Names of special tokens without a role in other families of models."""

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
        definition: the JSON object of the tokenizer file, as it is used: without truncation, padding and dropout,
            and with the names of the stack for the special tokens
        dropout: the BPE dropout that the file asks for; it is off in `backend`
        backend: the tokenizer of the `tokenizers` library; it encodes special tokens in a text as ordinary text
        vocabulary: the tokens in the order of their ids; in the byte alphabet, except added tokens
        token_text: the text of every token, and where words begin in it
    """

    def __init__(self, definition: dict[str, Any], *, origin: str = "tokenizer") -> None:
        """Create a tokenizer from its definition. Special tokens that `added_tokens` lacks are added.

        A file also holds state of the program that saved it. Truncation and padding are ignored, because they would
        change a corpus without notice. Dropout makes encoding random, so it is off.

        Raises:
            UserError: not a byte-level BPE with the special tokens of the stack; the message begins with `origin`.
        """
        definition = _with_special_tokens(definition, origin)
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if value := definition["model"].get(key):  # with some values the library aborts the process
                raise UserError(f"{origin}: not a byte-level tokenizer: {key} is {value!r}, but must not be set")
        self.dropout = definition["model"].get("dropout")
        saved_state: dict[str, Any] = {key: None for key in ("truncation", "padding") if definition.get(key)}
        if self.dropout:
            saved_state["model"] = {**definition["model"], "dropout": None}
        self.definition = {**definition, **saved_state}
        try:
            self.backend = tokenizers.Tokenizer.from_str(json.dumps(_for_text(self.definition)))
            self.backend.encode("A text, é\n of two lines")  # some normalisers fail only when they are used
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises nothing more specific; its panics are no Exception
            raise UserError(f"{origin}: not a tokenizer file: {error}") from error
        self.backend.encode_special_tokens = True
        token_of_id = {i: token for token, i in self.backend.get_vocab(with_added_tokens=True).items()}
        if sorted(token_of_id) != list(range(len(token_of_id))):
            raise UserError(f"{origin}: the ids are not 0 to {len(token_of_id) - 1} without a gap")
        self.vocabulary = [token_of_id[i] for i in range(len(token_of_id))]
        try:
            self.token_text = TokenText.of(self.vocabulary, self._added_tokens)
        except ValueError as error:
            raise UserError(f"{origin}: not a byte-level tokenizer: {error}") from error
        if '"ByteLevel"' not in json.dumps([definition.get("normalizer"), definition.get("pre_tokenizer")]):
            raise UserError(
                f"{origin}: not a byte-level tokenizer: neither its normalizer nor its pre_tokenizer converts text to"
                " bytes (ByteLevel)"
            )

    @classmethod
    def read(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer file (JSON). Raises UserError if it is missing or not usable."""
        try:
            definition = json.loads(Path(path).read_text("utf-8-sig"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
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
        """SHA-256 of what determines the tokens of a text. Layout and saved state of the file do not change it."""
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        others = self.definition["added_tokens"][NUM_SPECIAL:]
        marked = [[token["content"], [flag for flag in flags if token.get(flag)]] for token in others]
        return self._fingerprint(sorted(token for token in marked if token[1]))

    @cached_property
    def earlier_fingerprint(self) -> str:
        """The fingerprint without the flags of added tokens, which older corpora record."""
        return self._fingerprint([])

    def _fingerprint(self, flags: list[Any]) -> str:
        model = self.definition["model"]
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        parts = [self.vocabulary, merges, self.definition.get("normalizer"), self.definition.get("pre_tokenizer")]
        return hashlib.sha256(json.dumps(parts + [flags] * bool(flags), sort_keys=True).encode()).hexdigest()

    @property
    def missing_bytes(self) -> list[int]:
        """Bytes that have no token; characters with such a byte are encoded as `<unk>`."""
        vocabulary = self.definition["model"]["vocab"]
        return sorted(set(range(256)) - {byte for token, byte in byte_alphabet().items() if token in vocabulary})

    @property
    def _added_tokens(self) -> dict[int, str]:
        """Id and text of the added tokens other than the special tokens of the stack."""
        tokens = self.backend.get_added_tokens_decoder()
        return {i: token.content for i, token in tokens.items() if token.content not in SPECIAL_TOKENS}

    @cached_property
    def cuts_at_spaces(self) -> bool:
        """Whether text can be cut as in `boundaries`: the tokenizer splits text exactly as the stack's does."""
        stack, own = (json.loads(backend.to_str()) for backend in (untrained_tokenizer(), self.backend))
        same = all(stack[part] == own[part] for part in ("normalizer", "pre_tokenizer"))
        return same and len(own["added_tokens"]) == NUM_SPECIAL and not self.dropout

    @cached_property
    def without_space(self) -> tokenizers.Tokenizer:
        """The backend without the space that it puts before a text, for a tokenizer that `cuts_at_spaces`."""
        definition = json.loads(self.backend.to_str())
        first, *others = definition["normalizer"]["normalizers"]
        assert first["type"] == "Prepend"
        definition["normalizer"]["normalizers"] = others
        backend = tokenizers.Tokenizer.from_str(json.dumps(definition))
        backend.encode_special_tokens = True
        return backend


def _with_special_tokens(definition: Any, origin: str) -> dict[str, Any]:
    """A copy of a definition in which the special tokens are added tokens, and have the names of the stack.

    Some published files do not list them there. Such a tokenizer would split the text `<mask>` into characters.
    """
    try:
        id_of_token = dict(definition["model"]["vocab"])
        model_type = definition["model"].get("type", "BPE")
        added = list(definition.get("added_tokens") or [])
        id_of_token |= {token["content"]: token["id"] for token in added}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{origin}: not a tokenizer file: it has no BPE vocabulary") from error
    if model_type != "BPE":
        raise UserError(f"{origin}: a {model_type} tokenizer; must be a byte-level BPE")

    found = {i: token for token, i in id_of_token.items() if isinstance(i, int) and i < NUM_SPECIAL}
    names = {found[i]: name for i, name in enumerate(SPECIAL_TOKENS) if found.get(i, name) != name}
    same_role = all(
        token in _OTHER_NAMES[SPECIAL_TOKENS.index(name)]
        if name in SPECIAL_TOKENS[: len(_OTHER_NAMES)]
        else _UNUSED_NAME.fullmatch(token)
        for token, name in names.items()
    )
    if names and same_role and len(found) == NUM_SPECIAL and id_of_token.keys().isdisjoint(names.values()):
        parts = ("added_tokens", "post_processor")
        model = {**definition["model"], "vocab": _renamed(definition["model"]["vocab"], names)}
        model["unk_token"] = names.get(model.get("unk_token"), model.get("unk_token"))
        renamed = {key: _renamed(definition[key], names) for key in parts if key in definition}
        return _with_special_tokens({**definition, "model": model, **renamed}, origin)
    first_names = " ".join(str(found.get(i, "(none)")) for i in range(NUM_SPECIAL))
    for i, name in enumerate(SPECIAL_TOKENS):
        if id_of_token.get(name) != i:
            problem = f"has id {id_of_token[name]}" if name in id_of_token else "is missing"
            raise UserError(
                f"{origin}: {name} {problem}, but must have id {i}: not a tokenizer for masked language models"
                f"\n  ids 0 to {NUM_SPECIAL - 1} are: {first_names}"
                f"\n  must be:          {' '.join(SPECIAL_TOKENS)}"
                "\n  rename the tokens in the file if they have these roles;"
                " otherwise train a tokenizer: `ltg-mdlm prepare` without --tokenizer"
            )
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": i, "content": name, **flags} for i, name in enumerate(SPECIAL_TOKENS)]
    others = [token for token in added if token["content"] not in SPECIAL_TOKENS]
    return {**definition, "added_tokens": special + others}


def _renamed(part: Any, names: dict[str, str]) -> Any:
    """A copy of a part of a tokenizer file in which tokens have other names."""
    if isinstance(part, dict):
        return {names.get(key, key): _renamed(value, names) for key, value in part.items()}
    if isinstance(part, list):
        return [_renamed(value, names) for value in part]
    return names.get(part, part) if isinstance(part, str) else part


def _for_text(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition that encodes text: only the special tokens of the stack are never found in a text.

    Other added tokens that are marked as special, such as `[CHI]`, are tokens of the text. A character that the
    vocabulary lacks is always `<unk>`; some files would drop it.
    """
    special, others = definition["added_tokens"][:NUM_SPECIAL], definition["added_tokens"][NUM_SPECIAL:]
    model = {**definition["model"], "unk_token": SPECIAL_TOKENS[UNK], "byte_fallback": False}
    return {**definition, "model": model, "added_tokens": special + [{**token, "special": False} for token in others]}


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
    def of(cls, vocabulary: Sequence[str], added: Mapping[int, str] | None = None) -> TokenText:
        """From a byte-level vocabulary in the order of its ids, and the text of added tokens by their id.

        Raises ValueError if a token is not byte-level, or the text of an added token is ambiguous.
        """
        byte_of = byte_alphabet()
        added = added or {}
        for text in added.values():
            # The library decodes such a token from the byte alphabet, although it stands for its own characters.
            if byte_of.keys() >= set(text) and bytes(map(byte_of.__getitem__, text)) != text.encode():
                raise ValueError(f"the added token {text!r} is also a sequence of bytes; remove it from added_tokens")
        try:
            plain = [
                added[i].encode() if i in added else bytes(byte_of[character] for character in token)
                for i, token in enumerate(vocabulary[NUM_SPECIAL:], NUM_SPECIAL)
            ]
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
