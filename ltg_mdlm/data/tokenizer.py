"""The sixteen ids that every vocabulary of the LTG stack begins with.

The byte-level BPE tokenizer of the stack: trained here, or read from an existing file.

What the tokens of a byte-level vocabulary look like as text, and where words begin in them.

Words are what `str.split` gives: runs without white space.  Suffixes: V vocabulary, N tokens.

The stack's byte-level BPE: how text is normalised and cut, and how the merges are learned.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.boundaries import UnitTable, join_units, plain_unit_ends

SPECIAL_TOKENS: Final = ("<unk>", "<s>", "</s>", "<pad>", "<mask>", *(f"<special_{i}>" for i in range(11)))
"""Text of the special tokens, in the order of their ids."""


UNK, BOS, EOS, PAD, MASK = range(5)


NUM_SPECIAL: Final = len(SPECIAL_TOKENS)
"""Ids below this one are special: never masked, never counted (16)."""


SMALLEST_VOCABULARY = NUM_SPECIAL + 256
"""The special tokens and the 256 bytes."""


class Tokenizer:
    """A `tokenizers` definition whose ids 0 to 15 are the special tokens.

    Attributes:
        definition: the JSON object of the tokenizer file
        backend: the library's tokenizer; special tokens written out in a text are ordinary text to it
        vocabulary: tokens in the order of their ids, in the byte alphabet
        token_text: text and word beginnings of every token type
    """

    def __init__(self, definition: dict[str, Any], *, origin: str = "tokenizer") -> None:
        """Take a definition, restoring special tokens that its `added_tokens` lack.

        Raises UserError, beginning with `origin`, for anything but a byte-level BPE with the stack's special tokens.
        """
        self.definition = _with_special_tokens(definition, origin)
        try:
            self.backend = tokenizers.Tokenizer.from_str(json.dumps(self.definition))
        except Exception as error:  # the library raises nothing more specific
            raise UserError(f"{origin}: not a tokenizer file: {error}") from error
        self.backend.encode_special_tokens = True
        self.vocabulary = _vocabulary(self.backend, origin)
        try:
            self.token_text = TokenText.of(self.vocabulary)
        except ValueError as error:
            raise UserError(f"{origin}: not a byte-level tokenizer: {error}") from error

    @classmethod
    def read(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer JSON file; raises UserError for one that is missing or not usable."""
        try:
            definition = json.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{path}: not a tokenizer file: it is not JSON") from error
        return cls(definition, origin=str(path))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from `texts`; equal texts give an equal tokenizer, in any order of the texts.

        The vocabulary stays smaller than `vocab_size` when the texts do not hold enough different pairs.
        Raises UserError when `vocab_size` has no room for the bytes.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise UserError(f"vocabulary of {vocab_size}: at least {SMALLEST_VOCABULARY} (bytes and special tokens)")
        return cls(trained_definition(texts, vocab_size))

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
        """The text of token ids; special tokens are left out."""
        return str(self.backend.decode(list(ids)))

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.vocabulary)

    @cached_property
    def tokens(self) -> list[str]:
        """Readable text of every token (`tokens_V`): special tokens by name, incomplete characters as U+FFFD."""
        plain = self.token_text.bytes_V[NUM_SPECIAL:]
        return [*SPECIAL_TOKENS, *(text.decode("utf-8", errors="replace") for text in plain)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the tokens of a text: equal for files that differ in layout or added tokens only."""
        model = self.definition["model"]
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        parts = [self.vocabulary, merges, self.definition.get("normalizer"), self.definition.get("pre_tokenizer")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def cuts_at_spaces(self) -> bool:
        """Whether `boundaries` holds: normaliser and pre-tokeniser are the stack's, and nothing else is matched."""
        ours, theirs = (json.loads(backend.to_str()) for backend in (untrained_tokenizer(), self.backend))
        same = all(ours[part] == theirs[part] for part in ("normalizer", "pre_tokenizer"))
        return same and len(theirs["added_tokens"]) == NUM_SPECIAL and not theirs["model"]["dropout"]


def _vocabulary(backend: tokenizers.Tokenizer, origin: str) -> list[str]:
    by_id = {i: token for token, i in backend.get_vocab(with_added_tokens=True).items()}
    if sorted(by_id) != list(range(len(by_id))):
        raise UserError(f"{origin}: the ids are not 0 to {len(by_id) - 1} without a gap")
    return [by_id[i] for i in range(len(by_id))]


def _with_special_tokens(definition: Any, origin: str) -> dict[str, Any]:
    """A copy in which the sixteen special tokens are added tokens.

    Some published files lack them there, and would split the text `<mask>` into characters.
    """
    try:
        ids = dict(definition["model"]["vocab"])
        is_bpe = definition["model"].get("type", "BPE") == "BPE"
        added = list(definition.get("added_tokens") or [])
        ids |= {token["content"]: token["id"] for token in added}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{origin}: not a tokenizer file: it has no BPE vocabulary") from error
    if not is_bpe:
        raise UserError(f"{origin}: a {definition['model']['type']} tokenizer; the stack's are byte-level BPE")
    for i, name in enumerate(SPECIAL_TOKENS):
        if ids.get(name) != i:
            found = f"has id {ids[name]}" if name in ids else "is missing"
            raise UserError(
                f"{origin}: {name} {found}, but must have id {i}: not a tokenizer for masked language models"
            )
    others = [token for token in added if token["content"] not in SPECIAL_TOKENS]
    return {**definition, "added_tokens": [*map(_added_token, SPECIAL_TOKENS), *others]}


def _added_token(name: str) -> dict[str, Any]:
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": SPECIAL_TOKENS.index(name), "content": name, **switches, "special": True}


_BLANK = rb"\t-\r\x1c-\x20"  # what `str.split` takes for white space among the ASCII characters


_WORD_INSIDE = re.compile(rb"[" + _BLANK + rb"][^" + _BLANK + rb"]")


_BLANK_BYTES = bytes([*range(9, 14), *range(28, 33)])


def byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary (the table of GPT-2).

    Visible Latin-1 characters stand for themselves, the other bytes for the characters from U+0100 on.
    """
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = (byte for byte in range(256) if byte not in visible)
    return {chr(byte): byte for byte in sorted(visible)} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


@dataclass(frozen=True, slots=True)
class TokenText:
    """Text of every token type, and what it says about words."""

    bytes_V: tuple[bytes, ...]
    """The text that a token stands for; empty for special tokens."""
    length_V: NDArray[np.int64]
    """Bytes of each."""
    opens_word_V: NDArray[np.bool_]
    """A word begins inside the token, behind white space that belongs to the token."""
    starts_solid_V: NDArray[np.bool_]
    """The token's first byte is not white space."""
    ends_blank_V: NDArray[np.bool_]
    """The token's last byte is white space, or the token is special."""

    @classmethod
    def of(cls, vocabulary: Sequence[str]) -> TokenText:
        """From the tokens of a byte-level vocabulary in the order of their ids; raises ValueError if it is none."""
        alphabet = byte_alphabet()
        try:
            plain = [bytes(alphabet[character] for character in token) for token in vocabulary[NUM_SPECIAL:]]
        except KeyError as error:
            raise ValueError(f"{error.args[0]!r} in its vocabulary stands for no byte") from error
        bytes_V = (b"",) * NUM_SPECIAL + tuple(plain)
        return cls(
            bytes_V=bytes_V,
            length_V=np.array([len(text) for text in bytes_V]),
            opens_word_V=np.array([bool(_WORD_INSIDE.search(text)) for text in bytes_V]),
            starts_solid_V=np.array([text[:1] not in _BLANK_BYTES for text in bytes_V]),
            ends_blank_V=np.array([text[-1:] in _BLANK_BYTES for text in bytes_V]),
        )

    def word_starts(self, ids_N: NDArray[np.integer], first_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool[N]: a word's first character is in this token; `first_N` marks tokens at which a text begins."""
        behind_blank_N = np.roll(self.ends_blank_V[ids_N], 1) | first_N
        starts: NDArray[np.bool_] = self.opens_word_V[ids_N] | (behind_blank_N & self.starts_solid_V[ids_N])
        return starts

    def text_bytes(self, ids_N: NDArray[np.integer], first_N: NDArray[np.bool_]) -> int:
        """UTF-8 bytes of the decoded text, which lacks the blanks put before texts and behind newlines."""
        starts_blank_V = np.array([text.startswith(b" ") for text in self.bytes_V])
        ends_line_V = np.array([text.endswith(b"\n") for text in self.bytes_V])
        broken_V = np.array([text.count(b"\n ") for text in self.bytes_V])
        added_N = starts_blank_V[ids_N] & (first_N | np.roll(ends_line_V[ids_N], 1))
        return int(self.length_V[ids_N].sum() - broken_V[ids_N].sum() - np.count_nonzero(added_N))


_WORDS_AND_SIGNS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


_LONGEST_TOKEN = 24  # bytes


def untrained_tokenizer() -> tokenizers.Tokenizer:
    """The stack's tokenizer without a vocabulary."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False, ignore_merges=True))
    lines = [normalizers.Replace(Regex("\n"), "\n "), normalizers.Replace(Regex(" *\n"), "\n")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(" "), normalizers.NFKC(), *lines])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS_AND_SIGNS), behavior="isolated"),
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


def trained_definition(texts: Iterable[str], vocab_size: int) -> dict[str, Any]:
    """The JSON object of a tokenizer file, its merges learned from `texts`, which may be parts cut at safe places.

    The trainer counts words and looks at nothing else. It gets them ready-made, separated by spaces, which gives the
    same merges in half the time: most words are looked up, and not normalised and cut again.
    """
    counter = tokenizers.Tokenizer(models.BPE())
    counter.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # a pair seen once is no regularity
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    counter.train_from_iterator(_PreTokens().lines(texts), trainer)
    definition: dict[str, Any] = json.loads(untrained_tokenizer().to_str())
    learned = json.loads(counter.to_str())["model"]
    definition["model"] |= {"vocab": learned["vocab"], "merges": learned["merges"]}
    return definition


class _PreTokens:
    """The parts that the stack's pre-tokeniser cuts text into, in the byte alphabet, which has no blanks."""

    def __init__(self) -> None:
        self._backend = untrained_tokenizer()
        self._units = UnitTable(self._of_plain, self._of_other)

    def lines(self, texts: Iterable[str]) -> Iterator[str]:
        """One line for each text: its parts, separated by spaces."""
        return (" ".join(self._units.values(text)) for text in texts)

    def _cut(self, text: str) -> list[str]:
        normalised = self._backend.normalizer.normalize_str(text)
        return [part for part, _ in self._backend.pre_tokenizer.pre_tokenize_str(normalised)]

    def _of_plain(self, units: Sequence[str]) -> list[str]:
        parts = self._cut(join_units(units))
        ends = plain_unit_ends(units, np.array([len(part) for part in parts], np.int64))
        return [" ".join(parts[start:end]) for start, end in pairwise([0, *ends.tolist()])]

    def _of_other(self, units: Sequence[str]) -> list[str]:
        """The last part of a unit that ends a line is the space that the normaliser puts behind it."""
        parts = map(self._cut, units)
        return [" ".join(cut[:-1] if unit.endswith("\n") else cut) for unit, cut in zip(units, parts, strict=True)]
