"""Tables of the page: never wider than paper, and the best of a line marked by a sign and by weight.

What differs between the runs, and what does not.

Held-out figures at the end of training, averaged over seeds.

What evaluation wrote about the runs' models: every task's main figure, averaged over seeds.

What `eval generation` wrote of the runs' samples: figures by sampler and steps, and of real text beside them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ltg_mdlm.core.files import TEMPORARY
from ltg_mdlm.evaluation.answers import SETTINGS
from ltg_mdlm.reporting.html_report.run_groups import (
    PLUGINS,
    Group,
    RunRecord,
    Spread,
    differing,
    shown,
    shown_plugins,
    spread,
)
from ltg_mdlm.storage.metrics_file import ROWS

WIDEST = 6
"""Columns beside the headings of the lines; what has more is cut into several tables."""


BEST = "★"


_NARROW = "\u202f"
"""A space at which no line breaks."""


@dataclass(frozen=True)
class Cell:
    """What stands in a place."""

    text: str
    best: bool = False
    detail: str = ""
    """smaller, behind the text"""


@dataclass(frozen=True)
class Table:
    """A table with headings on both sides; `lines` are (heading, cells)."""

    corner: str
    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Figure:
    """A number of every group: how it is written, and which is the better one."""

    label: str
    values: Mapping[str, Spread | None]
    """by the group's code"""
    write: Callable[[float], str] = "{:.4f}".format
    lower_is_better: bool | None = None
    """None: no group is marked"""
    remarks: Mapping[str, str] | None = None
    """by the group's code; a group with a remark is not compared"""


def figure_tables(groups: Sequence[Group], figures: Sequence[Figure], corner: str = "figure") -> list[Table]:
    """The figures of all groups, the best of each marked."""
    codes = [group.code for group in groups]
    return grid(groups, [(figure.label, _cells(figure, codes)) for figure in figures], corner)


def grid(groups: Sequence[Group], lines: Sequence[tuple[str, Sequence[Cell]]], corner: str) -> list[Table]:
    """Lines with a cell per group: as they are if the groups fit beside each other, else with a line per group."""
    headings = [f"{group.code} {group.name}" for group in groups]
    if not lines:
        return []
    if len(groups) <= WIDEST:
        return [Table(corner, headings, lines)]
    turned = [(heading, [cells[i] for _, cells in lines]) for i, heading in enumerate(headings)]
    return list(_cut(Table("group", [label for label, _ in lines], turned)))


def _cut(table: Table) -> Iterator[Table]:
    """Into tables of at most `WIDEST` columns."""
    for start in range(0, len(table.columns), WIDEST):
        part = slice(start, start + WIDEST)
        yield Table(table.corner, table.columns[part], [(heading, cells[part]) for heading, cells in table.lines])


def _cells(figure: Figure, codes: Sequence[str]) -> list[Cell]:
    remarks = figure.remarks or {}
    comparable = {
        code: found.mean
        for code in codes
        if (found := figure.values.get(code)) and math.isfinite(found.mean) and not remarks.get(code)
    }
    best = _best(figure, comparable)
    return [_cell(figure, figure.values.get(code), remarks.get(code, ""), best=code in best) for code in codes]


def _best(figure: Figure, comparable: Mapping[str, float]) -> set[str]:
    """Nothing to mark among fewer than two; equals are all marked, unless all are equal."""
    if figure.lower_is_better is None or len(set(comparable.values())) < 2:
        return set()
    best = (min if figure.lower_is_better else max)(comparable.values())
    return {code for code, value in comparable.items() if value == best}


def _cell(figure: Figure, found: Spread | None, remark: str, *, best: bool) -> Cell:
    if found is None:
        return Cell("–")
    if not math.isfinite(found.mean):
        return Cell("not a number", detail=remark)
    text = figure.write(found.mean)
    if found.deviation is not None:
        text += f"{_NARROW}±{_NARROW}{figure.write(found.deviation)}"
    return Cell(text, best, ", ".join(part for part in (f"n = {found.n}" if found.n > 1 else "", remark) if part))


_NONE = "–"


class Fact(NamedTuple):
    """What holds for all runs, as far as they have it."""

    name: str
    value: str


def differing_settings(groups: Sequence[Group]) -> list[Table]:
    """The settings in which runs differ, but for the seed; a group that lacks one has a dash."""
    keys = differing([run.settings for run in _runs(groups)])
    return grid(groups, [(key, [Cell(_settings(group, key)) for group in groups]) for key in keys], "setting")


def equal_settings(groups: Sequence[Group]) -> list[Fact]:
    """All other settings; an option of a plugin that only some runs select has the value that it has there."""
    known: dict[str, Any] = {}
    for run in _runs(groups):
        known |= run.settings
    changing = {*differing([run.settings for run in _runs(groups)]), "seed"}
    return [Fact(key, _shown(key, value)) for key, value in known.items() if key not in changing]


def differing_versions(groups: Sequence[Group]) -> list[Table]:
    """Versions of what took part, where runs do not agree; several in a place where a group's runs do not."""
    keys = differing([run.versions for run in _runs(groups)])
    return grid(groups, [(key, [Cell(_versions(group, key)) for group in groups]) for key in keys], "version of")


def equal_versions(groups: Sequence[Group]) -> list[Fact]:
    """Those on which all runs agree that know them."""
    changing = differing([run.versions for run in _runs(groups)])
    known = {key: value for run in _runs(groups) for key, value in run.versions.items()}
    return [Fact(key, value) for key, value in known.items() if key not in changing]


def _runs(groups: Sequence[Group]) -> list[RunRecord]:
    return [run for group in groups for run in group.runs]


def _settings(group: Group, key: str) -> str:
    values = dict.fromkeys(_shown(key, run.settings[key]) for run in group.runs if key in run.settings)
    return ", ".join(values) or _NONE


def _shown(key: str, value: Any) -> str:
    return shown_plugins(value) if key == PLUGINS else shown(value)


def _versions(group: Group, key: str) -> str:
    return ", ".join(sorted({run.versions[key] for run in group.runs if key in run.versions})) or _NONE


_HIGHER = ("accuracy", "accuracy_frequent", "accuracy_rare", "minimal_pairs")


_UNJUDGED = ("unigram", "loss")
"""A property of the text; and an objective, which plugins weigh differently."""


def held_out_figures(groups: Sequence[Group]) -> list[Figure]:
    """The figures that `train` prints at its end, those of them that any run has."""
    same_plugins = PLUGINS not in differing([group.settings for group in groups])
    figures, topic = [], ""
    for key, label, form in ROWS:
        name = key.removeprefix("valid/")
        topic = topic if label.startswith(" ") else label.split()[0]
        values = {g.code: spread(run.row.figures.get(name) for run in g.measured[0]) for g in groups}
        if any(values.values()):
            unjudged = name in _UNJUDGED and not (name == "loss" and same_plugins)
            better = None if unjudged else name not in _HIGHER
            figures.append(Figure(_label(label, topic), values, _writer(form), better, _remarks(groups)))
    return figures


def _label(label: str, topic: str) -> str:
    """What is indented in a list belongs to the line before."""
    return f"{topic} {label.strip()}" if label.startswith(" ") else label


def _writer(form: str) -> Callable[[float], str]:
    return form.format


def _remarks(groups: Sequence[Group]) -> dict[str, str]:
    """How far groups are of which no run is finished."""
    return {g.code: f"at {_steps(g)}, {_states(g)}" for g in groups if not g.measured[1]}


def _steps(group: Group) -> str:
    steps = sorted({f"{at:.0f}" for run in group.runs if (at := run.row.figures.get("validated")) is not None})
    return f"step {' and '.join(steps)}"


def _states(group: Group) -> str:
    return ", ".join(sorted({run.row.status for run in group.runs}))


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


FOLDER, _REAL = "generation", "real text"


_JUDGED = ("perplexity_per_word", "mauve")
"""Figures that only say something beside the name of the judge."""


FIGURES = {
    "perplexity_per_word": ("Perplexity per word", "{:.1f}", None),
    "mauve": ("MAUVE", "{:.3f}", False),
    "entropy": ("Token entropy", "{:.2f}", None),
    "distinct_2": ("Distinct-2", "{:.3f}", None),
    "rep_4": ("Repetition of 4-grams", "{:.3f}", None),
    "js_distance": ("Distance to the corpus' frequencies", "{:.3f}", None),
    "grammatical_sentences": ("Share of grammatical sentences", "{:.3f}", False),
}
"""Label, layout, and whether lower is better: of most figures, the nearest to real text is, and none is marked."""


def generation_figures(groups: Sequence[Group], results: Path) -> dict[str, list[Figure]]:
    """By measure, one figure per way of sampling; of runs that share a name, none."""
    unclear = ambiguous(groups)
    by_run = {
        id(run): dict(_figures_of(results / run.name / MAIN / FOLDER / "summary.json"))
        for group in groups
        for run in group.runs
        if run.name not in unclear
    }
    known = dict.fromkeys(place for found in by_run.values() for place in found)
    ways = sorted(dict.fromkeys(way for way, _ in known), key=_is_real)  # which is the measure of all
    return {
        label: figures
        for name, (label, _, _) in FIGURES.items()
        if (figures := [_generation_figure((way, name), groups, by_run) for way in ways if (way, name) in known])
    }


def _generation_figure(
    place: tuple[str, str], groups: Sequence[Group], by_run: Mapping[int, Mapping[Any, float]]
) -> Figure:
    way, name = place
    _, layout, lower_is_better = FIGURES[name]
    values = {g.code: spread(by_run.get(id(run), {}).get(place) for run in g.runs) for g in groups}
    return Figure(way, values, layout.format, None if _is_real(way) else lower_is_better)


def _figures_of(file: Path) -> Iterator[tuple[tuple[str, str], float]]:
    """By way of sampling and name; nothing if the summary cannot be read."""
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        told = _told_generation(summary, {"count": 100, "length": 64, "weights": "ema"})
        judge = f", judge {Path(summary['judge']).name}" if summary.get("judge") else ""
        ways = [*((_way(row["rule"]), row) for row in summary["results"]), (_REAL, summary["real_text"])]
        known = [(way + told, name, row[name]) for way, row in ways for name in FIGURES if row.get(name) is not None]
        yield from [((way + (judge if name in _JUDGED else ""), name), float(value)) for way, name, value in known]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return


def _is_real(way: str) -> bool:
    return way.startswith(_REAL)


def _way(rule: Mapping[str, Any]) -> str:
    steps = rule.get("steps")
    others = {name: value for name, value in rule.items() if name not in ("sampler", "steps", "seed")}
    told = _told_generation(others, dict.fromkeys(others) | {"temperature": 1, "top_p": 1})
    return f"{rule['sampler']}, {'one token per step' if steps is None else f'{steps} steps'}{told}"


def _told_generation(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Those that are not as usual: figures of other settings are not to be compared."""
    unusual = (name for name in usual if settings.get(name, usual[name]) != usual[name])
    return "".join(f", {name.replace('_', ' ')} {settings[name]}" for name in unusual)
