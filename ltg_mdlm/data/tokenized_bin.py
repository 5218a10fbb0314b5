"""Tokenised corpora of the existing stack: `torch.save` of a list of int16 tensors, one per document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.data.sources import sha256_of
from ltg_mdlm.data.tokenizer import Tokenizer

_ID_TYPES = (torch.int16, torch.int32, torch.int64)


def open_tokenized_bin(train: Path, tokenizer: Path, *, valid: Path | None = None) -> Corpus:
    """A corpus from `*_tokenized.bin` files, which are read into memory.  Raises UserError as `read_tokenized_bin`."""
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
    """Read a file into memory; words are found by decoding.

    Ids beyond 32767 stand in the files as negative numbers, which is undone if the vocabulary is that large.
    Raises UserError for a missing or other file, one without tokens, and ids that are not in the vocabulary.
    """
    path = Path(path)
    documents = _load(path)
    if tokenizer.vocab_size > np.iinfo(np.int16).max + 1:
        documents = [document.view(np.uint16) if document.dtype == np.int16 else document for document in documents]
    source = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    try:
        return Split.of(documents, tokenizer, sources=(source,))
    except UserError as error:
        raise UserError(f"{path}: {error}; was it made with another tokenizer?") from error


def _load(path: Path) -> list[np.ndarray[Any, np.dtype[Any]]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # whatever the unpickler stumbles over in a file of another kind
        raise UserError(f"{path}: not a tokenised corpus: torch.load cannot read it") from error
    if not isinstance(content, list) or not all(_is_document(item) for item in content):
        raise UserError(f"{path}: not a tokenised corpus: it holds something else than a list of documents' token ids")
    return [document.numpy() for document in content]


def _is_document(item: object) -> bool:
    return isinstance(item, torch.Tensor) and item.dim() == 1 and item.dtype in _ID_TYPES
