"""Tokenised corpora of the existing stack: `torch.save` of a list of int16 tensors, one for each document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.data.sources import sha256_of
from ltg_mdlm.data.tokenizer import Tokenizer

_ID_TYPES = (torch.int16, torch.int32, torch.int64)

_MIN_TOKENS = 200
"""In fewer tokens a file of another tokenizer cannot be recognised."""

_SAME_TOKENS = 0.97
"""Share of the tokens that encoding the decoded text must give back. With its own tokenizer, text of BabyLM has a share
of 1.00, except at places where a document was cut. With tokenizers trained on other parts it is 0.16 to 0.95."""


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
        UserError: a missing file, a file of another kind, a file without tokens, an id that is not in the vocabulary,
            or tokens that another tokenizer made.
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
    if tokenizer.vocab_size > 1 << 16 and any(document.dtype == np.int16 for document in documents):
        raise UserError(
            f"{path}: int16 cannot hold the ids of a vocabulary of {tokenizer.vocab_size}; prepare the text instead"
        )
    if tokenizer.vocab_size > np.iinfo(np.int16).max + 1:
        documents = [document.view(np.uint16) if document.dtype == np.int16 else document for document in documents]
    source = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    try:
        split = Split.of(documents, tokenizer, sources=(source,))
    except UserError as error:
        raise UserError(f"{path}: {error}; was it made with another tokenizer?") from error
    tokens, same = tokens_given_back(documents, tokenizer)
    if tokens >= _MIN_TOKENS and same < _SAME_TOKENS * tokens and not tokenizer.dropout:
        raise UserError(
            f"{path}: made with another tokenizer: only {same / tokens:.0%} of its tokens are those of its text"
        )
    return split


def tokens_given_back(documents: Sequence[NDArray[Any]], tokenizer: Tokenizer) -> tuple[int, int]:
    """The number of tokens in a sample of documents, and how many of them encoding their decoded text gives back."""
    sample = [document[:512].tolist() for document in documents[:: -(-len(documents) // 64)]]
    same = sum((Counter(ids) & Counter(tokenizer.encode(tokenizer.decode(ids)))).total() for ids in sample)
    return sum(map(len, sample)), same
