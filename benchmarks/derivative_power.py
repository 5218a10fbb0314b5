"""What a derivative power does to the gradient's noise: predicted by second moments, measured on a trained model.

    ltg-mdlm train --plugin uniform_mdlm --set data.corpus=CORPUS --out RUN
    python benchmarks/derivative_power.py RUN --plot derivative_power.png

For every schedule, rows of training text are masked at its stratified mask rates, and the gradient of each row's
loss is taken on its own, at the same weights, without dropout.  A derivative power only scales these gradients, by
slope^p, so that all powers are measured on the same rows.

Shapes: R rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ltg_mdlm_plugins.objectives import DiffusionObjective
from ltg_mdlm_plugins.uniform_mdlm import SCHEDULES, Options, ScheduleName
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from trained_run import load_run

from ltg_mdlm.api import Batch, NoiseSchedule, Step
from ltg_mdlm.data.row_loader import validation_batches
from ltg_mdlm.reporting.figure import DISTINCT, Panel, save_panels
from ltg_mdlm.reporting.plugin_pictures import draw, schedule_panels
from ltg_mdlm.reporting.schedule_analysis import POWERS, log10_second_moment, second_moment_table
from ltg_mdlm.testing import toy
from ltg_mdlm.training.assembly import Run
from ltg_mdlm.training.recipe import DenoisingLoss, Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROGRESS = 0.5
"""Where the bimodal schedule's right mode stands."""
HIGHEST_MOMENT = 4.0
"""Upper end of the picture's axis, in powers of ten."""
MARKERS = "osD^v"
NAMES: tuple[ScheduleName, ...] = ("linear", "cosine", "cosine_squared", "gaussian", "bimodal_gaussian")


@dataclass(frozen=True)
class GradientNoise:
    """Gradients of single rows, at one schedule and power."""

    second_moment: float
    """Mean of (slope^p / gamma x masked share)^2 over the measured rows: what the loss alone predicts."""
    noise_scale: float | None
    """Trace of the covariance / squared mean: the rows over which noise and signal are equal; None if the mean is lost
    in the noise of all measured rows."""
    largest: float
    """Share of the largest row in the sum of squared gradient norms."""


def measure(run: Run, schedule: NoiseSchedule, rows: int) -> dict[float, GradientNoise]:
    """Gradient noise by power."""
    parts = replace(run.recipe.components, noise_schedule=schedule, objective=DiffusionObjective(0.0))
    recipe = Recipe(parts)
    loss = DenoisingLoss(run.loss.model, recipe, bf16=False).eval()
    parameters = [p for p in loss.parameters() if p.requires_grad]
    step = Step(seed=0, step=0, progress=PROGRESS, epoch=0.0, rows=rows)
    sums = {power: torch.zeros(sum(p.numel() for p in parameters)) for power in POWERS}
    norms, slopes, shares = [], [], []
    for row in training_rows(run, rows):
        [micro_batch] = recipe.corrupt(row, step)
        output = loss(micro_batch, torch.ones(1), step)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(output.loss, parameters)])
        slope = float(micro_batch.noise.slope_B)
        for power, total in sums.items():
            total.add_(gradient, alpha=slope**power)
        norms.append(float(gradient.double().square().sum()))
        slopes.append(slope)
        shares.append(float(micro_batch.corrupted.realised_rate_B / micro_batch.noise.rate_B))
    return {
        power: noise(total, torch.tensor(norms).double(), torch.tensor(slopes).double() ** power, torch.tensor(shares))
        for power, total in sums.items()
    }


def noise(total: Tensor, square_R: Tensor, scale_R: Tensor, share_R: Tensor) -> GradientNoise:
    """From the scaled sum of the gradients, their unscaled squared norms, and the rows' masked share / mask rate."""
    rows = len(square_R)
    scaled_R = scale_R.square() * square_R
    # Without the rows' own squares, the squared sum is an unbiased estimate of the squared mean.
    signal = (float(total.double().square().sum()) - float(scaled_R.sum())) / (rows * (rows - 1))
    return GradientNoise(
        second_moment=float((scale_R * share_R).square().mean()),
        noise_scale=(float(scaled_R.mean()) - signal) / signal if signal > 0 else None,
        largest=float(scaled_R.max() / scaled_R.sum()),
    )


def training_rows(run: Run, rows: int) -> list[Batch]:
    """Single rows of the training split."""
    batch = validation_batches(
        run.corpus.train, seq_len=run.config.training.seq_len, micro_batch_rows=rows, rows=rows
    ).batches[0]
    return [toy.rows_of(batch, slice(i, i + 1)) for i in range(rows)]


Measured = Mapping[ScheduleName, Mapping[float, GradientNoise]]


def measured_table(measured: Measured, rows: int) -> Table:
    """Noise scale, and the largest row's share."""
    table = Table(title=f"gradient noise scale in rows (share of the largest of {rows} rows in the squared gradient)")
    table.add_column("schedule")
    for power in POWERS:
        table.add_column(f"p = {power:g}", justify="right")
    for name, by_power in measured.items():
        cells = [f"{_scale(found.noise_scale, rows)} ({found.largest:.0%})" for found in by_power.values()]
        table.add_row(name, *cells)
    return table


def moments_table(measured: Measured, tokens: int) -> Table:
    """log10 of the second moment of weight x masked share, on the measured rows against its expectation."""
    table = Table(title=f"log10 E[(w k / T)^2] at progress {PROGRESS:g}: measured rows / expectation for T = {tokens}")
    table.add_column("schedule")
    for power in POWERS:
        table.add_column(f"p = {power:g}", justify="right")
    for name, by_power in measured.items():
        expected = [log10_second_moment(SCHEDULES[name](Options()), power, PROGRESS, tokens) for power in by_power]
        found = [math.log10(noise.second_moment) for noise in by_power.values()]
        table.add_row(name, *(f"{a:.2f} / {b:.2f}" for a, b in zip(found, expected, strict=True)))
    return table


def effective_rows(schedule: NoiseSchedule, power: float, rows: int, draws: int = 8) -> float:
    """(sum of weights)^2 / sum of squared weights for slope^power: a batch of so many equal rows has the same noise."""
    counts = []
    for seed in range(draws):
        weight_R = draw(schedule, PROGRESS, rows, seed).slope_B ** power
        counts.append(float(weight_R.sum().square() / weight_R.square().sum()))
    return sum(counts) / draws


def effective_rows_table(batches: Sequence[int] = (256, 1024, 4096, 65536)) -> Table:
    """Of batches of several sizes; mean of 8 draws."""
    table = Table(title="effective rows of a batch")
    for column in ("schedule", "p", *(f"{rows:,} rows" for rows in batches)):
        table.add_column(column, justify="left" if column == "schedule" else "right")
    for name in NAMES:
        for power in (0.5, 1.0):
            schedule = SCHEDULES[name](Options())
            cells = [f"{effective_rows(schedule, power, rows):,.0f}" for rows in batches]
            table.add_row(name, f"{power:g}", *cells)
    return table


def _scale(value: float | None, rows: int) -> str:
    return f"over {rows}" if value is None else f"{value:.3g}"


def picture(measured: Measured, tokens: int) -> list[Panel]:
    """Effective weights of the bimodal schedule; second moments, effective rows and noise scales of all schedules."""
    bimodal = schedule_panels(SCHEDULES["bimodal_gaussian"](Options()))
    return [
        *(
            replace(panel, title="Effective weight, bimodal_gaussian")
            for panel in bimodal
            if "Effective" in panel.title
        ),
        Panel(f"Second moment of (w k / T), T = {tokens}", partial(_draw_moments, tokens)),
        Panel("Effective rows at p = 1", _draw_effective_rows),
        Panel("Gradient noise, measured", partial(_draw_noise, measured)),
    ]


def _draw_moments(tokens: int, axes: Axes) -> None:
    powers = [i / 50 for i in range(51)]
    for name, colour in zip(NAMES, DISTINCT, strict=False):
        moments = [log10_second_moment(SCHEDULES[name](Options()), power, PROGRESS, tokens) for power in powers]
        off_scale = f": {moments[-1]:.0f} at p = 1" if moments[-1] > HIGHEST_MOMENT else ""
        axes.plot(powers, moments, color=colour, label=f"{name}{off_scale}")
    axes.set(xlabel="derivative power p", ylabel="log₁₀ E[(w k / T)²]", xlim=(0, 1), ylim=(-0.6, HIGHEST_MOMENT))
    axes.legend()


def _draw_effective_rows(axes: Axes) -> None:
    sizes = [2**i for i in range(6, 16)]
    for name, colour, marker in zip(NAMES, DISTINCT, MARKERS, strict=False):
        counts = [effective_rows(SCHEDULES[name](Options()), 1.0, rows) for rows in sizes]
        axes.plot(sizes, counts, color=colour, marker=marker, markersize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="rows of the global batch", ylabel="effective rows")
    axes.legend()


def _draw_noise(measured: Measured, axes: Axes) -> None:
    for (name, by_power), colour, marker in zip(measured.items(), DISTINCT, MARKERS, strict=False):
        known = [(power, found.noise_scale) for power, found in by_power.items() if found.noise_scale is not None]
        axes.plot(*zip(*known, strict=True), color=colour, marker=marker, markersize=5, label=name)
    axes.set(xlabel="derivative power p", ylabel="noise scale (rows)", yscale="log", xlim=(-0.02, 1.02))
    axes.legend()


def main() -> None:
    """Print the tables, and draw the picture if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of uniform_mdlm with a checkpoint")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    console = Console(width=120)
    console.print(second_moment_table({name: SCHEDULES[name](Options()) for name in NAMES}))
    console.print(effective_rows_table())
    measured: Measured = {name: measure(run, SCHEDULES[name](Options()), arguments.rows) for name in NAMES}
    tokens = run.config.training.seq_len
    console.print(moments_table(measured, tokens))
    console.print(measured_table(measured, arguments.rows))
    if arguments.plot is not None:
        save_panels(picture(measured, tokens), arguments.plot, title="Schedules and derivative powers", dpi=100)
        # Lines and text need few colours; the file becomes a third as large.
        Image.open(arguments.plot).convert("RGB").quantize(128).save(arguments.plot, optimize=True)


if __name__ == "__main__":
    main()
