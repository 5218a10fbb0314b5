"""Counter-based uniforms: random numbers that are a function of where they are used.

Every draw hashes (seed, step, stream, global row, column) in 32-bit integer arithmetic, so that it is the same on CPU
and CUDA, for any number of ranks and any split into micro-batches, and nothing has to be saved to resume.

The finaliser is the 32-bit xor-shift-multiply permutation with low avalanche bias by C. Wellons ("lowbias32").

Permutations that are a function of a few integers, the same on every machine and with every library version.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit values (held in int64): each input bit flips each output bit about half the time."""
    # A 32-bit by 32-bit product wraps in int64, which leaves its low 32 bits intact; only those are kept.
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def stream_key(*parts: int | str) -> tuple[int, int]:
    """Two 32-bit keys that identify a stream of draws; equal on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def hash_bits(key: tuple[int, int], row_B: Tensor, cols: int) -> Tensor:
    """int64[B, cols]: 32 pseudo-random bits for each (row, column)."""
    first, second = key
    row_B1 = (row_B.to(torch.int64) & _MASK).unsqueeze(1)
    low_B1 = _mix(_mix(row_B1 ^ first) ^ second)
    high_B1 = _mix((low_B1 + 0x9E3779B9) & _MASK)
    column_1C = torch.arange(cols, device=row_B.device).unsqueeze(0)
    return _mix(_mix(column_1C ^ low_B1) ^ high_B1)


def uniform(key: tuple[int, int], row_B: Tensor, cols: int) -> Tensor:
    """float32[B, cols] in the open interval (0, 1): odd multiples of 2^-24, which float32 holds exactly.

    Never 0, so that with `u < p` a probability far below 2^-24 masks nothing; a token masked at such a rate would weigh
    1 / p and swamp its batch.
    """
    return ((hash_bits(key, row_B, cols) >> 8) | 1).to(torch.float32) * 2.0**-24


def uniform_open(key: tuple[int, int], row_B: Tensor) -> Tensor:
    """float64[B] in the open interval (0, 1)."""
    return (hash_bits(key, row_B, 1).squeeze(1).to(torch.float64) + 0.5) * 2.0**-32


def gumbel(key: tuple[int, int], row_B: Tensor, cols: int) -> Tensor:
    """float64[B, cols] from the standard Gumbel distribution: -log(-log u) of 32-bit uniforms.

    The argmax of log-probabilities plus such noise is a draw from them.  In float32 it is not: u has 24 bits there, so
    that the noise ends at 16.6 and unlikely tokens are drawn too rarely (arXiv 2409.02908).  Here it ends at 22.9.
    """
    u = (hash_bits(key, row_B, cols).to(torch.float64) + 0.5) * 2.0**-32
    return -torch.log(-torch.log(u))


def permutation(key: tuple[int, int], size: int, device: torch.device) -> Tensor:
    """int64[size]: the place of each of `size` rows in a random order; a permutation of 0 .. size - 1."""
    bits = hash_bits(key, torch.arange(size, device=device), 1).squeeze(1)
    # Stable, so that the (rare) equal keys are ordered alike on every device.
    order = torch.argsort(bits, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(size, device=device)
    return place


_MASK64 = (1 << 64) - 1


_GAMMA = 0x9E3779B97F4A7C15


def shuffled(count: int, *key: int) -> NDArray[np.int64]:
    """int64[count]: the numbers below `count` in an order that depends on `key` alone.

    They are sorted by SplitMix64 (Steele, Lea, Flood 2014) of key and number; equal hashes stay in order.
    """
    seed = 0
    for part in key:
        seed = _mixed_int((seed + _GAMMA) ^ (part & _MASK64))
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
    return int(_mixed(np.array([word & _MASK64], np.uint64))[0])
