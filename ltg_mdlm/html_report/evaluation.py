"""What evaluation wrote about the runs' models: every task's main figure, averaged over seeds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltg_mdlm.durable import TEMPORARY
from ltg_mdlm.evaluate.answers import SETTINGS
from ltg_mdlm.html_report.groups import Group, Spread, spread
from ltg_mdlm.html_report.runs import RunRecord
from ltg_mdlm.html_report.tables import Figure

MAIN = "main"
_USUAL = ("none", "ema", "fraction")
"""Settings of scoring that need not be mentioned."""


@dataclass(frozen=True)
class Result:
    """A task's main figure of one run."""

    task: str
    """Task, data, figure, and how it was scored."""
    value: float | None
    percent: bool
    validated: bool


def results_of(run: RunRecord, folder: Path) -> list[Result]:
    """All results of the run's last state below a folder of results; what cannot be read is left out."""
    files = sorted((folder / run.name / MAIN).rglob("summary.json"))
    read = (_read(file) for file in files if not any(part.startswith(TEMPORARY) for part in file.parts))
    return [result for result in read if result is not None]


def _read(file: Path) -> Result | None:
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        metric = summary["metric"]
        # Fine-tuning writes the mean over its seeds.
        value = summary[metric] if metric in summary else summary["mean"][metric]
        label = f"{summary['task']}/{Path(summary['data']).name}, {metric.removesuffix('_percent').replace('_', ' ')}"
        validated = bool(summary.get("validated", True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    is_share = metric == "accuracy"
    known = float(value) * (100 if is_share else 1) if isinstance(value, int | float) else None
    return Result(f"{label}{_told(summary)}", known, is_share, validated)


def _told(summary: Mapping[str, Any]) -> str:
    """How texts were scored, as far as it is not the usual way."""
    silent = {None, *_USUAL, summary.get("rate") if summary.get("time") != "constant" else None}
    told = [str(summary[key]) for key in SETTINGS if summary.get(key) not in silent]
    return f" ({', '.join(told)})" if told else ""


def ambiguous(groups: Sequence[Group]) -> list[str]:
    """Names that several of the runs have: results tell runs by name, so theirs are not shown."""
    names = Counter(run.name for group in groups for run in group.runs)
    return sorted(name for name, times in names.items() if times > 1)


def evaluation_figures(groups: Sequence[Group], folder: Path) -> list[Figure]:
    """One figure per task and way of scoring; higher is better in all of them."""
    unclear = ambiguous(groups)
    by_run = {
        id(run): {result.task: result for result in results_of(run, folder)}
        for group in groups
        for run in group.runs
        if run.name not in unclear
    }
    return [_figure(task, groups, by_run) for task in sorted({task for found in by_run.values() for task in found})]


def _figure(task: str, groups: Sequence[Group], by_run: Mapping[int, Mapping[str, Result]]) -> Figure:
    found = {group.code: list(_found(group, task, by_run)) for group in groups}
    values: dict[str, Spread | None] = {code: spread(r.value for r in some) for code, some in found.items()}
    first = next(result for some in found.values() for result in some)
    label = f"{task}{', %' if first.percent else ''}{'' if first.validated else ' — unvalidated'}"
    return Figure(label, values, (("{:.1f}" if first.percent else "{:.3f}").format), lower_is_better=False)


def _found(group: Group, task: str, by_run: Mapping[int, Mapping[str, Any]]) -> Iterator[Result]:
    return (by_run[id(run)][task] for run in group.runs if task in by_run.get(id(run), {}))
