"""Real text in the shape of samples, by which the figures of samples can be read."""

from __future__ import annotations

import numpy as np

from ltg_mdlm.data.corpus import Split

MOST_DRAWS = 5


def reference_draws(split: Split, count: int, length: int, seed: int) -> list[list[tuple[int, ...]]]:
    """Up to five draws of `count` beginnings of documents, at most `length` tokens each; no document occurs twice.

    Documents that are long enough are preferred, as samples are of full length, too; one draw is made in any case, of
    fewer beginnings if there are not so many documents.
    """
    length_D = np.diff(split.offsets)
    shuffled_D = np.random.default_rng(seed).permutation(split.num_documents)
    long_D = shuffled_D[length_D[shuffled_D] >= length]
    chosen_D = long_D if len(long_D) >= count else shuffled_D[np.argsort(-length_D[shuffled_D], kind="stable")]
    draws = max(1, min(MOST_DRAWS, len(chosen_D) // count if chosen_D is long_D else 1))
    return [
        [_beginning(split, document, length) for document in chosen_D[first : first + count].tolist()]
        for first in range(0, draws * count, count)
    ]


def _beginning(split: Split, document: int, length: int) -> tuple[int, ...]:
    start, stop = split.offsets[document : document + 2].tolist()
    return tuple(split.tokens[start : min(stop, start + length)].tolist())
