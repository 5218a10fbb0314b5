"""Tokenised corpora of the existing stack: `torch.save` of a list of int16 tensors, one for each document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.data.sources import sha256_of
from ltg_mdlm.data.tokenizer import Tokenizer

_ID_TYPES = (torch.int16, torch.int32, torch.int64)


def open_tokenized_bin(train: Path, tokenizer: Path, *, valid: Path | None = None) -> Corpus:
    """A corpus from `*_tokenized.bin` files, in memory. Raises UserError as `read_tokenized_bin` does."""
    own = Tokenizer.read(tokenizer)
    return Corpus(
        path=Path(train).parent,
        tokenizer_path=Path(tokenizer),
        tokenizer=own,
        train=read_tokenized_bin(train, own),
        valid=read_tokenized_bin(valid, own) if valid is not None else None,
        description={"tokenizer": {"fingerprint": own.fingerprint, "vocab_size": own.vocab_size}},
    )


def read_tokenized_bin(path: str | Path, tokenizer: Tokenizer) -> Split:
    """Read a file into memory. Words are found by decoding the tokens.

    The files store ids above 32767 as negative int16; they are converted back if the vocabulary is that large.

    Raises:
        UserError: a missing file, a file of another kind, a file without tokens, or an id that is not in the
            vocabulary.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # the unpickler raises many types of exception for a file of another kind
        raise UserError(f"{path}: not a tokenised corpus: torch.load cannot read it") from error
    if not isinstance(content, list) or not all(
        isinstance(item, torch.Tensor) and item.dim() == 1 and item.dtype in _ID_TYPES for item in content
    ):
        raise UserError(f"{path}: not a tokenised corpus: it is not a list of the token ids of documents")
    documents = [document.numpy() for document in content]
    if tokenizer.vocab_size > np.iinfo(np.int16).max + 1:
        documents = [document.view(np.uint16) if document.dtype == np.int16 else document for document in documents]
    source = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    try:
        return Split.of(documents, tokenizer, sources=(source,))
    except UserError as error:
        raise UserError(f"{path}: {error}; was it made with another tokenizer?") from error
