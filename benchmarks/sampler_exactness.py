"""Deviation of samplers from the joint distribution, on a language small enough to enumerate.

    python benchmarks/sampler_exactness.py --write docs/generation.md

The language has 27 sequences of 3 tokens (`ltg_mdlm.testing.enumeration`).  The denoiser is exact, so all deviations
come from the sampler.  Laws (exact distributions) are computed by a Markov chain over the states of a row; samples are
drawn by the samplers of the package.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ltg_mdlm_plugins.frequency_masking import scale_to_rate
from ltg_mdlm_plugins.schedules import BimodalGaussian, Cosine, CosineSquared, Modes
from markdown import add_write_option, publish, table
from torch import Tensor

from ltg_mdlm.inference.samplers import remasking_probability
from ltg_mdlm.inference.sampling_rule import EqualSteps, RateSchedule, SamplingRule, mask_rates
from ltg_mdlm.testing.enumeration import JOINT_Q

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.exact_sampling import (  # type: ignore[import-not-found]
    chi_square,
    draw,
    exact_law,
    law_of_the_likeliest_draw,
    total_variation,
)

STEPS = (1, 2, 4, 8, 16, 64, 256)
LINEAR = EqualSteps()
SCHEDULES: dict[str, RateSchedule] = {
    "linear": LINEAR,
    "cosine": Cosine(),
    "cosine squared": CosineSquared(),
    "bimodal": BimodalGaussian(Modes()),
}
REMASKING: dict[str, dict[str, float]] = {
    "none": {},
    "eta_cap 0.05": {"eta_cap": 0.05},
    "eta_cap 0.2": {"eta_cap": 0.2},
    "eta_rescale 0.2": {"eta_rescale": 0.2},
    "eta_rescale 1": {"eta_rescale": 1.0},
}
TYPE_WEIGHTS = {"0.3, 0.8, 1": (0.3, 0.8, 1.0), "0.82, 0.93, 1": (0.82, 0.93, 1.0)}


def measured(count: int, law_Q: Tensor | None, **rule: Any) -> list[str]:
    """Cells: passes per sample, chi-square against the joint and its p-value, deviation of the samples and of the law.

    `law_Q` None is the joint distribution itself, by the chain rule.
    """
    counts_Q, canvas = draw(count, **rule)
    found = chi_square(counts_Q, JOINT_Q)
    return [
        f"{canvas.passes_B.double().mean():.2f}",
        f"{found.statistic:,.0f} ({found.freedom})",
        _p_value(found.p),
        f"{total_variation(counts_Q, JOINT_Q):.3f}",
        "0" if law_Q is None else f"{total_variation(law_Q, JOINT_Q):.4f}",
    ]


def _p_value(p: float) -> str:
    return f"{p:.2f}" if p > 0.005 else f"{p:.0e}" if p > 1e-99 else "< 1e-99"


def by_steps(count: int) -> str:
    """Ancestral sampling by number of steps."""
    rows = [[str(k), *measured(count, exact_law(mask_rates(LINEAR, k)), steps=k)] for k in STEPS]
    rows.append(["one per token", *measured(count, None)])
    return table(["steps", "passes per sample", "chi-square (df)", "p", "deviation of the samples", "of the law"], rows)


def by_sampler(count: int) -> str:
    """All samplers with one token per step, and MaskGIT's rule."""
    samplers = ("ancestral", "confidence", "entropy", "block", "autoregressive")
    rows = [[name, *measured(count, None, sampler=name)[1:]] for name in samplers]
    usual = total_variation(law_of_the_likeliest_draw(), JOINT_Q)
    rows.append(["*MaskGIT's rule: keep the likeliest of the drawn tokens*", "", "", "", f"{usual:.4f}"])
    return table(["one token per step", "chi-square (df)", "p", "deviation of the samples", "of the law"], rows)


def deviations(laws: Sequence[Tensor]) -> list[str]:
    """Deviations of laws from the joint distribution, as cells."""
    return [f"{total_variation(law_Q, JOINT_Q):.4f}" for law_Q in laws]


def by_schedule() -> str:
    """The law of ancestral sampling by schedule."""
    rows = [[name, *deviations([exact_law(mask_rates(s, k)) for k in STEPS])] for name, s in SCHEDULES.items()]
    return table(["schedule", *(f"K = {k}" for k in STEPS)], rows)


def by_remasking() -> str:
    """The law of ancestral sampling by strength of remasking."""
    rows = []
    for name, settings in REMASKING.items():
        sigma = partial(_sigma, settings)
        rows.append([name, *deviations([exact_law(mask_rates(LINEAR, k), sigma) for k in STEPS])])
    return table(["remasking", *(f"K = {k}" for k in STEPS)], rows)


def _sigma(settings: dict[str, float], s: float, t: float) -> float:
    return remasking_probability(s, t, SamplingRule(steps=1, **settings)) if settings else 0.0  # type: ignore[arg-type]


def by_type_masking() -> str:
    """Ancestral sampling with denoisers that are exact for type-dependent masking, and the exact reverse process."""
    rows = []
    for name, weights in TYPE_WEIGHTS.items():
        tilt = partial(_probability, torch.tensor(weights, dtype=torch.float64))
        for by_type in (False, True):
            laws = [exact_law(mask_rates(LINEAR, k), tilt=tilt, by_type=by_type) for k in STEPS]
            rows.append([name, "pi(t) / pi(s), by type" if by_type else "t / s, as here", *deviations(laws)])
    return table(["weights of the types", "stays masked with", *(f"K = {k}" for k in STEPS)], rows)


def _probability(weight_V: Tensor, rate: float) -> Tensor:
    masked_V = scale_to_rate(1 - weight_V, 1 - weight_V.mean(), torch.tensor(rate, dtype=torch.float64))
    return masked_V.clamp(min=1e-300)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000, help="samples per figure")
    add_write_option(parser)
    arguments = parser.parse_args()
    publish("samplers by steps", by_steps(arguments.count), arguments.write)
    publish("samplers one per token", by_sampler(arguments.count), arguments.write)
    publish("samplers by schedule", by_schedule(), arguments.write)
    publish("samplers by remasking", by_remasking(), arguments.write)
    publish("samplers by type masking", by_type_masking(), arguments.write)


if __name__ == "__main__":
    main()
