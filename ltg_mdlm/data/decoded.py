"""The text of a tokenised corpus."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ltg_mdlm.data.corpus import Split
from ltg_mdlm.data.sources import Piece
from ltg_mdlm.data.tokenizer import Tokenizer

_TOKENS_AT_ONCE = 1 << 18


def decoded_pieces(split: Split, tokenizer: Tokenizer) -> Iterator[Piece]:
    """The documents of a split, long ones in pieces that end with a blank.

    The text is as the tokenizer has normalised it, with the blank that it puts before texts and lines; bytes that are
    no UTF-8 come as U+FFFD.
    """
    for start, stop in pairwise(split.offsets.tolist()):
        rest, opens = b"", True
        for first in range(start, stop, _TOKENS_AT_ONCE):
            last = min(first + _TOKENS_AT_ONCE, stop)
            text = rest + b"".join(map(tokenizer.token_text.bytes_V.__getitem__, split.tokens[first:last].tolist()))
            cut = len(text) if last == stop else max(text.rfind(b" "), text.rfind(b"\n")) + 1
            if cut:
                yield Piece(text[:cut].decode("utf-8", errors="replace"), opens)
                opens = False
            rest = text[cut:]
