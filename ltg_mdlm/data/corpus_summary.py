"""What a corpus holds, by source: sizes, fertility, unknown and repeated text, lengths, and a sample.

Suffixes: N tokens, D documents.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.data.tokenizer import UNK

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

SAMPLE_CHARACTERS = 100

_TOKENS_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """What one source holds in a split."""

    source: str
    documents: int
    words: int
    tokens: int
    bytes: int
    """Size in UTF-8 after the tokenizer's normalisation"""
    unknown: int
    """Tokens `<unk>`"""
    duplicates: int
    """Documents with the tokens of an earlier one of the split"""
    length_D: NDArray[np.int64]
    """Tokens of each document"""
    sample: str
    """The beginning of the document in the middle"""

    @property
    def fertility(self) -> float:
        """Tokens per word; NaN without words."""
        return self.tokens / self.words if self.words else float("nan")

    def to_json(self) -> dict[str, Any]:
        """The summary as plain values; lengths as quantiles."""
        quantiles = np.quantile(self.length_D, QUANTILES) if self.documents else np.zeros(len(QUANTILES))
        return {
            "source": self.source,
            "documents": self.documents,
            "words": self.words,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "tokens_per_word": round(self.fertility, 4) if self.words else None,
            "unknown_share": self.unknown / max(self.tokens, 1),
            "duplicate_share": self.duplicates / max(self.documents, 1),
            "length_quantiles": {str(q): float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
            "sample": self.sample,
        }


def summarise(corpus: Corpus, split: Split) -> list[SourceSummary]:
    """A summary of every source that has documents in the split, in the order of their names."""
    source_D = np.zeros(split.num_documents, np.int64) if split.source_D is None else split.source_D.astype(np.int64)
    names = split.source_names or ("all",)
    length_D = np.diff(split.offsets)
    unknown_D, bytes_D, duplicate_D = _measured(corpus, split)
    summaries = []
    for number, name in enumerate(names):
        chosen = np.flatnonzero(source_D == number)
        if not len(chosen):
            continue
        middle = int(chosen[len(chosen) // 2])
        start = int(split.offsets[middle])
        beginning = split.tokens[start : min(int(split.offsets[middle + 1]), start + SAMPLE_CHARACTERS)]
        sample = " ".join(corpus.tokenizer.decode(beginning.tolist()).split())
        summaries.append(
            SourceSummary(
                source=name,
                documents=len(chosen),
                words=int(split.words[chosen].sum(dtype=np.int64)),
                tokens=int(length_D[chosen].sum()),
                bytes=int(bytes_D[chosen].sum()),
                unknown=int(unknown_D[chosen].sum()),
                duplicates=int(duplicate_D[chosen].sum()),
                length_D=length_D[chosen],
                sample=sample[:SAMPLE_CHARACTERS],
            )
        )
    return summaries


def _measured(corpus: Corpus, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Unknown tokens and bytes of every document, and whether it has the tokens of an earlier one."""
    unknown_D, bytes_D = (np.zeros(split.num_documents, np.int64) for _ in range(2))
    duplicate_D = np.zeros(split.num_documents, bool)
    seen: set[bytes] = set()
    text = corpus.tokenizer.token_text
    starts_space_V = np.array([part.startswith(b" ") for part in text.bytes_V])
    ends_line_V = np.array([part.endswith(b"\n") for part in text.bytes_V])
    size_V = text.length_V - np.array([part.count(b"\n ") for part in text.bytes_V])
    first = 0
    while first < split.num_documents:
        start = int(split.offsets[first])
        last = max(first + 1, int(np.searchsorted(split.offsets, start + _TOKENS_AT_ONCE, side="right")) - 1)
        ids_N = np.asarray(split.tokens[start : split.offsets[last]])
        bound_D = split.offsets[first:last] - start
        first_N = np.zeros(len(ids_N), bool)
        first_N[bound_D] = True
        added_N = starts_space_V[ids_N] & (first_N | np.roll(ends_line_V[ids_N], 1))  # by the normaliser
        unknown_D[first:last] = np.add.reduceat(ids_N == UNK, bound_D, dtype=np.int64)
        bytes_D[first:last] = np.add.reduceat(size_V[ids_N] - added_N, bound_D, dtype=np.int64)
        for number, document in enumerate(np.split(ids_N, bound_D[1:]), first):
            digest = hashlib.blake2b(document.tobytes(), digest_size=16).digest()
            duplicate_D[number] = digest in seen
            seen.add(digest)
        first = last
    return unknown_D, bytes_D, duplicate_D
