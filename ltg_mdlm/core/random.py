"""Counter-based random numbers: functions of where they are used, without a stateful generator.

A draw hashes (seed, step, stream, row of the global batch, column) with integer arithmetic.  It is therefore the same
on CPU and CUDA, for any number of ranks and any split into micro-batches, and checkpoints need not save a generator.

Two hashes are used.  Draws on the device use the 32-bit finaliser "lowbias32" by C. Wellons.  Orders of documents and
rows, made with NumPy on the CPU, use 64-bit SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK_32 = (1 << 32) - 1
_MASK_64 = (1 << 64) - 1
_GOLDEN_32 = 0x9E3779B9
_GOLDEN_64 = 0x9E3779B97F4A7C15
"""2^32 and 2^64 divided by the golden ratio."""


def stream_key(*parts: int | str) -> tuple[int, int]:
    """Two 32-bit keys of a stream of draws; equal on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def hash_bits(key: tuple[int, int], row_B: Tensor, cols: int) -> Tensor:
    """int64[B, cols]: 32 pseudo-random bits for each (row, column)."""
    first, second = key
    row_B1 = (row_B.to(torch.int64) & _MASK_32).unsqueeze(1)
    low_B1 = _lowbias32(_lowbias32(row_B1 ^ first) ^ second)
    high_B1 = _lowbias32((low_B1 + _GOLDEN_32) & _MASK_32)
    column_1C = torch.arange(cols, device=row_B.device).unsqueeze(0)
    return _lowbias32(_lowbias32(column_1C ^ low_B1) ^ high_B1)


def uniform(key: tuple[int, int], row_B: Tensor, cols: int) -> Tensor:
    """float32[B, cols], uniform in the open interval (0, 1): odd multiples of 2^-24, which float32 represents exactly.

    A draw is never 0, so `u < p` masks nothing if p is far below 2^-24.  A token that is masked at such a rate would
    have the weight 1 / p and dominate its batch.
    """
    return ((hash_bits(key, row_B, cols) >> 8) | 1).to(torch.float32) * 2.0**-24


def integers(key: tuple[int, int], row_B: Tensor, cols: int, n: int) -> Tensor:
    """int64[B, cols], uniform in 0 .. n - 1, for n up to 2^31; probabilities differ from 1 / n by less than 2^-32."""
    return (hash_bits(key, row_B, cols) * n) >> 32


def uniform_open(key: tuple[int, int], row_B: Tensor) -> Tensor:
    """float64[B], uniform in the open interval (0, 1)."""
    return _as_uniform(hash_bits(key, row_B, 1).squeeze(1))


def gumbel(key: tuple[int, int], row_B: Tensor, cols: int) -> Tensor:
    """float64[B, cols] from the standard Gumbel distribution: -log(-log u) with 32-bit uniform u.

    The argmax of log-probabilities plus Gumbel noise is a sample from the distribution.  With float32 it is not: u has
    24 bits, so the noise ends at 16.6 and unlikely tokens are sampled too rarely (arXiv 2409.02908).  Here it ends at
    22.9.
    """
    return -torch.log(-torch.log(_as_uniform(hash_bits(key, row_B, cols))))


def permutation(key: tuple[int, int], size: int, device: torch.device) -> Tensor:
    """int64[size]: the position of each of `size` rows in a random order; a permutation of 0 .. size - 1."""
    bits = hash_bits(key, torch.arange(size, device=device), 1).squeeze(1)
    # Equal keys are rare; a stable sort orders them in the same way on every device.
    order = torch.argsort(bits, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(size, device=device)
    return place


def shuffled(count: int, *key: int) -> NDArray[np.int64]:
    """int64[count]: the numbers below `count` in a random order, a function of `key`.

    The numbers are sorted by a hash of key and number, with a stable sort.  The order is therefore the same on every
    machine and with every version of NumPy.
    """
    seed = 0
    for part in key:
        word = ((seed + _GOLDEN_64) ^ (part & _MASK_64)) & _MASK_64
        seed = int(_splitmix64(np.array([word], np.uint64))[0])
    hash_N = _splitmix64(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN_64) + np.uint64(seed))
    return np.argsort(hash_N, kind="stable")


def _as_uniform(bits: Tensor) -> Tensor:
    """float64 in the open interval (0, 1), from 32 bits."""
    return (bits.to(torch.float64) + 0.5) * 2.0**-32


def _lowbias32(x: Tensor) -> Tensor:
    """A bijection of 32-bit values (held in int64): each input bit flips each output bit about half the time."""
    # The product of two 32-bit values overflows int64, but its low 32 bits are correct, and only those are kept.
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK_32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK_32
    return x ^ (x >> 16)


def _splitmix64(word_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64, in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word_N ^= word_N >> np.uint64(shift)
        word_N *= np.uint64(factor)
    word_N ^= word_N >> np.uint64(31)
    return word_N
