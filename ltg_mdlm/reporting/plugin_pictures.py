"""Pictures of a plugin, for `ltg-mdlm plugins show NAME --plot FILE` and the HTML report.

The panels of a masking strategy show how often tokens are masked, by the frequency rank of their type. They are
measured on rows of a corpus, so they work for any strategy. The panels of a noise schedule show the mask rates that it
draws, the weights of their rows, and the effective weights.

Shapes: B rows, T tokens per row, V vocabulary, G mask rates, I intervals of frequency ranks, R drawn rows, P values of
training progress.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltg_mdlm.core.batch import Batch, Noise, Step
from ltg_mdlm.core.components import MaskingStrategy, NoiseSchedule
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.row_loader import validation_batches
from ltg_mdlm.host.discovery import find
from ltg_mdlm.host.plugin_host import Host, import_plugin, options_as_json
from ltg_mdlm.host.run_context import batch_schedule, components_of, corpus_statistics, open_corpus
from ltg_mdlm.host.slots import Components
from ltg_mdlm.reporting.figure import DISTINCT, MUTED, ORDERED, Panel, check_writable, save_panels
from ltg_mdlm.reporting.schedule_analysis import POWERS, effective_weight

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MEASURED_ROWS, ROWS_AT_A_TIME = 1024, 128
"""Corpus rows on which masking is measured, and rows per batch."""

RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Mask rates at which masking is measured."""

ESTIMATE_STEPS = 8
"""Steps whose masks estimate the probabilities of a strategy that states none."""

INTERVALS = 24
"""Intervals of frequency ranks, equally wide on a logarithmic scale."""

MIN_SHARE = 0.005
"""Intervals with a smaller fraction of the measured tokens are not shown, since their averages are noisy."""

FLAT = 0.005
"""A strategy whose probabilities differ by less than this, relative to the mask rate, does not depend on the rank."""

MIN_SPAN = 0.1
"""The axis of ratios shows at least 1 - MIN_SPAN to 1 + MIN_SPAN, so that small differences look small."""

HISTOGRAM_ROWS, SCATTER_ROWS = 65536, 4096
"""Rows that are drawn for a histogram, and for a scatter plot."""

DOT_SIZES = (4.0, 3.0, 2.0, 1.0)
"""Sizes of the dots of the powers, so that they can be told apart without colours, and where they coincide."""

DASHES = ("-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1, 1)))
"""Line styles of the powers."""

MIN_RATE = 0.005
"""Left end of logarithmic axes of mask rates. Below it, weights are proportional to 1 / γ."""

DECADES = 8
"""Maximum height of logarithmic axes. Weights can span 40 decades."""

RANK_LABEL = "frequency rank (1 = most frequent token type)"
RATE_LABEL = "mask rate γ"


@torch.no_grad()
def plot_plugin(name: str, path: Path, *, corpus: Path | None = None, sets: Sequence[str] = ()) -> None:
    """Draw the noise schedule and the masking of a plugin, with the default config and the settings `sets`.

    Masking is measured on training rows of `corpus`, by default the built-in corpus. Raises `UserError` for invalid
    settings, a plugin that provides neither of them, and a picture that cannot be written.
    """
    check_writable(path)
    of_corpus = [] if corpus is None else [f"data.corpus={corpus}"]
    settings = load_settings(plugins=[name], sets=[*of_corpus, *sets])
    host = Host(settings.config, settings.sources)
    opened = open_corpus(host.config)
    save_panels(plugin_panels(name, host, opened), path, title=title_of(name, host.config))


def last_step(config: RunConfig, schedule: BatchSchedule, rows: int) -> Step:
    """The last step of training, at which curricula are complete, with a batch of `rows` rows."""
    last = schedule.max_steps - 1
    progress = last / schedule.max_steps
    return Step(seed=config.seed, step=last, progress=progress, epoch=schedule.epoch(last), rows=rows)


def plugin_panels(name: str, host: Host, corpus: Corpus) -> list[Panel]:
    """Panels of the slots that a plugin fills. Raises `UserError` if it fills neither noise_schedule nor masking."""
    config = host.config
    schedule = batch_schedule(config, corpus)
    components = components_of(host, corpus, schedule, Ranks.alone())
    panels = []
    if components.providers["noise_schedule"] == name:
        panels += schedule_panels(components.noise_schedule)
    if components.providers["masking"] == name:
        panels += measured_masking(components, config, corpus, last_step(config, schedule, MEASURED_ROWS))
    if not panels:
        raise UserError(f"plugin {name!r} fills neither noise_schedule nor masking: there is nothing to draw")
    return panels


def measured_masking(components: Components, config: RunConfig, corpus: Corpus, step: Step) -> list[Panel]:
    """Panels of the masking strategy, measured on rows of the training split."""
    rows = validation_batches(
        corpus.train,
        seq_len=config.training.stages[-1][1],
        micro_batch_rows=ROWS_AT_A_TIME,
        rows=step.rows,
        packing=config.training.packing,
        end_of_document=config.data.end_of_document,
    )
    rank_V = frequency_rank(corpus_statistics(config, corpus).token_count_V)
    measured = masking_by_rank(components.masking, rows.batches, rank_V, step)
    return masking_panels(measured, ", before training" if components.has_state("masking") else ", end of training")


def title_of(name: str, config: RunConfig) -> str:
    """Name of the plugin, and its options that differ from the defaults."""
    options = config.plugins[name]
    defaults = options_as_json(import_plugin(find(name)).options_model.model_construct())
    changed = [f"{option} = {value}" for option, value in options.items() if value != defaults.get(option)]
    return "   ".join([name, *changed])


@dataclass(frozen=True)
class MaskingByRank:
    """Masking, averaged over the tokens of each interval of frequency ranks."""

    rank_I: Tensor
    """Geometric mean of the frequency ranks of the tokens; rank 1 is the most frequent type."""
    probability_GI: Tensor
    """Mean of `mask_probability`; that of the masks if the strategy draws them without stating probabilities."""
    masked_GI: Tensor
    """Fraction of tokens that were masked."""


def frequency_rank(token_count_V: Tensor) -> Tensor:
    """int64[V]: rank of every type by count, 1 for the most frequent one; ties are ordered by id."""
    return token_count_V.argsort(descending=True, stable=True).argsort() + 1


def masking_by_rank(
    masking: MaskingStrategy, batches: Sequence[Batch], rank_V: Tensor, step: Step, rates: Sequence[float] = RATES
) -> MaskingByRank:
    """Mask the rows at every rate, and average over tokens of similar rank.

    `step` gives the progress of training; `step.rows` is the number of rows of all batches.
    """
    edges = torch.unique(torch.logspace(0, math.log10(int(rank_V.max()) + 1), INTERVALS + 1).round())
    sums = torch.zeros(2, len(rates), len(edges) - 1, dtype=torch.float64)
    tokens_I, log_rank_I = sums.new_zeros(len(edges) - 1), sums.new_zeros(len(edges) - 1)
    for batch in batches:
        rank_N = rank_V[batch.ids_BT[batch.maskable_BT]]
        interval_N = torch.bucketize(rank_N, edges, right=True) - 1
        tokens_I.index_add_(0, interval_N, torch.ones(len(rank_N), dtype=torch.float64))
        log_rank_I.index_add_(0, interval_N, rank_N.double().log())
        for g, rate in enumerate(rates):
            stated_BT, masked_BT = mask_at(masking, batch, rate, step)
            sums[0, g].index_add_(0, interval_N, stated_BT[batch.maskable_BT].double())
            sums[1, g].index_add_(0, interval_N, masked_BT[batch.maskable_BT].double())
    shown_I = tokens_I >= MIN_SHARE * tokens_I.sum()
    means = sums[:, :, shown_I] / tokens_I[shown_I]
    return MaskingByRank((log_rank_I[shown_I] / tokens_I[shown_I]).exp(), means[0], means[1])


def mask_at(masking: MaskingStrategy, batch: Batch, rate: float, step: Step) -> tuple[Tensor, Tensor]:
    """float[B, T] probabilities and bool[B, T] mask, with all rows at one mask rate.

    The probabilities of a strategy that states none are estimated from the masks of several steps.
    """
    rate_B = torch.full(batch.row_B.shape, rate, dtype=torch.float64)
    noise = Noise(t_B=rate_B, rate_B=rate_B, slope_B=torch.ones_like(rate_B))
    causal_B = torch.zeros_like(batch.row_B, dtype=torch.bool)
    masked_BT = masking.corrupt_views(batch, causal_B, noise, step)[0].masked_BT
    if type(masking).mask_probability is not MaskingStrategy.mask_probability:
        return masking.mask_probability(batch, noise, step), masked_BT
    others = [replace(step, step=step.step + number) for number in range(1, ESTIMATE_STEPS + 1)]
    views = (masking.corrupt_views(batch, causal_B, noise, other)[0] for other in others)
    drawn = [view.masked_BT.double() for view in views]
    return torch.stack(drawn).mean(0), masked_BT


def masking_panels(measured: MaskingByRank, when: str, rates: Sequence[float] = RATES) -> list[Panel]:
    """A panel of probabilities, and one of their ratio to the mask rate unless it is 1 everywhere."""
    ratio_GI = measured.probability_GI / torch.tensor(rates, dtype=torch.float64).unsqueeze(1)
    by_frequency = Panel(
        f"Masking by frequency{when}",
        partial(_draw_probability, measured, rates),
        "Probability that a token is masked, by the frequency rank of its type. A flat line does not depend on it.",
    )
    if bool((ratio_GI - 1).abs().max() <= FLAT):
        return [by_frequency]
    relative = Panel(
        f"Relative to the mask rate{when}",
        partial(_draw_ratio, measured.rank_I, ratio_GI, rates),
        "The same, divided by the mask rate. Tokens above 1 are masked more often than the average token.",
    )
    return [by_frequency, relative]


def _draw_probability(measured: MaskingByRank, rates: Sequence[float], axes: Axes) -> None:
    # The curves are labelled at the end at which they are further apart.
    end, align = max(
        ((0, "left"), (-1, "right")), key=lambda e: float(measured.probability_GI[:, e[0]].sort().values.diff().min())
    )
    for g, (rate, colour) in enumerate(zip(rates, ORDERED, strict=True)):
        axes.plot(measured.rank_I, measured.probability_GI[g], color=colour)
        axes.plot(measured.rank_I, measured.masked_GI[g], "o", color=colour, markersize=3.5)
        at = (float(measured.rank_I[end]), float(measured.probability_GI[g, end]))
        axes.annotate(f"γ = {rate:g}", at, (0, 5), textcoords="offset points", ha=align, color=colour)
    axes.plot([], [], color=MUTED, label="probability")
    axes.plot([], [], "o", color=MUTED, markersize=3.5, label="fraction masked")
    axes.set(xscale="log", xlabel=RANK_LABEL, ylabel="probability of being masked", ylim=(0, 1.16))
    axes.legend(loc="upper left", ncols=2)


def _draw_ratio(rank_I: Tensor, ratio_GI: Tensor, rates: Sequence[float], axes: Axes) -> None:
    coincide = float((ratio_GI - ratio_GI[0]).abs().max()) < FLAT
    for place, (ratio_I, colour, rate) in enumerate(zip(ratio_GI, ORDERED, rates, strict=True)):
        # Curves that coincide are drawn with decreasing width, so that all are visible.
        width = 1.3 * (len(rates) - place) if coincide else None
        axes.plot(rank_I, ratio_I, color=colour, linewidth=width, label=f"γ = {rate:g}")
    axes.axhline(1, color=MUTED, linewidth=0.8)
    low, high = axes.get_ylim()
    axes.set(xscale="log", xlabel=RANK_LABEL, ylabel="probability / γ")
    axes.set_ylim(min(low, 1 - MIN_SPAN), max(high, 1 + MIN_SPAN))
    axes.legend()


def schedule_panels(schedule: NoiseSchedule) -> list[Panel]:
    """Panels of any schedule. Panels that need a density are omitted if there is none."""
    varies, single = varies_in_training(schedule), is_single_rate(schedule)
    at, when = (0.5, " at progress 0.5") if varies else (0.0, "")
    has_density = schedule.density(torch.tensor([0.5], dtype=torch.float64), at) is not None
    panels: list[Panel] = []
    if not single:
        panels += [
            Panel(
                "Density of mask rates",
                partial(_draw_density, schedule, (0.0, 0.5, 1.0) if varies else (0.0,)),
                "How often every mask rate is drawn. Bars are drawn rows, lines the density of the schedule.",
            ),
            Panel(
                f"Weight of {SCATTER_ROWS:,} drawn rows{when}",
                partial(_draw_row_weights, schedule, at),
                "Weight of a row in the loss, for several derivative powers p. Every dot is one row.",
            ),
        ]
    if has_density:
        panels.append(
            Panel(
                f"Effective weight{when}",
                partial(_draw_effective_weights, schedule, at),
                "Weight of a mask rate in the expected loss. At p = 1, it is the same for all schedules.",
            )
        )
    if varies and has_density:
        panels.append(
            Panel(
                "Density over training",
                partial(_draw_heat_map, schedule),
                "How often every mask rate is drawn, from the start of training (left) to its end.",
            )
        )
    elif varies:
        panels.append(
            Panel(
                "Mask rates over training",
                partial(_draw_quantiles, schedule),
                "The mask rates that are drawn, from the start of training (left) to its end.",
            )
        )
    return panels


def draw(schedule: NoiseSchedule, progress: float, rows: int = HISTOGRAM_ROWS, seed: int = 0) -> Noise:
    """The noise of a global batch of `rows` rows, drawn as in training."""
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
    """Whether all rows of a step have the same mask rate, so that there is no density and no weight to draw."""
    rate_R = draw(schedule, 0.0, rows=256).rate_B
    return bool(rate_R.max() - rate_R.min() < 1e-9)


def _draw_density(schedule: NoiseSchedule, progress: tuple[float, ...], axes: Axes) -> None:
    rate_G = torch.linspace(0.0005, 0.9995, 2000, dtype=torch.float64)
    several, highest = len(progress) > 1, 0.0
    for at, colour in zip(progress, ORDERED[::2] if several else (DISTINCT[2],), strict=True):
        rate_B = draw(schedule, at).rate_B.numpy()
        # One shape is drawn several times faster than a hundred bars.
        drawn = axes.hist(rate_B, 100, range=(0, 1), density=True, histtype="stepfilled", color=colour, alpha=0.25)
        # Without the first and the last bar, where densities can be infinite or have atoms.
        highest = max(highest, *map(float, drawn[0][1:-1]))
        density_G = schedule.density(rate_G, at)
        if density_G is not None:
            axes.plot(rate_G, density_G, color=colour, label=None if several else "density")
        if several:
            axes.plot([], [], color=colour, label=f"progress {at:g}")
    axes.plot([], [], color=MUTED, alpha=0.25, linewidth=6, label=f"{HISTOGRAM_ROWS:,} drawn rows")
    axes.set(xlabel=RATE_LABEL, ylabel="density q(γ)", xlim=(0, 1), ylim=(0, 1.15 * highest))
    axes.legend()


def _draw_row_weights(schedule: NoiseSchedule, progress: float, axes: Axes) -> None:
    """One dot per row. A mask rate can have several slopes, as with the `component` derivative of a mixture."""
    noise = draw(schedule, progress, rows=SCATTER_ROWS)
    shown_R = noise.rate_B >= MIN_RATE
    rate_R, slope_R = noise.rate_B[shown_R], noise.slope_B[shown_R]
    for power, colour, size in zip(POWERS, DISTINCT, DOT_SIZES, strict=False):
        axes.plot(rate_R, slope_R**power / rate_R, "o", color=colour, markersize=size, mew=0, rasterized=True)
        axes.plot([], [], "o", color=colour, markersize=size + 1.5, label=f"p = {power:g}")
    if not shown_R.all():
        most = (noise.slope_B.clamp(min=1) ** max(POWERS) / noise.rate_B).max()
        note = f"{(~shown_R).double().mean():.1%} further left, up to {float(most):.0e}"
        axes.text(0.02, 0.02, note, transform=axes.transAxes, fontsize=8, color=MUTED)
    _finish_weights(axes, "slopeᵖ / γ")


def _draw_effective_weights(schedule: NoiseSchedule, progress: float, axes: Axes) -> None:
    rate_G = torch.logspace(math.log10(MIN_RATE), -1e-6, 2000, dtype=torch.float64)
    for power, colour, dashes in zip(POWERS, DISTINCT, DASHES, strict=False):
        weight_G = effective_weight(schedule, power, rate_G, progress)
        axes.plot(rate_G, weight_G, color=colour, linestyle=dashes, label=f"p = {power:g}")
    _finish_weights(axes, "q(γ)¹⁻ᵖ / γ")


def _finish_weights(axes: Axes, label: str) -> None:
    """Logarithmic axes, limited to the uppermost decades."""
    axes.set(xscale="log", yscale="log", xlabel=RATE_LABEL, ylabel=label, xlim=(MIN_RATE, 1))
    ticks = [0.01, 0.03, 0.1, 0.3, 1]
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    lowest, highest = axes.get_ylim()
    axes.set_ylim(max(lowest, highest * 10.0**-DECADES), 5 * highest)  # space for the legend
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
    axes.set(xlabel="progress (fraction of training)", ylabel=RATE_LABEL, xlim=(0, 1), ylim=(0, 1))
    axes.grid(False)


def _draw_quantiles(schedule: NoiseSchedule, axes: Axes) -> None:
    """Median and central 90 % of the mask rates; only the median if all rows have the same rate."""
    progress_P = torch.linspace(0, 1, 41)
    level = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    rate_3P = torch.stack([draw(schedule, float(at), SCATTER_ROWS).rate_B.quantile(level) for at in progress_P], dim=1)
    if not is_single_rate(schedule):
        axes.fill_between(progress_P, rate_3P[0], rate_3P[2], color=DISTINCT[2], alpha=0.2, label="central 90 %")
    axes.plot(progress_P, rate_3P[1], color=DISTINCT[2], label="median")
    axes.set(xlabel="progress (fraction of training)", ylabel=RATE_LABEL, xlim=(0, 1), ylim=(0, None))
    if not is_single_rate(schedule):
        axes.legend()
