"""Collect the contents of the HTML report, and fill in its template."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert  # noqa: F401  # Imported here so that a missing package is reported before runs are read.
from markupsafe import Markup

from ltg_mdlm import __version__
from ltg_mdlm.reporting.html_report import tables
from ltg_mdlm.reporting.html_report.curve_charts import METRICS, PROMINENT, charts_and_data, dashes_of, order_groups
from ltg_mdlm.reporting.html_report.pictures import recipe_pictures
from ltg_mdlm.reporting.html_report.run_groups import RunRecord, group_runs
from ltg_mdlm.reporting.html_report.sample_gallery import samples_of

MANY_RUNS = 20
"""The table of more runs is collapsed."""


def render(contents: dict[str, Any], library: str) -> str:
    """The HTML page with these contents and the script `library`. Everything that comes from files is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ltg_mdlm.reporting.html_report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["table"] = tables.html_table
    environment.filters["in_script"] = _in_script
    return environment.get_template("page.html").render(
        contents, library=Markup(library.replace("</script", "<\\/script"))
    )


def _in_script(value: Any) -> Markup:
    """JSON inside of a script element, which no text in it can end."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def collect(runs: Sequence[RunRecord], results: Path | None, most_recipes: int, samples: int) -> dict[str, Any]:
    """Everything that the template shows, by name."""
    groups, ordered_by = order_groups(group_runs(runs))
    charts, data = charts_and_data(groups)
    known = sum(chart.metric in METRICS for chart in charts)
    recipes, left_out = recipe_pictures(groups[:PROMINENT], most_recipes) if most_recipes else ([], 0)
    held_out, evaluation = tables.held_out_values(groups), tables.evaluation_values(groups, results)
    seeds = sorted({run["seed"] for run in data["runs"]})
    states = Counter(run.row.status for run in runs)
    folders = {run.row.folder.resolve().parent for run in runs}
    of_folder = f" of {folders.pop().name}" if len(folders) == 1 else ""
    return {
        "title": f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs):,} runs{of_folder}",
        "states": ", ".join(f"{times:,} {state}" for state, times in states.items()),
        "runs": runs,
        "groups": groups,
        "ordered_by": ordered_by,
        "summary": tables.summary_table(groups, held_out, evaluation),
        "leader": tables.leader_sentence(groups, held_out),
        "attention": [(run.name, "; ".join(run.remarks)) for run in runs if run.remarks],
        "prominent": PROMINENT,
        "charts": charts[:known],
        "other_charts": charts[known:],
        "cut": any(chart["domain"] for chart in data["charts"]),
        "axes": {name for axis in data["axes"] for name in axis},
        "seeds": seeds if len(seeds) > 1 and any(len(group.runs) > 1 for group in groups) else [],
        "data": data,
        "held_out": tables.figure_tables(groups, held_out),
        "evaluation": tables.figure_tables(groups, evaluation),
        "generation": tables.figure_tables(groups, tables.generation_values(groups, results)),
        "results": results,
        "ambiguous": tables.ambiguous(groups),
        "recipes": recipes,
        "recipes_left_out": left_out,
        "samples": samples_of(groups[:PROMINENT], results, samples) if samples else [],
        "run_table": tables.run_table(groups),
        "many_runs": len(runs) > MANY_RUNS,
        "differing": tables.differing_facts(groups, "settings"),
        "equal": tables.equal_facts(groups, "settings"),
        "differing_versions": tables.differing_facts(groups, "versions"),
        "equal_versions": tables.equal_facts(groups, "versions"),
        "program": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "dashes": lambda place: " ".join(map(str, dashes_of(place))),
        "shade": lambda share: f"{0.62 - 0.56 * share:.2f}",
    }
