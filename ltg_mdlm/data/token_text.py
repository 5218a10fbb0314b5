"""What the tokens of a byte-level vocabulary look like as text, and where words begin in them.

Words are what `str.split` gives: runs without white space.  Suffixes: V vocabulary, N tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.data.special_tokens import NUM_SPECIAL

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
