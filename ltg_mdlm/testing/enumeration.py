"""A language that can be enumerated: three token types, rows of three tokens, an explicit joint distribution.

At a mask rate, expectations are sums over all 27 sequences and 8 sets of masked positions. Integrals over mask rates
use Gauss-Legendre quadrature.

Shapes: Q sequences, M sets of masked positions, S pairs of both, L positions, V token types.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltg_mdlm.core.batch import Batch, Step

TYPES, LENGTH = 3, 3
"""Token types, and tokens of a row."""

SEQUENCES_QL = torch.tensor(list(itertools.product(range(TYPES), repeat=LENGTH)))
"""All sequences."""

JOINT_Q = torch.from_numpy(np.random.default_rng(0).dirichlet([0.5] * TYPES**LENGTH))
"""Probability of every sequence."""

ENTROPY = float(-(JOINT_Q * JOINT_Q.log()).sum())
"""Entropy of the language, in nats per row."""

SEQUENCE_S = torch.arange(len(SEQUENCES_QL)).repeat_interleave(2**LENGTH)
"""Index of the sequence of every pair."""

TOKENS_SL = SEQUENCES_QL[SEQUENCE_S]
"""Tokens of the sequence of every pair."""

MASKED_SL = torch.tensor(list(itertools.product([False, True], repeat=LENGTH))).repeat(len(SEQUENCES_QL), 1)
"""Whether each position of every pair is masked."""


def likelihood_of_masks(probability_QL: Tensor) -> Tensor:
    """float64[Q, M]: probability of every set of masked positions given the sequence, with independent masks."""
    probability_SL = probability_QL[SEQUENCE_S]
    factors_SL = torch.where(MASKED_SL, probability_SL, 1 - probability_SL)
    return factors_SL.prod(1).view(len(SEQUENCES_QL), -1)


def posterior(probability_QL: Tensor) -> Tensor:
    """float64[S, L, V]: distribution of every token given the visible tokens and the masked positions."""
    masks_QM = likelihood_of_masks(probability_QL)
    visible_SQL = (TOKENS_SL.unsqueeze(1) == SEQUENCES_QL) | MASKED_SL.unsqueeze(1)
    set_S = torch.arange(len(TOKENS_SL)) % masks_QM.shape[1]
    weight_SQ = visible_SQL.all(2) * JOINT_Q * masks_QM[:, set_S].T
    weight_SQ = weight_SQ / weight_SQ.sum(1, keepdim=True).clamp(min=1e-300)
    one_hot_QLV = torch.nn.functional.one_hot(SEQUENCES_QL, TYPES).double()
    return torch.einsum("sq,qlv->slv", weight_SQ, one_hot_QLV)


def quadrature(edges: Sequence[float], panels: int, nodes: int = 24) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre rules on the intervals between the edges, each divided into equal panels."""
    node, weight = np.polynomial.legendre.leggauss(nodes)
    cuts = [np.linspace(a, b, panels + 1) for a, b in itertools.pairwise(edges)]
    low, high = np.concatenate([c[:-1] for c in cuts])[:, None], np.concatenate([c[1:] for c in cuts])[:, None]
    places, weights = (low + high) / 2 + (high - low) / 2 * node, (high - low) / 2 * weight
    return torch.from_numpy(places.ravel()), torch.from_numpy(weights.ravel())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAt(Step):
    """A step with given stratified draws."""

    draw_B: Tensor

    def stratified(self, batch: Batch, stream: str, cols: int = 1) -> Tensor:
        """The given draws, in every column."""
        return self.draw_B if cols == 1 else self.draw_B.unsqueeze(1).expand(-1, cols)
