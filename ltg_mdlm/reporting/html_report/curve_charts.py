"""Interactive charts of curves: the metrics, the data of their lines, reference lines, and the Vega-Lite template.

The page has one template for all charts, and one array of numbers per run and metric. Its script (templates/page.js)
selects runs and axes, smooths, and passes the rows to Vega-Lite, which averages seeds and draws.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ltg_mdlm.reporting.curves import run_line
from ltg_mdlm.reporting.html_report.run_groups import Group, RunRecord, corpus_of, group_code
from ltg_mdlm.storage.metrics_file import PROGRESS

PROMINENT = 6
"""Groups that are selected when the page opens, and number of colours."""

DASHES = ([1, 0], [7, 3], [2, 2], [7, 2, 2, 2], [12, 3], [4, 2, 1, 2, 1, 2])
"""Line styles, so that lines can be told apart without colours."""

MAX_BINS, MIN_BINS, MAX_POINTS = 200, 24, 24_000
"""Points of a curve, and points of all curves of one metric, above which a curve has fewer."""

OUTLIERS = 8.0
"""A chart whose range is this many times that of the central 98 % of its values is cut to the latter."""

ALIKE = 0.1
"""The untrained models have one line if their values differ by no more than this fraction of the range of values."""

RATE = "tokens_per_second"

LARGEST = 1e100
"""Larger values, as those of a run that diverged, are treated like values that are not finite."""


@dataclass(frozen=True)
class Metric:
    """A metric with a chart."""

    key: str
    """Name in metrics.jsonl."""
    title: str
    unit: str
    lower_is_better: bool | None = None
    percent: bool = False


METRICS = (
    Metric("valid/bound", "Bound on held-out text", "nats per token", True),
    Metric("valid/loss", "Objective on held-out text", "as the objective defines it", True),
    Metric("loss", "Objective in training", "as the objective defines it", True),
    Metric("bound", "Bound in training", "nats per token", True),
    Metric("valid/training_bound", "Bound under the training's own masking, held-out text", "nats per token", True),
    Metric("valid/masked_nll", "Masked tokens, held-out text, -log p", "nats per token", True),
    Metric("masked_nll", "Masked tokens in training, -log p", "nats per token", True),
    Metric("causal_nll", "Causal -log p in training", "nats per token", True),
    Metric("valid/causal_nll", "Causal -log p on held-out text", "nats per token", True),
    Metric("valid/minimal_pairs", "Minimal pairs", "% correct", False, percent=True),
    Metric("valid/accuracy", "Accuracy of masked tokens, held-out text", "% of masked tokens", False, percent=True),
    Metric("valid/accuracy_rare", "Accuracy of rare token types, held-out text", "% of them", False, percent=True),
    Metric(
        "valid/accuracy_frequent", "Accuracy of frequent token types, held-out text", "% of them", False, percent=True
    ),
    Metric("accuracy", "Accuracy of masked tokens in training", "% of masked tokens", False, percent=True),
    Metric("tokens_per_second", "Throughput", "tokens per second", False),
    Metric("lr", "Learning rate", "as the optimizer gets it"),
    Metric("grad_norm", "Gradient norm", "before clipping"),
    Metric("mask_rate", "Mask rate", "share of tokens that are masked"),
)

_NATS = ("valid/bound", "valid/training_bound", "valid/masked_nll", "valid/causal_nll")
"""Metrics that are compared with the unigram cross-entropy and the floor."""

_NOT_SHOWN = re.compile(
    r".*_standard_error|valid/(unigram|floor|accuracy_rare_chance)|(valid/)?bits_per_byte|valid/pairs/.*"
)
"""Metrics without a chart: errors, constants, the bound in another unit, and minimal pairs of a single phenomenon."""


def metrics_of(groups: Sequence[Group]) -> list[Metric]:
    """Metrics that were logged more than once: those of METRICS, then others by name, including those of plugins."""
    logged = {
        key for group in groups for run in group.runs for key, curve in run.metrics.curves.items() if len(curve) > 1
    }
    ours = [metric for metric in METRICS if metric.key in logged]
    others = logged - {metric.key for metric in METRICS} - {*PROGRESS}
    shown = sorted(key for key in others if not _NOT_SHOWN.fullmatch(key))
    return [*ours, *(Metric(key, key, "as logged") for key in shown)]


def order_groups(groups: Sequence[Group]) -> tuple[list[Group], str]:
    """The groups, by corpus and the best first, and the title of the metric that orders them; "" without such a metric.

    Values on different corpora do not compare. The codes follow the order, so that A is the best on the first corpus.
    Groups without a finished run, or whose last value is not finite, stay in order behind the others.
    """
    corpora = list(dict.fromkeys(corpus_of(group) for group in groups))
    for metric in METRICS:
        values = {group.code: _final(group, metric) for group in groups}
        if metric.lower_is_better is not None and any(map(math.isfinite, values.values())):
            ordered = sorted(
                groups,
                key=lambda group: (
                    not math.isfinite(values[group.code]),
                    corpora.index(corpus_of(group)),
                    values[group.code],
                ),
            )
            return [replace(group, code=group_code(i)) for i, group in enumerate(ordered)], metric.title
    return list(groups), ""


def _final(group: Group, metric: Metric) -> float:
    runs, finished = group.measured
    values = [run.metrics.curves[metric.key].last for run in runs if metric.key in run.metrics.curves]
    if not finished or not values or not all(map(math.isfinite, values)):
        return math.nan
    return float(np.mean(values)) * (1 if metric.lower_is_better else -1)


@dataclass(frozen=True)
class Chart:
    """A chart of the page, without the lines that the script draws."""

    metric: Metric
    description: str
    """Text alternative."""
    table: pd.DataFrame
    """First, best and last values of the groups that are selected when the page opens."""
    notes: tuple[str, ...]


def charts_and_data(groups: Sequence[Group]) -> tuple[list[Chart], dict[str, Any]]:
    """The charts of all metrics, and the data from which the script draws them.

    `groups` are ordered; the first `PROMINENT` ones are selected when the page opens.
    """
    runs = [(place, run) for place, group in enumerate(groups) for run in group.runs]
    last_step = max((c.steps[-1] for _, run in runs for c in run.metrics.curves.values()), default=1)
    bins = min(max(MAX_POINTS // max(len(runs), 1), MIN_BINS), MAX_BINS)
    progress = [progress_of(run) for _, run in runs]
    axes: list[dict[str, Any]] = []
    axis_of: dict[tuple[int, bytes], int] = {}
    charts, drawn = [], []
    for metric in metrics_of(groups):
        scale, curves, finals = 100 if metric.percent else 1, [], []
        for number, (place, run) in enumerate(runs):
            if metric.key not in run.metrics.curves:
                continue
            line = run_line(run.metrics.curves[metric.key], last_step, bins)
            value_P, low_P, high_P = (
                np.where(np.abs(c) < LARGEST, scale * c, np.nan) for c in (line.value_P, line.low_P, line.high_P)
            )
            # Metrics of a run that are logged together share their axis.
            axis = axis_of.setdefault((number, line.step_P.tobytes()), len(axes))
            if axis == len(axes):
                axes.append({"step": _short(line.step_P), **progress[number].at(line.step_P)})
            curve: dict[str, Any] = {"run": number, "axis": axis, "y": _short(value_P)}
            if np.nanmax(high_P - low_P, initial=0) > 0:
                curve |= {"low": _short(low_P), "high": _short(high_P)}
            curves.append(curve)
            known_P = value_P[np.isfinite(value_P)]
            if place < PROMINENT and len(known_P):
                best = known_P.max() if metric.lower_is_better is False else known_P.min()
                finals.append((place, known_P[0], best, value_P[-1]))
        domain, notes = _domain(curves)
        table = _values_table(finals, groups, metric)
        drawn.append({"curves": curves, "references": references(metric, [run for _, run in runs]), "domain": domain})
        shown = range(min(len(groups), PROMINENT))
        having = [groups[place].code for place in shown if any(place == other for other, *_ in finals)]
        if len(having) < len(shown):
            notes += (f"Values of {', '.join(having) or 'other groups'} only.",)
        ends = "; ".join(f"{row.group} from {row.first} to {row.last}" for row in table.itertuples())
        alternative = f"{metric.title} ({metric.unit}) over training: {ends or 'no finite value'}."
        charts.append(Chart(metric, f"{alternative} The values are in a table below.", table, notes))
    data = {
        "groups": [
            {"code": group.code, "name": group.name, "look": place % PROMINENT, "dash": DASHES.index(dashes_of(place))}
            for place, group in enumerate(groups)
        ],
        "runs": [
            {"group": place, "seed": str(run.settings.get("seed", "none")), "name": run.name} for place, run in runs
        ],
        "axes": axes,
        "charts": drawn,
        "bins": bins,
        "last_step": last_step,
        "template": template() if charts else None,
    }
    return charts, data


def dashes_of(place: int) -> list[int]:
    """Line style of a group, by its place. 36 successive groups differ in colour or line style."""
    return DASHES[(place + place // PROMINENT) % len(DASHES)]


@dataclass(frozen=True)
class Progress:
    """Words, tokens and hours of a run at its logged steps, as pairs of (steps, amounts)."""

    amounts: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]

    def at(self, step_P: NDArray[np.float64]) -> dict[str, list[float | None]]:
        """The amounts at other steps, interpolated."""
        return {name: _short(np.interp(step_P, *known)) for name, known in self.amounts.items()}


def progress_of(run: RunRecord) -> Progress:
    """Words and tokens as logged; hours of training, without validation, from tokens and throughput."""
    columns = {key: run.metrics.curves[key].columns() for key in (*PROGRESS, RATE) if key in run.metrics.curves}
    amounts = {key.removesuffix("_seen"): (columns[key][0], columns[key][1]) for key in PROGRESS if key in columns}
    if "tokens" in amounts and RATE in columns:
        step_N, rate_N = columns[RATE][:2]
        token_N = np.interp(step_N, *amounts["tokens"])
        with np.errstate(all="ignore"):
            second_N = np.nan_to_num(np.diff(token_N, prepend=0) / rate_N, posinf=0, neginf=0)
            hour_N = second_N.cumsum() / 3600
        # Before the first row, no time has passed.
        amounts["hours"] = np.append(0, step_N), np.append(0, hour_N)
    return Progress(amounts)


def references(metric: Metric, runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Horizontal lines: chance, unigram cross-entropy, the floor of a generated corpus, and the untrained model.

    Runs on different corpora have different ones; at most three of a kind are drawn.
    """
    found: list[tuple[str, float]] = []
    if metric.key == "valid/minimal_pairs":
        found.append(("chance", 50.0))
    if metric.key in _NATS:
        for name, label in (("unigram", "unigram cross-entropy"), ("floor", "floor")):
            found += [(label, value) for run in runs if (value := run.row.figures.get(name)) is not None]
    if metric.key.startswith("valid/"):
        curves = [run.metrics.curves[metric.key].columns() for run in runs if metric.key in run.metrics.curves]
        ends_R2 = np.array([c[1, [0, -1]] for c in curves if c[0, 0] == 0 and np.isfinite(c[1, [0, -1]]).all()])
        # Objectives of different plugins start at different values.
        if len(ends_R2) and np.ptp(ends_R2[:, 0]) <= ALIKE * np.ptp(ends_R2):
            found.append(("untrained", (100 if metric.percent else 1) * float(ends_R2[:, 0].mean())))
    distinct = dict.fromkeys((label, float(f"{value:.4g}")) for label, value in found)
    of_kind = {label: [value for other, value in distinct if other == label] for label, _ in distinct}
    return [{"label": label, "y": value} for label, values in of_kind.items() for value in sorted(values)[:3]]


def _short(values: NDArray[np.float64]) -> list[float | None]:
    """Five significant digits; None for values that are not finite."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]


def _domain(curves: Sequence[dict[str, Any]]) -> tuple[list[float] | None, tuple[str, ...]]:
    """The vertical range to which the chart is cut if few values would compress all others, and a note."""
    known = np.array([y for c in curves for y in (*c["y"], *c.get("low", ()), *c.get("high", ())) if y is not None])
    if not len(known):
        return None, ("No finite value.",)
    low, high = np.quantile(known, [0.01, 0.99])
    if high <= low or known.max() - known.min() <= OUTLIERS * (high - low):
        return None, ()
    margin = 0.08 * (high - low)
    extreme = max(known.max(), known.min(), key=lambda value: max(value - high, low - value))
    domain = [max(low - margin, known.min() - margin), min(high + margin, known.max() + margin)]
    return domain, (f"Cut to the central 98 % of values; the most extreme value is {extreme:.4g}.",)


def _values_table(finals: Sequence[tuple[int, float, float, float]], groups: Sequence[Group], metric: Metric) -> Any:
    """First, best and last values, averaged over the runs of a group, with the standard error over seeds."""
    frame = pd.DataFrame(finals, columns=["group", "first", "best", "last"])
    by_group = frame.groupby("group", sort=True)
    mean, error, n = by_group.mean(), by_group["last"].sem(), by_group.size()
    best = "highest" if metric.lower_is_better is False else "lowest"
    table = mean.rename(columns={"best": best}).map(lambda value: f"{value:.4g}" if math.isfinite(value) else "–")
    table["standard error"] = [f"{e:.2g}" if math.isfinite(e) else "–" for e in error]
    table["runs"] = n
    table.insert(0, "group", [groups[place].label for place in table.index])
    return table


def template() -> dict[str, Any]:
    """The Vega-Lite chart of one metric, whose data `curves` and `references` the script fills in.

    A row of `curves` is one point of one run: `line` (points with equal lines are averaged), `code` and `name` of its
    group, `look` (-1 for grey lines), `dash`, `bin`, `x`, `y`, and `low` and `high`. Colours are variables of the
    page's style sheet, so that charts follow dark mode and print.
    """
    colour = alt.Color(
        "look:O",
        scale=alt.Scale(domain=[*range(PROMINENT)], range=[f"var(--series-{i})" for i in range(PROMINENT)]),
        legend=None,
    )
    dash = alt.StrokeDash("dash:O", scale=alt.Scale(domain=[*range(len(DASHES))], range=[*DASHES]), legend=None)
    ticks: dict[str, Any] = {
        "tickCount": 5,
        "labelExpr": "abs(datum.value) >= 10000 ? format(datum.value, '~s') : datum.label",
        "labelSeparation": 6,
    }
    x = alt.X("x:Q", scale=alt.Scale(nice=False, zero=False), axis=alt.Axis(grid=False, **ticks))
    y = alt.Y("y:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=None, **ticks))
    lines = (
        alt.Chart(alt.NamedData("curves"))
        .transform_aggregate(
            x="mean(x)",
            y="mean(y)",
            error="stderr(y)",
            low="min(low)",
            high="max(high)",
            runs="valid(y)",
            cross="max(cross)",
            groupby=["line", "code", "name", "look", "dash", "bin"],
        )
        .transform_calculate(
            low="datum.runs > 1 ? datum.y - datum.error : datum.low",
            high="datum.runs > 1 ? datum.y + datum.error : datum.high",
        )
        .encode(x=x, y=y, detail="line:N")
    )
    selected = lines.transform_filter("datum.look >= 0").encode(color=colour)
    letters = selected.transform_filter("isValid(datum.y)").transform_window(
        place="row_number()", sort=[alt.SortField("bin")], groupby=["line"]
    )
    letters = letters.transform_joinaggregate(points="count()", groupby=["line"]).transform_filter(
        # The best groups have their letters further right, where lines are further apart.
        "datum.place === (datum.points < 8 ? datum.points - datum.look % datum.points"
        " : 1 + floor(datum.points * (0.75 - 0.13 * datum.look)))"
    )
    # Text at the edge of the chart would be cut.
    inside = {
        "align": alt.expr("scale('x', datum.x) < 10 ? 'left' : scale('x', datum.x) > width - 10 ? 'right' : 'center'"),
        "baseline": alt.expr(
            "scale('y', datum.y) < 8 ? 'top' : scale('y', datum.y) > height - 8 ? 'bottom' : 'middle'"
        ),
    }
    pointed = alt.selection_point(on="pointerover", clear="pointerout", fields=["line", "bin"])
    tooltip = [
        alt.Tooltip("line:N"),
        alt.Tooltip("x:Q", format=",.5~g"),
        alt.Tooltip("y:Q", format=".5~g", title="value"),
        alt.Tooltip("error:Q", format=".2~g", title="standard error"),
        alt.Tooltip("runs:Q", title="runs"),
    ]
    reference = alt.Chart(alt.NamedData("references")).encode(y=y)
    zoom = alt.selection_interval(bind="scales", zoom="wheel![event.ctrlKey || event.metaKey]")
    chart = alt.layer(
        lines.transform_filter("datum.look < 0")
        .mark_line(color="var(--axis)", strokeWidth=0.7, opacity=0.4, clip=True)
        .encode(tooltip=["line:N"]),
        reference.mark_rule(color="var(--muted)", strokeDash=[3, 3], clip=True),
        # Chance and the untrained model are often close, so their labels have different places.
        reference.mark_text(
            align=alt.expr("datum.label === 'chance' ? 'right' : 'center'"),
            dy=alt.expr("scale('y', datum.y) < 14 ? 8 : -6"),
            fontSize=12,
            color="var(--muted)",
            clip=True,
        ).encode(x=alt.value(alt.expr("datum.label === 'chance' ? width : 0.4 * width")), text="label:N"),
        selected.mark_area(opacity=0.16, clip=True).encode(y=alt.Y("low:Q"), y2="high:Q"),
        selected.mark_line(strokeWidth=2, clip=True).encode(strokeDash=dash).add_params(zoom),
        letters.mark_text(fontWeight="bold", fontSize=14, clip=True, **inside).encode(text="code:N"),
        selected.transform_filter("datum.cross").mark_text(text="✕", fontSize=15, color="var(--bad)", clip=True),
        selected.transform_filter("isValid(datum.y)")
        .mark_point(filled=True, size=300, clip=True)
        .encode(opacity=alt.when(pointed, empty=False).then(alt.value(0.4)).otherwise(alt.value(0)), tooltip=tooltip)
        .add_params(pointed),
    )
    styled = chart.properties(width="container", height=220).configure(
        background="transparent",
        axis=alt.AxisConfig(
            labelColor="var(--muted)",
            titleColor="var(--ink)",
            domainColor="var(--axis)",
            tickColor="var(--axis)",
            gridColor="var(--grid)",
            titleFontWeight="normal",
            titleFontSize=12,
            labelFontSize=12,
        ),
        view=alt.ViewConfig(stroke=None),
        mark=alt.MarkConfig(aria=False),
    )
    specification: dict[str, Any] = styled.to_dict()
    return specification
