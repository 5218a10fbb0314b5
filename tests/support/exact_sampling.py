"""Sampling from the enumerable language with the exact denoiser, and the laws that the samples should follow.

Shapes: B rows, Q sequences, L positions, V token types, N positions to read, K steps, S states of a row: every position
is one of the types or masked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from ltg_mdlm.data.tokenizer import BOS, MASK, NUM_SPECIAL
from ltg_mdlm.inference.canvas import Canvas, Readout, Setting, Template
from ltg_mdlm.inference.sampling import draw_rows
from ltg_mdlm.inference.sampling_rule import RateSchedule, SamplingRule
from ltg_mdlm.testing.enumeration import JOINT_Q, LENGTH, SEQUENCES_QL, TYPES

GAPS = Template((BOS, *[MASK] * LENGTH))
HIDDEN = TYPES
"""A masked position in the enumeration of states."""
STATES_SL = torch.tensor(list(itertools.product(range(TYPES + 1), repeat=LENGTH)))
_IS_SEQUENCE_S = (STATES_SL < HIDDEN).all(1)

Tilt = Callable[[float], Tensor]
"""float64[V]: masking probability of every type at a mask rate; only its ratios matter."""


def uniform(rate: float) -> Tensor:
    """Masking that does not look at the token."""
    return torch.ones(TYPES, dtype=torch.float64)


def exact_posterior(states_BL: Tensor, masking_BV: Tensor) -> Tensor:
    """float64[B, L, V]: each token given the visible ones, and given that the others are masked with `masking_BV`."""
    hidden_BL = states_BL == HIDDEN
    agrees_BQ = ((states_BL[:, None] == SEQUENCES_QL) | hidden_BL[:, None]).all(2)
    evidence_BQ = torch.where(hidden_BL[:, None], masking_BV[:, SEQUENCES_QL], 1.0).prod(2)
    weight_BQ = agrees_BQ * evidence_BQ * JOINT_Q
    weight_BQ = weight_BQ / weight_BQ.sum(1, keepdim=True)
    return torch.einsum("bq,qlv->blv", weight_BQ, torch.nn.functional.one_hot(SEQUENCES_QL, TYPES).double())


class ExactDenoiser:
    """The best model there can be; would rather say a control token than anything else, if it were allowed to."""

    def __init__(self, block_length: int = 0) -> None:
        """With a `block_length`, it knows nothing of the blocks after that of the token."""
        self.block_length = block_length
        self.rows = 0
        self.told: list[Tensor] = []

    def __call__(self, ids_BT: Tensor, document_BT: Tensor | None, rate_B: Tensor) -> Readout:
        assert document_BT is None
        states_BL = torch.full((len(ids_BT), LENGTH), HIDDEN)  # columns that are cut off are unknown
        tokens = ids_BT[:, 1:]
        states_BL[:, : tokens.shape[1]] = torch.where(tokens == MASK, HIDDEN, tokens - NUM_SPECIAL)
        log_p_BLV = self.posterior(states_BL).log().float()
        logits_BLV = torch.cat([torch.full((*states_BL.shape, NUM_SPECIAL), 9.0), log_p_BLV], dim=2)
        self.rows += len(ids_BT)
        self.told.append(rate_B)
        return lambda row_N, column_N: logits_BLV[row_N, column_N - 1]

    def posterior(self, states_BL: Tensor) -> Tensor:
        """float64[B, L, V]: each token given the visible ones, of its own and earlier blocks if there are any."""
        masking_BV = uniform(1.0).expand(len(states_BL), -1)
        if not self.block_length:
            return exact_posterior(states_BL, masking_BV)
        given = []
        for place in range(LENGTH):  # `<s>` is the first token of the first block
            stop = ((place + 1) // self.block_length + 1) * self.block_length - 1
            later_L = torch.arange(LENGTH) >= stop
            given.append(exact_posterior(states_BL.masked_fill(later_L, HIDDEN), masking_BV)[:, place])
        return torch.stack(given, dim=1)


def draw(
    count: int, denoiser: ExactDenoiser | None = None, schedule: RateSchedule | None = None, **rule: Any
) -> tuple[Tensor, Canvas]:
    """(int64[Q] how often each sequence was drawn, the rows); keyword arguments make the `SamplingRule`."""
    denoiser = denoiser or ExactDenoiser()
    setting = Setting(predict=denoiser, rule=SamplingRule(**rule), ends=False, block_length=denoiser.block_length)
    canvas = draw_rows(GAPS, torch.arange(count), setting, schedule)
    place_L = TYPES ** torch.arange(LENGTH - 1, -1, -1)
    return ((canvas.ids_BT[:, 1:] - NUM_SPECIAL) * place_L).sum(1).bincount(minlength=len(JOINT_Q)), canvas


def exact_law(
    rates_K: Tensor,
    sigma: Callable[[float, float], float] = lambda s, t: 0.0,
    tilt: Tilt = uniform,
    *,
    by_type: bool = False,
) -> Tensor:
    """float64[Q]: what ancestral sampling draws with the exact denoiser; a Markov chain over the states of a row.

    `sigma`: probability that a visible token is masked in the step from s to t.  `by_type`: the reveal probabilities
    are those of the true reverse process of type-dependent masking, 1 - pi_v(t) / pi_v(s).
    """
    probability_S = (STATES_SL == HIDDEN).all(1).double()
    for t, s in reversed(list(itertools.pairwise(rates_K.tolist()))):
        again = sigma(s, t)
        share_V = (
            1 - tilt(t) / tilt(s)
            if by_type
            else torch.full((TYPES,), (s - t + (1 - s) * again) / s, dtype=torch.float64)
        )
        probability_S = probability_S @ _transition(exact_posterior(STATES_SL, tilt(s).expand(64, -1)), share_V, again)
    law_Q: Tensor = probability_S[_IS_SEQUENCE_S]
    return law_Q


def exact_law_of_blocks(steps_of_block: Sequence[int], block_length: int) -> Tensor:
    """float64[Q]: what block-wise ancestral sampling draws with the exact denoiser and equal steps in each block.

    A chain over the states of a row for every block in turn, in which the other positions stay as they are.
    """
    denoiser = ExactDenoiser(block_length)
    probability_S = (STATES_SL == HIDDEN).all(1).double()
    posterior_SLV = denoiser.posterior(STATES_SL)
    for block, steps in enumerate(steps_of_block):
        moves_L = (torch.arange(LENGTH) + 1) // block_length == block
        for step in range(steps, 0, -1):
            share_L = torch.where(moves_L, 1 / step, 0.0).double()
            probability_S = probability_S @ _transition(posterior_SLV, share_L[:, None], 0.0)
    law_Q: Tensor = probability_S[_IS_SEQUENCE_S]
    return law_Q


def _transition(posterior_SLV: Tensor, share_V: Tensor, again: float) -> Tensor:
    """float64[S, S]; positions move independently of each other."""
    revealed_SLV = posterior_SLV * share_V
    from_hidden_SLC = torch.cat([revealed_SLV, 1 - revealed_SLV.sum(2, keepdim=True)], dim=2)
    stays_SLV = (1 - again) * torch.nn.functional.one_hot(STATES_SL, TYPES + 1)[:, :, :TYPES].double()
    from_visible_SLC = torch.cat([stays_SLV, torch.full((*STATES_SL.shape, 1), again, dtype=torch.float64)], dim=2)
    is_hidden_SL1 = (STATES_SL == HIDDEN).unsqueeze(2)
    move_SLC = torch.where(is_hidden_SL1, from_hidden_SLC, from_visible_SLC)
    return torch.einsum("sa,sb,sc->sabc", *move_SLC.unbind(1)).flatten(1)


def law_of_the_likeliest_draw() -> Tensor:
    """float64[Q]: what MaskGIT's rule draws with the exact denoiser and one token per step.

    It draws a token for every gap, and keeps the one that was likeliest.
    """
    number = {tuple(state): i for i, state in enumerate(STATES_SL.tolist())}
    probability_S = torch.zeros(len(STATES_SL), dtype=torch.float64)
    probability_S[number[(HIDDEN,) * LENGTH]] = 1
    for _ in range(LENGTH):
        following_S = torch.zeros_like(probability_S)
        for i in probability_S.nonzero().flatten().tolist():
            state = STATES_SL[i]
            gaps = (state == HIDDEN).nonzero().flatten().tolist()
            posterior_GV = exact_posterior(state[None], uniform(1.0)[None])[0, gaps]
            for tokens in itertools.product(range(TYPES), repeat=len(gaps)):
                chance_G = posterior_GV[range(len(gaps)), tokens]
                kept = int(chance_G.argmax())
                after = state.clone()
                after[gaps[kept]] = tokens[kept]
                following_S[number[tuple(after.tolist())]] += probability_S[i] * chance_G.prod()
        probability_S = following_S
    return probability_S[_IS_SEQUENCE_S]


class ChiSquare(NamedTuple):
    """Pearson's test of counts against a distribution."""

    statistic: float
    freedom: int
    p: float


def chi_square(counts_Q: Tensor, law_Q: Tensor) -> ChiSquare:
    """Sequences that are expected less than five times are counted as one."""
    expected_Q = law_Q * counts_Q.sum()
    rare_Q = expected_Q < 5
    counts = [*counts_Q[~rare_Q].tolist(), *([int(counts_Q[rare_Q].sum())] if rare_Q.any() else [])]
    expected = [*expected_Q[~rare_Q].tolist(), *([float(expected_Q[rare_Q].sum())] if rare_Q.any() else [])]
    found = stats.chisquare(counts, expected)
    return ChiSquare(float(found.statistic), len(counts) - 1, float(found.pvalue))


def total_variation(one_Q: Tensor, other_Q: Tensor) -> float:
    """Half the sum of the differences of two distributions, or of two vectors of counts."""
    return float((one_Q / one_Q.sum() - other_Q / other_Q.sum()).abs().sum() / 2)
