"""A noise schedule in pictures: which mask rates it draws, what their rows weigh, and what that amounts to.

Shapes: R drawn rows, G points on the axis of mask rates.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from ltg_mdlm.analysis import POWERS, effective_weight
from ltg_mdlm.api import Batch, Noise, NoiseSchedule, Step
from ltg_mdlm.plots.figure import DISTINCT, MUTED, ORDERED, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTOGRAM_ROWS, SCATTER_ROWS = 65536, 4096
"""Rows drawn for a histogram, and for a panel with a dot for each."""
DASHES = ("-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1, 1)))
LEAST_RATE = 0.005
"""Left end of logarithmic axes of mask rates; below it weights are 1 / γ times a constant."""
DECADES = 8
"""Height of logarithmic axes, at most: weights can span 40 decades."""
_RATE_LABEL = "mask rate γ"


def schedule_panels(schedule: NoiseSchedule) -> list[Panel]:
    """Panels for any schedule; what needs a density is left out where there is none."""
    varies, single = varies_in_training(schedule), is_single_rate(schedule)
    at, when = (0.5, " at progress 0.5") if varies else (0.0, "")
    has_density = schedule.density(torch.tensor([0.5], dtype=torch.float64), at) is not None
    panels: list[Panel] = []
    if not single:
        panels += [
            Panel("Density of mask rates", partial(_draw_density, schedule, (0.0, 0.5, 1.0) if varies else (0.0,))),
            Panel(f"Weight of {SCATTER_ROWS:,} drawn rows{when}", partial(_draw_row_weights, schedule, at)),
        ]
    if has_density:
        panels.append(Panel(f"Effective weight{when}", partial(_draw_effective_weights, schedule, at)))
    if varies and has_density:
        panels.append(Panel("Density over training", partial(_draw_heat_map, schedule)))
    elif varies:
        panels.append(Panel("Mask rates over training", partial(_draw_quantiles, schedule)))
    return panels


def draw(schedule: NoiseSchedule, progress: float, rows: int = HISTOGRAM_ROWS, seed: int = 0) -> Noise:
    """The noise of a global batch of that many rows, as training would draw it."""
    one_BT = torch.ones(rows, 1, dtype=torch.int64)
    batch = Batch(
        ids_BT=one_BT,
        document_BT=torch.zeros_like(one_BT, dtype=torch.int32),
        position_BT=-one_BT,
        maskable_BT=one_BT.bool(),
        row_B=torch.arange(rows),
    )
    return schedule.sample(batch, Step(seed=seed, step=0, progress=progress, epoch=0.0, rows=rows))


def varies_in_training(schedule: NoiseSchedule) -> bool:
    """Whether the mask rates depend on progress."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    return not torch.allclose(schedule.rate(t, 0.0), schedule.rate(t, 1.0), atol=1e-9)


def is_single_rate(schedule: NoiseSchedule) -> bool:
    """Whether all rows of a step have the same mask rate, which leaves no density and nothing to weigh."""
    rate_R = draw(schedule, 0.0, rows=256).rate_B
    return bool(rate_R.max() - rate_R.min() < 1e-9)


def _draw_density(schedule: NoiseSchedule, progress: tuple[float, ...], axes: Axes) -> None:
    rate_G = torch.linspace(0.0005, 0.9995, 2000, dtype=torch.float64)
    several, highest = len(progress) > 1, 0.0
    for at, colour in zip(progress, ORDERED[::2] if several else (DISTINCT[2],), strict=True):
        drawn = axes.hist(
            draw(schedule, at).rate_B.numpy(), bins=100, range=(0, 1), density=True, color=colour, alpha=0.25
        )
        # Without the first and last bar: densities can be infinite there, or have atoms.
        highest = max(highest, *map(float, drawn[0][1:-1]))
        density_G = schedule.density(rate_G, at)
        if density_G is not None:
            axes.plot(rate_G, density_G, color=colour, label=None if several else "density")
        if several:
            axes.plot([], [], color=colour, label=f"progress {at:g}")
    axes.plot([], [], color=MUTED, alpha=0.25, linewidth=6, label=f"{HISTOGRAM_ROWS:,} drawn rows")
    axes.set(xlabel=_RATE_LABEL, ylabel="density q(γ)", xlim=(0, 1), ylim=(0, 1.15 * highest))
    axes.legend()


def _draw_row_weights(schedule: NoiseSchedule, progress: float, axes: Axes) -> None:
    """A dot per drawn row: one rate can have several slopes, as with the `component` derivative of a mixture."""
    noise = draw(schedule, progress, rows=SCATTER_ROWS)
    shown_R = noise.rate_B >= LEAST_RATE
    rate_R, slope_R = noise.rate_B[shown_R], noise.slope_B[shown_R]
    for power, colour in zip(POWERS, DISTINCT, strict=False):
        axes.plot(rate_R, slope_R**power / rate_R, ".", color=colour, markersize=2.5, alpha=0.6, rasterized=True)
        axes.plot([], [], "o", color=colour, markersize=4, label=f"p = {power:g}")
    if not shown_R.all():
        most = (noise.slope_B.clamp(min=1) ** max(POWERS) / noise.rate_B).max()
        note = f"{(~shown_R).double().mean():.1%} further left, up to {float(most):.0e}"
        axes.text(0.02, 0.02, note, transform=axes.transAxes, fontsize=8, color=MUTED)
    _finish_weights(axes, "slopeᵖ / γ")


def _draw_effective_weights(schedule: NoiseSchedule, progress: float, axes: Axes) -> None:
    rate_G = torch.logspace(math.log10(LEAST_RATE), -1e-6, 2000, dtype=torch.float64)
    for power, colour, dashes in zip(POWERS, DISTINCT, DASHES, strict=False):
        weight_G = effective_weight(schedule, power, rate_G, progress)
        axes.plot(rate_G, weight_G, color=colour, linestyle=dashes, label=f"p = {power:g}")
    _finish_weights(axes, "q(γ)¹⁻ᵖ / γ")


def _finish_weights(axes: Axes, label: str) -> None:
    """Logarithmic axes, of which the upper decades are shown when there are too many."""
    axes.set(xscale="log", yscale="log", xlabel=_RATE_LABEL, ylabel=label, xlim=(LEAST_RATE, 1))
    ticks = [0.01, 0.03, 0.1, 0.3, 1]
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    lowest, highest = axes.get_ylim()
    axes.set_ylim(max(lowest, highest * 10.0**-DECADES), 5 * highest)  # room for the legend
    axes.legend(ncols=2)


def _draw_heat_map(schedule: NoiseSchedule, axes: Axes) -> None:
    progress_P, rate_G = torch.linspace(0, 1, 101), torch.linspace(0.0025, 0.9975, 200, dtype=torch.float64)
    densities = [schedule.density(rate_G, float(at)) for at in progress_P]
    density_GP = torch.stack([d for d in densities if d is not None], dim=1)
    highest = float(density_GP.max())
    mesh = axes.pcolormesh(
        progress_P,
        rate_G,
        density_GP.clamp(min=highest * 1e-4),
        norm="log",
        vmin=highest * 1e-4,
        cmap="cividis",
        shading="nearest",
        rasterized=True,
    )
    axes.figure.colorbar(mesh, ax=axes, label="density q(γ)")
    axes.set(xlabel="progress (share of training)", ylabel=_RATE_LABEL, xlim=(0, 1), ylim=(0, 1))
    axes.grid(False)


def _draw_quantiles(schedule: NoiseSchedule, axes: Axes) -> None:
    """Median and central 90 % of the mask rates; a line if all rows have the same one."""
    progress_P = torch.linspace(0, 1, 41)
    level = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    rate_3P = torch.stack([draw(schedule, float(at), SCATTER_ROWS).rate_B.quantile(level) for at in progress_P], dim=1)
    if not is_single_rate(schedule):
        axes.fill_between(progress_P, rate_3P[0], rate_3P[2], color=DISTINCT[2], alpha=0.2, label="central 90 %")
    axes.plot(progress_P, rate_3P[1], color=DISTINCT[2], label="median")
    axes.set(xlabel="progress (share of training)", ylabel=_RATE_LABEL, xlim=(0, 1), ylim=(0, None))
    if not is_single_rate(schedule):
        axes.legend()
