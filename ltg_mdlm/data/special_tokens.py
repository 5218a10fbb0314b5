"""The sixteen ids that every vocabulary of the LTG stack begins with."""

from __future__ import annotations

from typing import Final

SPECIAL_TOKENS: Final = ("<unk>", "<s>", "</s>", "<pad>", "<mask>", *(f"<special_{i}>" for i in range(11)))
"""Text of the special tokens, in the order of their ids."""

UNK, BOS, EOS, PAD, MASK = range(5)
NUM_SPECIAL: Final = len(SPECIAL_TOKENS)
"""Ids below this one are special: never masked, never counted (16)."""
