"""Expected losses by schedule and weighting on a language small enough to enumerate, compared with its entropy.

    python benchmarks/toy_language.py

The language has three token types, rows of three tokens and an explicit joint distribution; see
tests/support/enumeration.py.  Expectations are over all sequences and all sets of masked positions; integrals are over
the t of the schedule.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from ltg_mdlm_plugins.schedules import BimodalGaussian, Cosine, CosineSquared, Gaussian, Linear, Modes
from rich.console import Console
from rich.table import Table

from ltg_mdlm.api import NoiseSchedule
from ltg_mdlm.testing.enumeration import ENTROPY

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.enumeration import (  # type: ignore[import-not-found]
    TYPE_WEIGHTS_V,
    WEIGHTINGS,
    exact,
    integral,
    levels,
    mixed,
)

WIDE = Modes(left_mean=0.3, left_std=0.3, right_start=0.6, right_std=0.3)
"""Modes that cover all mask rates, unlike the published ones; see `NoiseSchedule.full_support`."""
SCHEDULES: dict[str, NoiseSchedule] = {
    "linear": Linear(),
    "cosine": Cosine(),
    "cosine_squared": CosineSquared(),
    "gaussian, mean 0.5, std 0.3": Gaussian(0.5, 0.3),
    "bimodal_gaussian, std 0.3": BimodalGaussian(WIDE, derivative="mixture"),
}
PANELS = 3


def time_of(schedule: NoiseSchedule, rate: float) -> float:
    """The t of a mask rate, found by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        below = float(schedule.rate(torch.tensor([middle], dtype=torch.float64), 0.0)) < rate
        low, high = (middle, high) if below else (low, middle)
    return high


def losses(schedule: NoiseSchedule, power: float) -> list[str]:
    """For each weighting, the expected loss of the exact denoiser, and of its mixture with 20 % uniform."""
    # Masking probabilities by type have a kink where the mask rate passes the mean weight.
    over = levels(schedule, [time_of(schedule, float(TYPE_WEIGHTS_V.mean()))], panels=PANELS)
    cells = []
    for weighting in WEIGHTINGS.values():
        if weighting == "exact" and power != 1:  # defined at power 1 only
            cells.append("")
            continue
        pair = [integral(over, denoiser, weighting, power) for denoiser in (exact, mixed)]
        cells.append(" / ".join(f"{loss:.5f}{'*' if loss < ENTROPY - 1e-8 else ' '}" for loss in pair))
    return cells


def main() -> None:
    """Print the table."""
    table = Table(title=f"nats per row: exact denoiser / 20 % uniform;  * below the entropy, {ENTROPY:.5f}")
    for column in ("schedule", "p", "uniform masking", "by type: token", "by type: row", "by type: exact"):
        table.add_column(column, justify="left" if column == "schedule" else "right")
    for power in (1.0, 0.0):
        for name, schedule in SCHEDULES.items():
            table.add_row(name, f"{power:g}", *losses(schedule, power))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
