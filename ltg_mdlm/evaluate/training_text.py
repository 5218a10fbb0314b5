"""The text that a model was trained on, to be read once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ltg_mdlm.data import compressed
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.decoded import decoded_pieces
from ltg_mdlm.data.sources import Piece, find_sources, read_pieces
from ltg_mdlm.errors import UserError
from ltg_mdlm.progress import byte_progress


@contextmanager
def training_text(corpus: Path | None, files: Sequence[Path]) -> Iterator[Iterator[Piece]]:
    """The documents of a corpus folder's training split and of text files, with a progress bar on a terminal.

    Raises UserError if neither is given, or one of them cannot be read.
    """
    if corpus is None and not files:
        raise UserError("no training text: give the corpus folder with --corpus, or text files with --text")
    opened = Corpus.open(corpus) if corpus is not None else None
    sources = find_sources(files) if files else []
    total = (opened.train.text_bytes if opened else 0) + sum(source.stat().st_size for source in sources)
    known = not any(source.suffix in compressed.SUFFIXES for source in sources)
    with byte_progress("searching", total if known else None, show=sys.stderr.isatty()) as advance:

        def pieces() -> Iterator[Piece]:
            if opened is not None:
                yield from decoded_pieces(opened.train, opened.tokenizer)
            for source in sources:
                yield from read_pieces(source)

        def counted() -> Iterator[Piece]:
            for piece in pieces():
                yield piece
                advance(len(piece.text.encode()))

        yield counted()
