"""The questions of docs/results.md: their measures, and the claims that decide them, fixed before the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A figure of a run."""

    label: str
    scale: float
    """Factor to the unit that tables show."""
    least: float
    """Differences below this one, in that unit, do not matter."""


MEASURES = {
    "bound": Measure("bound, nats per token", 1, 0.03),
    "minimal_pairs": Measure("minimal pairs, %", 100, 1),
    "accuracy_frequent": Measure("frequent types, %", 100, 0.5),
    "accuracy_rare": Measure("rare types, %", 100, 0.5),
    "blimp_fast": Measure("blimp_fast, %", 100, 1),
    "passes": Measure("forward passes per sentence", 1, 0),
    "variance": Measure("variance of a pair's margin over masks, nats²", 1, 0),
}


@dataclass(frozen=True)
class Claim:
    """Arms that are compared with a baseline in one measure; one test for every arm that fits."""

    measure: str
    arm: Mapping[str, Any]
    """Values by short name; all arms that have them, except the baseline"""
    baseline: Mapping[str, Any]
    """Values in which the baseline differs from the arm"""
    sign: int = 0
    """Predicted sign of arm minus baseline; 0: any difference"""
    least: float | None = None
    """Smallest difference that counts; None: that of the measure"""


@dataclass(frozen=True)
class Question:
    """A sweep and what is claimed about it."""

    title: str
    minutes: float
    """Core minutes of a run, for the plan"""
    claims: Sequence[Claim]
    rates_of: str | None = None
    """The question whose pilot tunes the learning rates, if this one has none"""
    scoring_minutes: float = 0
    """Core minutes of evaluation after each run that is not of the pilot, for the plan"""
    same_masks: Sequence[str] = ()
    """Settings of uniform masking, under which the accuracies of frequent and rare types are measured in all arms"""
    averaged: str | None = None
    """A short name over whose values differences are also averaged: exploration after the runs, and not a claim"""
    same_rates: bool = False
    """Whether an arm and its baseline are also trained at each other's rates: exploration, and not a claim"""


def _each(measures: Sequence[str], *claim: Any, **options: Any) -> list[Claim]:
    return [Claim(measure, *claim, **options) for measure in measures]


_LINEAR = ("plugins.uniform_mdlm.schedule=linear", "validation.draws=2", "validation.pairs=null")
_BOTH = ("bound", "minimal_pairs")
_UNIFORM = {"plugin": "uniform_mdlm"}

QUESTIONS = {
    "power": Question(
        "a. derivative power and schedule",
        1.3,
        [
            Claim("bound", {"schedule": "bimodal_gaussian", "derivative_power": 1}, {"derivative_power": 0}, +1, 0.1),
            Claim(
                "minimal_pairs", {"schedule": "bimodal_gaussian", "derivative_power": 1}, {"derivative_power": 0}, -1, 2
            ),
            Claim("bound", {"schedule": "cosine", "derivative_power": 0}, {"derivative_power": 1}, +1),
            Claim("minimal_pairs", {"schedule": "cosine", "derivative_power": 0}, {"derivative_power": 1}, -1),
        ],
        same_masks=_LINEAR,
    ),
    "frequency": Question(
        "b. frequency weighting and Zipf's law",
        1.3,
        [
            Claim("accuracy_rare", {}, {"power": 0}, +1),
            Claim("bound", {}, {"power": 0}),
            *_each(("minimal_pairs", "accuracy_frequent"), {"power": 0.02, "builtin_zipf_exponent": 1}, {"power": 0}),
        ],
        same_masks=("plugins.freq_mdlm.power=0", *_LINEAR),
        averaged="builtin_zipf_exponent",
    ),
    "methods": Question("c. methods at equal tokens", 1.6, _each(_BOTH, {}, _UNIFORM)),
    "methods_time": Question("c. methods at equal time", 1.3, _each(_BOTH, {}, _UNIFORM), rates_of="methods"),
    "optimizers": Question("c. optimisers", 1.3, _each(_BOTH, {}, {"name": "lamb"})),
    "text": Question(
        "c. methods on English text",
        6,
        _each(("bound", "blimp_fast"), {}, _UNIFORM),
        scoring_minutes=6,
        same_rates=True,
    ),
    "distortions": Question(
        "e. distortions of the published code",
        1.3,
        _each(
            ("bound", "minimal_pairs", "accuracy_rare"),
            {},
            {"tails": "truncate", "freq_mdlm": {"curriculum": "linear"}, "packing": "documents_packed"},
        ),
        same_masks=(
            "plugins.freq_mdlm={power: 0, statistics: maskable, row_min: virtual, curriculum: linear}",
            *_LINEAR,
        ),
    ),
}

LIKELIHOOD = Question(
    "d. likelihood estimates",
    2,
    [
        Claim("minimal_pairs", {"score": "bound", "time": "fraction", "masks": "as pll"}, {"score": "pll"}),
        Claim("minimal_pairs", {"masks": "as pll"}, {"time": "fraction"}),
    ],
)
