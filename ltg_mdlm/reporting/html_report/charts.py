"""Charts of curves: the selection of metrics and prominent groups, drawing, and conversion to SVG.

Groups are not distinguished by colour alone: lines also differ in their dashes, and the letter of the group is at their
end. The SVG of a chart uses the font and the colours of the page, and has an accessible name and description.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from ltg_mdlm.reporting.curves import Line, group_line
from ltg_mdlm.reporting.figure import DISTINCT, MUTED, ORDERED, STYLE
from ltg_mdlm.reporting.html_report.run_groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PROMINENT = len(DISTINCT)
"""Maximum number of groups with a coloured line; further groups are grey."""


DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (3, 1.2, 1, 1.2)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))


_SIZE, _SMALL = (4.7, 2.9), (2.7, 1.7)


_OUTLIERS = 8.0
"""A chart whose range is this many times that of the central 98 % of values shows only the latter."""


_LABEL_GAP = 0.055
"""Minimum distance of two labels, as a fraction of the axis."""


_EARLY = 0.9
"""Lines that end before this fraction of the axis have their letter at their end."""


_BAND, _FAINT_BAND = 0.18, 0.07
"""Opacities of bands; many overlapping bands are fainter."""


_AXIS = "#999999"


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
    Metric("loss", "Objective in training", "as the objective defines it", True),
    Metric("valid/loss", "Objective on held-out text", "as the objective defines it", True),
    Metric("valid/bound", "Bound on held-out text", "nats per token", True),
    Metric("bound", "Bound in training", "nats per token", True),
    Metric("valid/training_bound", "Bound under the training's own masking, held-out text", "nats per token", True),
    Metric("valid/masked_nll", "Masked tokens, held-out text, -log p", "nats per token", True),
    Metric("masked_nll", "Masked tokens in training, -log p", "nats per token", True),
    Metric("valid/causal_nll", "Causal -log p on held-out text", "nats per token", True),
    Metric("valid/accuracy", "Accuracy of masked tokens, held-out text", "% of masked tokens", False, percent=True),
    Metric("valid/accuracy_rare", "Accuracy of rare token types, held-out text", "% of them", False, percent=True),
    Metric(
        "valid/accuracy_frequent", "Accuracy of frequent token types, held-out text", "% of them", False, percent=True
    ),
    Metric("valid/minimal_pairs", "Minimal pairs", "% correct", False, percent=True),
    Metric("tokens_per_second", "Throughput", "tokens per second", False),
    Metric("lr", "Learning rate", "as the optimizer gets it"),
    Metric("grad_norm", "Gradient norm", "before clipping"),
    Metric("mask_rate", "Mask rate", "share of tokens that are masked"),
)


_LARGEST = 1e100

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
    others = sorted(key for key in logged - {metric.key for metric in METRICS} if not _NOT_SHOWN.fullmatch(key))
    return [*ours, *(Metric(key, key, "as logged") for key in others)]


@dataclass(frozen=True)
class Look:
    """How a group is drawn."""

    colour: str
    dashes: Any


LOOKS = tuple(Look(colour, dashes) for colour, dashes in zip(DISTINCT, DASHES, strict=True))


class Swatch(NamedTuple):
    """The style of the line of a group, for SVG."""

    variable: str
    """Name of the CSS variable of the colour."""
    dashes: str


def swatch(place: int) -> Swatch:
    """The style of the prominent group at this index."""
    look = LOOKS[place]
    dashes = "" if look.dashes == "-" else " ".join(f"{1.8 * length:g}" for length in look.dashes[1])
    return Swatch(VARIABLES[look.colour.lower()], dashes)


@dataclass(frozen=True)
class Chart:
    """A drawn chart."""

    title: str
    svg: str
    notes: tuple[str, ...]


def prominent_groups(groups: Sequence[Group]) -> tuple[list[Group], str]:
    """At most `PROMINENT` groups, all or the best ones, and a description of the selection."""
    if len(groups) <= PROMINENT:
        return list(groups), ""
    for metric in sorted(METRICS, key=lambda metric: metric.key != "valid/bound"):
        ranked = sorted((final, i) for i, group in enumerate(groups) if (final := _final(group, metric)) is not None)
        if ranked:
            best = [groups[i] for _, i in ranked[:PROMINENT]]
            return best, f"the best finished ones by the last value of: {metric.title[0].lower()}{metric.title[1:]}"
    return list(groups[:PROMINENT]), "the first ones"


def _final(group: Group, metric: Metric) -> float | None:
    """Sorting key of a group, smaller is better; None for an unfinished group, and without a finite value."""
    runs, finished = group.measured
    values = [run.metrics.curves[metric.key].last for run in runs if metric.key in run.metrics.curves]
    if not finished or metric.lower_is_better is None or not values or not all(map(math.isfinite, values)):
        return None
    return float(np.mean(values)) * (1 if metric.lower_is_better else -1)


class ChartDrawer:
    """Draws the charts of a report, with the same axis of steps and the same style of each group."""

    def __init__(self, groups: Sequence[Group], prominent: Sequence[Group]) -> None:
        self._groups = groups
        self._look = {group.code: look for group, look in zip(prominent, LOOKS, strict=False)}
        self._last_step = max(map(_last_step, groups), default=1)
        self._number = count(1)

    def chart(self, metric: Metric) -> Chart:
        """A chart with all groups."""
        lines = self._lines(metric)
        title = metric.title

        def draw(axes: Axes) -> list[str]:
            for group, line in lines:
                if group.code not in self._look:
                    axes.plot(line.step_P, _scaled(line.value_P, metric), color=_AXIS, linewidth=0.7, alpha=0.7)
            shown = [(group, line) for group, line in lines if group.code in self._look]
            for group, line in shown:
                _draw_line(axes, line, metric, self._look[group.code], _BAND if len(shown) <= 3 else _FAINT_BAND)
                self._mark_divergence(axes, group, line, metric)
            notes = _limit(axes, [line for _, line in lines], metric)
            _label_ends(axes, shown if len(self._groups) > 1 else [], metric, self._last_step)
            return notes

        return self._finish(metric, title, draw, _SIZE, _describe(metric, lines))

    def small_chart(self, metric: Metric, group: Group) -> Chart:
        """A small chart of one group, with the range of all groups."""
        lines = self._lines(metric)
        mine = [line for other, line in lines if other is group]

        def draw(axes: Axes) -> list[str]:
            _draw_range(axes, [line for _, line in lines], metric)
            for line in mine:
                _draw_line(axes, line, metric, LOOKS[0])
                self._mark_divergence(axes, group, line, metric)
            return _limit(axes, [line for _, line in lines], metric)

        own = [(group, line) for line in mine]
        return self._finish(metric, f"{group.code} {group.name}", draw, _SMALL, _describe(metric, own), small=True)

    def _lines(self, metric: Metric) -> list[tuple[Group, Line]]:
        found = []
        for group in self._groups:
            curves = [run.metrics.curves[metric.key] for run in group.runs if metric.key in run.metrics.curves]
            if curves:
                found.append((group, _drawable(group_line(curves, self._last_step))))
        return found

    def _mark_divergence(self, axes: Axes, group: Group, line: Line, metric: Metric) -> None:
        """Draw a cross at the last finite value of a line that ends with values that are not finite."""
        known = np.flatnonzero(np.isfinite(line.value_P))
        if len(known) and known[-1] < len(line.value_P) - 1:
            at = line.step_P[known[-1]], _scaled(line.value_P, metric)[known[-1]]
            axes.plot(*at, "x", color=DISTINCT[0], markersize=8, markeredgewidth=2)

    def _finish(
        self, metric: Metric, title: str, draw: Any, size: tuple[float, float], description: str, *, small: bool = False
    ) -> Chart:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter, MaxNLocator

        with mpl.rc_context(STYLE):
            figure = Figure(figsize=size)
            axes = figure.add_subplot()
            notes = draw(axes)
            axes.set_xlim(0, self._last_step * 1.001)
            axes.xaxis.set_major_locator(MaxNLocator(4 if small else 6, integer=True))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.yaxis.set_major_locator(MaxNLocator(3 if small else 5))
            if max(map(abs, axes.get_ylim())) >= 1000:
                axes.yaxis.set_major_formatter(EngFormatter(sep=""))
            if small:
                figure.subplots_adjust(left=0.17, right=0.96, top=0.95, bottom=0.16)
            else:
                axes.set(xlabel="step", ylabel=metric.unit)
                figure.subplots_adjust(left=0.145, right=0.93, top=0.96, bottom=0.165)
            svg = inline_svg(figure, f"chart-{next(self._number)}", title, description)
            return Chart(title, svg, tuple(notes))


def _drawable(line: Line) -> Line:
    """The line, interrupted where the axis of matplotlib would overflow, as values of a run that diverged do."""
    value_P, low_P, high_P = (
        np.where(np.abs(column_P) < _LARGEST, column_P, np.nan) for column_P in (line.value_P, line.low_P, line.high_P)
    )
    return replace(line, value_P=value_P, low_P=low_P, high_P=high_P)


def _last_step(group: Group) -> int:
    return max((curve.steps[-1] for run in group.runs for curve in run.metrics.curves.values()), default=1)


def _scaled(values: Any, metric: Metric) -> Any:
    return 100 * values if metric.percent else values


def _draw_line(axes: Axes, line: Line, metric: Metric, look: Look, band: float = _BAND) -> None:
    low_P, high_P = _scaled(line.low_P, metric), _scaled(line.high_P, metric)
    if np.nanmax(high_P - low_P, initial=0) > 0:
        axes.fill_between(line.step_P, low_P, high_P, color=look.colour, alpha=band, linewidth=0)
    few = len(line.step_P) <= 12
    marker = "o" if few else None
    axes.plot(
        line.step_P,
        _scaled(line.value_P, metric),
        color=look.colour,
        linestyle=look.dashes,
        marker=marker,
        markersize=3.5,
    )


def _draw_range(axes: Axes, lines: Sequence[Line], metric: Metric) -> None:
    """Minimum and maximum over all groups at every step."""
    steps = np.unique(np.concatenate([line.step_P for line in lines]))
    values = np.stack([np.interp(steps, line.step_P, _scaled(line.value_P, metric)) for line in lines])
    known = np.isfinite(values).any(axis=0)
    axes.fill_between(
        steps[known],
        np.nanmin(values[:, known], axis=0),
        np.nanmax(values[:, known], axis=0),
        color=_AXIS,
        alpha=0.25,
        linewidth=0,
    )


def _limit(axes: Axes, lines: Sequence[Line], metric: Metric) -> list[str]:
    """Cut the axis if few extreme values would compress all others, and return a note that says so."""
    drawn = _scaled(np.concatenate([np.concatenate([line.low_P, line.value_P, line.high_P]) for line in lines]), metric)
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return ["No finite value."]
    low, high = np.quantile(finite, [0.01, 0.99])
    if high > low and finite.max() - finite.min() > _OUTLIERS * (high - low):
        margin = 0.08 * (high - low)
        axes.set_ylim(max(low - margin, finite.min() - margin), min(high + margin, finite.max() + margin))
        extreme = max(finite.max(), finite.min(), key=lambda value: max(value - high, low - value))
        return [f"The axis is cut: the most extreme value is {extreme:.3g}."]
    return []


def _label_ends(axes: Axes, lines: Sequence[tuple[Group, Line]], metric: Metric, last_step: int) -> None:
    """Draw the letters at the ends of lines; at the right edge, they are moved apart."""
    low, high = axes.get_ylim()
    at_the_edge = []
    for group, line in lines:
        known = np.flatnonzero(np.isfinite(line.value_P))
        if not len(known):
            continue
        step, value = line.step_P[known[-1]], _scaled(line.value_P, metric)[known[-1]]
        if step < _EARLY * last_step:
            axes.annotate(group.code, (step, value), (6, 0), textcoords="offset points", fontweight="bold", va="center")
        else:
            at_the_edge.append((float(value - low) / (high - low), group.code))
    # The first letter is above those of lines that end at the same value.
    at_the_edge.sort(key=lambda end: end[1], reverse=True)
    at_the_edge.sort(key=lambda end: end[0])
    for place, (_, code) in zip(_apart([place for place, _ in at_the_edge]), at_the_edge, strict=True):
        axes.text(1.012, place, code, transform=axes.transAxes, fontweight="bold", va="center", fontsize=9)


def _apart(places: Sequence[float]) -> list[float]:
    """Ascending positions, at least `_LABEL_GAP` apart and, if they fit, between 0 and 1."""
    moved: list[float] = []
    for place in places:
        moved.append(max(min(max(place, 0.0), 1.0), moved[-1] + _LABEL_GAP if moved else 0.0))
    over = max(moved[-1] - 1.0, 0.0) if moved else 0.0
    for i in reversed(range(len(moved))):
        ceiling = moved[i + 1] - _LABEL_GAP if i + 1 < len(moved) else 1.0
        moved[i] = min(moved[i], ceiling) if over else moved[i]
    return moved


def _describe(metric: Metric, lines: Sequence[tuple[Group, Line]]) -> str:
    """Description of a chart for screen readers."""
    ends = []
    for group, line in lines[:PROMINENT]:
        finite = _scaled(line.value_P, metric)
        finite = finite[np.isfinite(finite)]
        said = f"from {finite[0]:.4g} to {finite[-1]:.4g}" if len(finite) else "no finite value"
        ends.append(f"{group.code} {said}")
    more = f", and {len(lines) - PROMINENT} more groups" if len(lines) > PROMINENT else ""
    return f"{metric.title} ({metric.unit}) over training steps: {'; '.join(ends)}{more}."


_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


_HREF = f"{{{_XLINK}}}href"


VARIABLES = {
    "#000000": "ink",
    "#333333": "ink",
    MUTED: "muted",
    "#999999": "axis",
    "#e6e6e6": "grid",
    **{colour.lower(): f"series-{i}" for i, colour in enumerate(DISTINCT) if i},
    **{colour.lower(): f"ordered-{i}" for i, colour in enumerate(ORDERED)},
}
"""CSS variable of each colour of the pictures. The page defines its value for light and for dark mode."""


_REMOVED = {f"{{{_SVG}}}{tag}" for tag in ("metadata", "title", "style")}
"""Removed from figures, since a style sheet in a figure would apply to the whole page."""


_COLOUR = re.compile(r"#[0-9a-f]{6}\b", re.IGNORECASE)


_NUMBER = re.compile(r"-?\d+\.\d{2,}")


_FONT = re.compile(r"(font:[^;]*?\d+(?:\.\d+)?px)[^;]*")


_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element. `name` is unique on the page and consists of letters, digits and hyphens."""
    root = ElementTree.fromstring(_rendered(figure, name))
    for parent, child in list(_children(root)):
        if child.tag in _REMOVED:
            parent.remove(child)
    _own_ids(root, name)
    for element in root.iter():
        _adapt(element)
    _describe_svg(root, name, title, description)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", ElementTree.tostring(root, encoding="unicode"))


def _rendered(figure: Figure, name: str) -> str:
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _children(root: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, ElementTree.Element]]:
    return ((parent, child) for parent in root.iter() for child in parent)


def _own_ids(root: ElementTree.Element, name: str) -> None:
    """Prefix ids with the name of the figure, since all figures are on one page, and remove ids without references."""
    used = {reference for element in root.iter() for reference in _references(element)}
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used:
            element.set("id", f"{name}-{own}")
        for key, value in element.attrib.items():
            if key == _HREF and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            else:
                element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))


def _references(element: ElementTree.Element) -> Iterator[str]:
    for key, value in element.attrib.items():
        if key == _HREF:
            yield value.removeprefix("#")
        yield from _REFERENCE.findall(value)


def _adapt(element: ElementTree.Element) -> None:
    """Use CSS variables for colours and the font of the page, and round coordinates."""
    style = element.get("style")
    if style is not None:
        element.set("style", _FONT.sub(r"\1 var(--sans)", _COLOUR.sub(_variable, style)))
    for key in ("d", "x", "y", "transform"):
        if key in element.attrib:
            element.set(key, _NUMBER.sub(lambda number: f"{float(number[0]):.1f}", element.attrib[key]))


def _variable(colour: re.Match[str]) -> str:
    name = VARIABLES.get(colour[0].lower())
    return f"var(--{name})" if name else colour[0]


def _describe_svg(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    for place, (kind, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{kind}", {"id": f"{name}-{kind}"})
        element.text = text
        root.insert(place, element)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
