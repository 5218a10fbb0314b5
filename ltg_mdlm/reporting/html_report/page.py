"""Collect the contents of the HTML report, and write it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from ltg_mdlm import __version__
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_text
from ltg_mdlm.core.terminal import count_progress
from ltg_mdlm.reporting.curves import BINS
from ltg_mdlm.reporting.figure import require_matplotlib
from ltg_mdlm.reporting.html_report import charts
from ltg_mdlm.reporting.html_report import figures as evaluation
from ltg_mdlm.reporting.html_report import figures as generation
from ltg_mdlm.reporting.html_report import figures as held_out
from ltg_mdlm.reporting.html_report import pictures as components
from ltg_mdlm.reporting.html_report import sample_gallery as samples
from ltg_mdlm.reporting.html_report.charts import Chart, ChartDrawer, Metric, swatch
from ltg_mdlm.reporting.html_report.figures import (
    BEST,
    Fact,
    Table,
    differing_settings,
    differing_versions,
    equal_settings,
    equal_versions,
    figure_tables,
)
from ltg_mdlm.reporting.html_report.run_groups import Group, RunRecord, group_runs, read_record

MULTIPLES = 60
"""Maximum number of groups with a small chart of their own."""


@dataclass(frozen=True)
class Content:
    """Everything that the template shows."""

    runs: Sequence[RunRecord]
    groups: Sequence[Group]
    prominent: Sequence[Group]
    prominent_by: str
    differing: Sequence[Table]
    equal: Sequence[Fact]
    differing_versions: Sequence[Table]
    equal_versions: Sequence[Fact]
    charts: Sequence[Chart]
    other_charts: Sequence[Chart]
    multiples: Sequence[Chart]
    multiples_of: str
    held_out: Sequence[Table]
    evaluation: Sequence[Table]
    generation: Sequence[tuple[str, Sequence[Table]]]
    """Tables by metric."""
    results: Path | None
    ambiguous: Sequence[str]
    recipes: Sequence[components.RecipePictures]
    recipes_left_out: int
    samples: Sequence[samples.GroupSamples]


@dataclass(frozen=True)
class Extent:
    """How many of the contents that take time are included."""

    recipes: int = 6
    """Maximum number of recipes whose schedule and masking are drawn."""
    samples: int = 2
    """Samples of each prominent group."""


def write_report(runs: Sequence[Path], page: Path, *, results: Path | None, extent: Extent) -> None:
    """Write the HTML report of run folders to the file `page`, completely or not at all.

    `results` is the folder of evaluation results, or None. Raises `UserError` if matplotlib is missing, or if the file
    cannot be written.
    """
    require_matplotlib()
    _require_place(page)
    content = collect(runs, results, extent)
    try:
        write_text(page, render(content))
    except OSError as error:
        raise UserError(f"{page} cannot be written: {error.strerror}") from None


def _require_place(page: Path) -> None:
    """Raise `UserError` if the file cannot be written, before anything is drawn."""
    folder = page.resolve().parent
    if page.is_dir():
        raise UserError(f"{page} is a folder; name a file, for example {page / 'report.html'}")
    if not folder.is_dir():
        raise UserError(f"{page}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{page} cannot be written: no permission to write to {folder}")


def collect(paths: Sequence[Path], results: Path | None, extent: Extent) -> Content:
    """Read the runs, and draw charts and pictures."""
    runs = [read_record(path) for path in paths]
    groups = group_runs(runs)
    prominent, prominent_by = charts.prominent_groups(groups)
    metrics = charts.metrics_of(groups)
    drawn, multiples, multiples_of = _draw(groups, prominent, metrics)
    known = sum(metric in charts.METRICS for metric in metrics)
    recipes, left_out = components.recipe_pictures(prominent, extent.recipes) if extent.recipes else ([], 0)
    return Content(
        runs=runs,
        groups=groups,
        prominent=prominent,
        prominent_by=prominent_by,
        differing=differing_settings(groups),
        equal=equal_settings(groups),
        differing_versions=differing_versions(groups),
        equal_versions=equal_versions(groups),
        charts=drawn[:known],
        other_charts=drawn[known:],
        multiples=multiples,
        multiples_of=multiples_of,
        held_out=figure_tables(groups, held_out.held_out_figures(groups)),
        evaluation=figure_tables(groups, evaluation.evaluation_figures(groups, results)) if results else [],
        generation=_generation_tables(groups, results) if results else [],
        results=results,
        ambiguous=evaluation.ambiguous(groups),
        recipes=recipes,
        recipes_left_out=left_out,
        samples=samples.samples_of(prominent, results, extent.samples) if extent.samples else [],
    )


def _generation_tables(groups: Sequence[Group], results: Path) -> list[tuple[str, list[Table]]]:
    by_measure = generation.generation_figures(groups, results)
    return [(label, figure_tables(groups, figures, "sampler")) for label, figures in by_measure.items()]


def _draw(
    groups: Sequence[Group], prominent: Sequence[Group], metrics: Sequence[Metric]
) -> tuple[list[Chart], list[Chart], str]:
    """One chart per metric. If not all groups are prominent, also a small chart of the main metric per group."""
    drawer = ChartDrawer(groups, prominent)
    many = groups[:MULTIPLES] if len(groups) > len(prominent) else []
    main = min(metrics, key=lambda metric: metric.key != "valid/bound", default=None)
    with count_progress("charts", len(metrics) + len(many)) as advance:
        drawn = [_counted(drawer.chart(metric), advance) for metric in metrics]
        multiples = [_counted(drawer.small_chart(main, group), advance) for group in many] if main else []
    return drawn, multiples, main.title if main else ""


def _counted(chart: Chart, advance: Callable[[int], None]) -> Chart:
    advance(1)
    return chart


def render(content: Content) -> str:
    """The report as HTML. Everything that comes from files is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ltg_mdlm.reporting.html_report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        content=content,
        looks={group.code: swatch(place) for place, group in enumerate(content.prominent)},
        title=title_of(content.runs),
        summary=summary_of(content),
        bins=BINS,
        best=BEST,
        shade=_shade,
        made=time.strftime("%Y-%m-%d %H:%M"),
        program=__version__,
    )


def title_of(runs: Sequence[RunRecord]) -> str:
    """Name of the run, or of the folder of all runs."""
    if len(runs) == 1:
        return f"Run {runs[0].name}"
    folders = {run.row.folder.resolve().parent for run in runs}
    return f"{len(runs)} runs" + (f" of {folders.pop().name}" if len(folders) == 1 else "")


def summary_of(content: Content) -> str:
    """Number of runs, groups and states."""
    states = Counter(run.row.status for run in content.runs)
    groups = f" in {len(content.groups)} groups" if 1 < len(content.groups) < len(content.runs) else ""
    return f"{len(content.runs)} run{'s' * (len(content.runs) > 1)}{groups}: " + ", ".join(
        f"{times} {state}" for state, times in states.items()
    )


def _shade(share: float) -> str:
    """Opacity of the background of a token: high for the first pass, low for the last."""
    return f"{0.62 - 0.56 * share:.2f}"
