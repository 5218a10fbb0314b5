"""Random masks for the diffusion bound of single texts, with common random numbers for texts that are compared.

Suffixes: P pairs of draws, J = 2 P draws, L scored tokens, T tokens per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.evaluate.encoding import Encoded

Draws = NDArray[np.float64]


def draw_masks(group: Sequence[Encoded], draws: int, seed: Sequence[int]) -> list[NDArray[np.bool_]]:
    """bool[J, T] for every text of a group: draw j masks k of the L scored tokens, with k uniform over 1 .. L.

    The draws are stratified over k.  Draws j and J - 1 - j are complementary: k and L + 1 - k tokens, the first and the
    last of one random order (see `ltg_mdlm.evaluate.likelihood`).  Texts of a group share the strata and, where their
    completions begin or end alike, the order.  `draws` is even; `seed` identifies the group.
    """
    assert draws % 2 == 0
    random = np.random.default_rng(seed)
    t_P = (np.arange(draws // 2) + random.random(draws // 2)) / draws
    masks = []
    for text, key_PL in zip(
        group, order_keys([text.ids[text.start :] for text in group], len(t_P), random), strict=True
    ):
        place_PL = key_PL.argsort(axis=1).argsort(axis=1)
        first_P1 = (t_P * text.scored).astype(np.int64)[:, None] + 1
        mask_JT = np.zeros((draws, len(text.ids)), dtype=np.bool_)
        mask_JT[: len(t_P), text.start :] = place_PL < first_P1
        mask_JT[len(t_P) :, text.start :] = (place_PL >= first_P1 - 1)[::-1]
        masks.append(mask_JT)
    return masks


def order_keys(completions: Sequence[tuple[int, ...]], pairs: int, random: np.random.Generator) -> list[Draws]:
    """float[P, L] for every completion, whose order is the order of masking; equal for tokens that correspond.

    Tokens correspond by their place from the left; if lengths differ, those of the common beginning and of the common
    end do.
    """
    longest = max(map(len, completions))
    left, right = random.random((2, pairs, longest))
    if all(len(ids) == longest for ids in completions):
        return [left] * len(completions)
    front = common_prefix(completions)
    back = common_prefix([ids[front:][::-1] for ids in completions])
    keys = []
    for ids in completions:
        own = random.random((pairs, len(ids) - front - back))
        keys.append(np.concatenate([left[:, :front], own, right[:, longest - back :]], axis=1))
    return keys


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))
