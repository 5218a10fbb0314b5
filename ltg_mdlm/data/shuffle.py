"""Permutations that are a function of a few integers, the same on every machine and with every library version."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """int64[count]: the numbers below `count` in an order that depends on `key` alone.

    They are sorted by SplitMix64 (Steele, Lea, Flood 2014) of key and number; equal hashes stay in order.
    """
    seed = 0
    for part in key:
        seed = _mixed_int((seed + _GAMMA) ^ (part & _MASK))
    hash_N = _mixed(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(seed))
    return np.argsort(hash_N, kind="stable")


def _mixed(word_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64, in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word_N ^= word_N >> np.uint64(shift)
        word_N *= np.uint64(factor)
    word_N ^= word_N >> np.uint64(31)
    return word_N


def _mixed_int(word: int) -> int:
    return int(_mixed(np.array([word & _MASK], np.uint64))[0])
