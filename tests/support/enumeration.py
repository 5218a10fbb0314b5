"""Expected losses of masked diffusion on a language small enough to enumerate, exactly, against its entropy.

The language is that of `ltg_mdlm.testing.enumeration`; weights, hazards and compensators come from the plugins' own
objects.

`python tests/support/enumeration.py` prints the table of expected losses.

Shapes: S pairs of (sequence, set of masked positions), L positions, V token types, N masked positions of all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from ltg_mdlm_plugins.frequency_masking import CorpusFrequencyMasking, Exponent, Weighting, scale_to_rate
from ltg_mdlm_plugins.objectives import DiffusionObjective, StateDependentBound, diffusion_weight
from ltg_mdlm_plugins.schedules import Linear
from torch import Tensor

from ltg_mdlm.api import Batch, Noise, NoiseSchedule, Step, Supervised
from ltg_mdlm.testing.enumeration import (
    ENTROPY,
    JOINT_Q,
    MASKED_SL,
    SEQUENCE_S,
    SEQUENCES_QL,
    TOKENS_SL,
    TYPES,
    StepAt,
    likelihood_of_masks,
    posterior,
    quadrature,
)

TYPE_WEIGHTS_V = torch.tensor([0.3, 0.8, 1.0], dtype=torch.float64)
"""Masking weights of the three types; their mean, 0.7, is mu."""

STEP = Step(seed=0, step=0, progress=0.0, epoch=0.0, rows=len(TOKENS_SL))
BATCH = Batch(
    ids_BT=TOKENS_SL,
    document_BT=torch.zeros_like(TOKENS_SL, dtype=torch.int32),
    position_BT=torch.full_like(TOKENS_SL, -1),
    maskable_BT=torch.ones_like(MASKED_SL),
    row_B=torch.arange(len(TOKENS_SL)),
)

Denoiser = Callable[[Tensor], Tensor]
"""Turns the true posterior [S, L, V] into what a model would say."""


def exact(posterior_SLV: Tensor) -> Tensor:
    """The best any model can do."""
    return posterior_SLV


def mixed(posterior_SLV: Tensor) -> Tensor:
    """A worse model: 20 % uniform."""
    return 0.8 * posterior_SLV + 0.2 / TYPES


def by_type_masking(weighting: Weighting) -> CorpusFrequencyMasking:
    """Frequency-informed masking over the corpus, with TYPE_WEIGHTS_V as its weights."""
    exponent = Exponent(1.0, "none", until=1.0, epochs=10, max_steps=10)
    share_V = torch.full((TYPES,), 1 / TYPES, dtype=torch.float64)
    return CorpusFrequencyMasking(-1, TYPE_WEIGHTS_V, share_V, exponent, weighting=weighting)


def type_probability(rate: Tensor, *, by_type: bool) -> Tensor:
    """float64[V]: masking probability of every type."""
    if not by_type:
        return rate.expand(TYPES)
    return scale_to_rate(1 - TYPE_WEIGHTS_V, 1 - TYPE_WEIGHTS_V.mean(), rate)


@dataclass(frozen=True)
class Pairs:
    """All masked positions at one noise level, as an objective sees them, with the probability of their pairs."""

    supervised: Supervised
    probability_N: Tensor
    log_probability_NV: Tensor
    """What the denoiser says."""

    @property
    def nll_N(self) -> Tensor:
        """Cross-entropy of every masked position."""
        return -self.log_probability_NV.gather(1, self.supervised.label_N.unsqueeze(1)).squeeze(1)


def pairs(rate: float, slope: float, denoiser: Denoiser, weighting: Weighting | None) -> Pairs:
    """Everything that can happen at one noise level; weighting None is uniform masking."""
    rate_S = torch.full((len(TOKENS_SL),), rate, dtype=torch.float64)
    noise = Noise(t_B=rate_S, rate_B=rate_S, slope_B=torch.full_like(rate_S, slope))
    hazards = (None, None) if weighting is None else by_type_masking(weighting).hazard(BATCH, noise, STEP)
    probability_QL = type_probability(rate_S[0], by_type=weighting is not None)[SEQUENCES_QL]
    probability_S = JOINT_Q[SEQUENCE_S] * likelihood_of_masks(probability_QL).flatten()
    row_N, column_N = MASKED_SL.nonzero(as_tuple=True)
    supervised = Supervised(
        label_N=TOKENS_SL[row_N, column_N],
        row_N=row_N,
        column_N=column_N,
        causal_N=torch.zeros_like(row_N, dtype=torch.bool),
        masked_N=torch.ones_like(row_N, dtype=torch.bool),
        rate_N=rate_S[row_N],
        realised_rate_N=rate_S[row_N],
        slope_N=noise.slope_B[row_N],
        hazard_N=1 / rate_S[row_N] if hazards[0] is None else hazards[0][row_N, column_N],
        hazard_by_type_BV=hazards[1],
    )
    said_NV = denoiser(posterior(probability_QL))[row_N, column_N]
    return Pairs(supervised, probability_S[row_N], said_NV.clamp(min=1e-300).log())


def expected_loss(pairs: Pairs, weighting: Weighting | None, power: float = 1.0) -> float:
    """Expectation of the objective's sum over a row at one noise level, in float64."""
    supervised = pairs.supervised
    if weighting == "exact":
        # The terms are linear in the slope, which can thus carry the probability.
        weighted = replace(supervised, slope_N=supervised.slope_N * pairs.probability_N)
        return float(StateDependentBound().loss_terms(pairs.log_probability_NV, weighted, STEP).sum())
    weight_N = diffusion_weight(supervised.slope_N, supervised.hazard_N, power)
    return float((pairs.probability_N * weight_N * pairs.nll_N).sum())


def loss_from_float32_weights(pairs: Pairs, power: float = 1.0) -> float:
    """The same as the trainer computes it, from `DiffusionObjective.weights`."""
    weight_N, _ = DiffusionObjective(power).weights(pairs.supervised, STEP)
    return float((pairs.probability_N * weight_N * pairs.nll_N).sum())


@dataclass(frozen=True)
class Level:
    """A noise level, and its share in an integral over levels."""

    rate: float
    slope: float
    measure: float


def levels(
    schedule: NoiseSchedule, breaks: Iterable[float] = (), panels: int = 1, progress: float = 0.0
) -> list[Level]:
    """Gauss-Legendre nodes in t, with panels that end at the given breaks."""
    t, measure = quadrature([0.0, *breaks, 1.0], panels)
    rate, slope = schedule.rate(t, progress), schedule.slope(t, progress)
    return [Level(*values) for values in zip(rate.tolist(), slope.tolist(), measure.tolist(), strict=True)]


def sampled_levels(schedule: NoiseSchedule, breaks: Iterable[float] = (), panels: int = 1) -> list[Level]:
    """Gauss-Legendre nodes in the schedule's own uniform draw, through its `sample`."""
    u, measure = quadrature([0.0, *breaks, 1.0], panels)
    noise = schedule.sample(BATCH, StepAt(seed=0, step=0, progress=0.0, epoch=0.0, rows=len(u), draw_B=u))
    return [Level(*v) for v in zip(noise.rate_B.tolist(), noise.slope_B.tolist(), measure.tolist(), strict=True)]


def integral(over: Iterable[Level], denoiser: Denoiser, weighting: Weighting | None, power: float = 1.0) -> float:
    """Expected loss of a row in nats; weighting None is uniform masking."""
    return sum(
        at.measure * expected_loss(pairs(at.rate, at.slope, denoiser, weighting), weighting, power) for at in over
    )


WEIGHTINGS: dict[str, Weighting | None] = {
    "uniform masking, 1 / gamma": None,
    "by type, hazard, cross-entropy only (token)": "token",
    "by type, 1 / gamma (row, published)": "row",
    "by type, hazard and compensator (exact)": "exact",
}


def enumeration_table() -> dict[str, tuple[float, float]]:
    """Expected loss under the linear schedule with the exact and with the mixed denoiser, by kind of weight."""
    over = levels(Linear(), breaks=[float(TYPE_WEIGHTS_V.mean())])
    return {name: (integral(over, exact, w), integral(over, mixed, w)) for name, w in WEIGHTINGS.items()}


def main() -> None:
    """Print the table."""
    print(f"entropy: {ENTROPY:.5f} nats per row\n")
    print(f"{'weight of a masked position':46}exact denoiser   20 % uniform")
    for name, losses in enumeration_table().items():
        cells = (f"{loss:.5f}{' < entropy' if loss < ENTROPY - 1e-8 else '':10}" for loss in losses)
        print(f"{name:46}{'  '.join(cells)}".rstrip())


if __name__ == "__main__":
    main()
