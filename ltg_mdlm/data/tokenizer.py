"""The byte-level BPE tokenizer of the stack: trained here, or read from an existing file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ltg_mdlm.data.special_tokens import NUM_SPECIAL, SPECIAL_TOKENS
from ltg_mdlm.data.token_text import TokenText
from ltg_mdlm.data.tokenizer_recipe import trained_definition, untrained_tokenizer
from ltg_mdlm.errors import UserError

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
