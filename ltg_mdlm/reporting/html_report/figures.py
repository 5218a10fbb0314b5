"""Tables of the HTML report: settings and versions, validation metrics, evaluation results, quality of samples.

Metrics are averaged over the seeds of a group. Tables are not wider than paper; the best value of a line is marked with
a sign and in bold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import TEMPORARY
from ltg_mdlm.core.json_files import read_object
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
"""Maximum number of columns besides the headings. Wider tables are split."""


BEST = "★"


_NARROW = "\u202f"
"""Narrow no-break space."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    best: bool = False
    detail: str = ""
    """Smaller text after it."""


@dataclass(frozen=True)
class Table:
    """A table with headings of columns and lines; `lines` are pairs (heading, cells)."""

    corner: str
    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Figure:
    """A metric of every group, its format, and which value is better."""

    label: str
    values: Mapping[str, Spread | None]
    """By the code of the group."""
    write: Callable[[float], str] = "{:.4f}".format
    lower_is_better: bool | None = None
    """None: no group is marked."""
    remarks: Mapping[str, str] | None = None
    """By the code of the group. A group with a remark is not compared."""
    errors: Mapping[str, float | None] | None = None
    """Standard error of the value of a group with one run, by its code."""


def figure_tables(groups: Sequence[Group], figures: Sequence[Figure], corner: str = "figure") -> list[Table]:
    """Tables of figures, with the best group of each marked."""
    codes = [group.code for group in groups]
    return grid(groups, [(figure.label, _cells(figure, codes)) for figure in figures], corner)


def grid(groups: Sequence[Group], lines: Sequence[tuple[str, Sequence[Cell]]], corner: str) -> list[Table]:
    """Tables with one column per group if they fit, or else with one line per group."""
    headings = [f"{group.code} {group.name}" for group in groups]
    if not lines:
        return []
    if len(groups) <= WIDEST:
        return [Table(corner, headings, lines)]
    turned = [(heading, [cells[i] for _, cells in lines]) for i, heading in enumerate(headings)]
    return list(_cut(Table("group", [label for label, _ in lines], turned)))


def _cut(table: Table) -> Iterator[Table]:
    """Split a table into tables of at most `WIDEST` columns."""
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
    """Codes of the best groups: none among fewer than two, none if all are equal, and none within the noise.

    A difference of less than two standard errors is noise. Over several seeds, the standard error is that of their
    mean; for a single run, it is that of the figure, if known.
    """
    if figure.lower_is_better is None or len(set(comparable.values())) < 2:
        return set()

    def error(code: str) -> float:
        found = figure.values[code]
        assert found is not None, "only groups with a value are compared"
        if found.deviation is not None:
            return found.deviation / math.sqrt(found.n)
        return (figure.errors or {}).get(code) or 0.0

    best = (min if figure.lower_is_better else max)(comparable.values())
    leaders = {code for code, value in comparable.items() if value == best}
    for code, value in comparable.items():
        noise = 2 * math.hypot(error(code), max(map(error, leaders)))
        if code not in leaders and abs(value - best) < noise:
            return set()
    return leaders


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
    """A setting or version that is equal in all runs that have it."""

    name: str
    value: str


def differing_settings(groups: Sequence[Group]) -> list[Table]:
    """Settings that differ, except the seed; a dash for a group without the setting."""
    keys = differing([run.settings for run in _runs(groups)])
    return grid(groups, [(key, [Cell(_settings(group, key)) for group in groups]) for key in keys], "setting")


def equal_settings(groups: Sequence[Group]) -> list[Fact]:
    """All other settings, including options of plugins that only some runs select."""
    known: dict[str, Any] = {}
    for run in _runs(groups):
        known |= run.settings
    changing = {*differing([run.settings for run in _runs(groups)]), "seed"}
    return [Fact(key, _shown(key, value)) for key, value in known.items() if key not in changing]


def differing_versions(groups: Sequence[Group]) -> list[Table]:
    """Versions that differ between runs; a cell lists several if they differ within the group."""
    keys = differing([run.versions for run in _runs(groups)])
    return grid(groups, [(key, [Cell(_versions(group, key)) for group in groups]) for key in keys], "version of")


def equal_versions(groups: Sequence[Group]) -> list[Fact]:
    """Versions that are equal in all runs that have them."""
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


_UNJUDGED = ("unigram", "floor", "accuracy_rare_chance", "loss")
"""Not ranked: properties of the text, and the objective, which plugins weight differently."""


def held_out_figures(groups: Sequence[Group]) -> list[Figure]:
    """The metrics that `train` prints at the end, if any run has them."""
    same_plugins = PLUGINS not in differing([group.settings for group in groups])
    figures, topic = [], ""
    for key, label, form in ROWS:
        name = key.removeprefix("valid/")
        topic = topic if label.startswith(" ") else label.split()[0]
        values = {g.code: spread(run.row.figures.get(name) for run in g.measured[0]) for g in groups}
        if any(values.values()):
            unjudged = name in _UNJUDGED and not (name == "loss" and same_plugins)
            better = None if unjudged else name not in _HIGHER
            errors = {g.code: _only(r.row.figures.get(f"{name}_standard_error") for r in g.measured[0]) for g in groups}
            figures.append(Figure(_label(label, topic), values, _writer(form), better, _remarks(groups), errors))
    return figures


def _only(values: Iterable[float | None]) -> float | None:
    """The value of a group with one run."""
    known = list(values)
    return known[0] if len(known) == 1 else None


def _label(label: str, topic: str) -> str:
    """Prefix an indented label with the topic of the line before."""
    return f"{topic} {label.strip()}" if label.startswith(" ") else label


def _writer(form: str) -> Callable[[float], str]:
    return form.format


def _remarks(groups: Sequence[Group]) -> dict[str, str]:
    """Progress of groups without a finished run."""
    return {g.code: f"at {_steps(g)}, {_states(g)}" for g in groups if not g.measured[1]}


def _steps(group: Group) -> str:
    steps = sorted({f"{at:.0f}" for run in group.runs if (at := run.row.figures.get("validated")) is not None})
    return f"step {' and '.join(steps)}"


def _states(group: Group) -> str:
    return ", ".join(sorted({run.row.status for run in group.runs}))


MAIN = "main"


_USUAL = ("none", "ema", "fraction")
"""Default settings of scoring, which are not printed."""


@dataclass(frozen=True)
class Result:
    """The main metric of a task for one run."""

    task: str
    """Task, data, metric and scoring settings."""
    value: float | None
    percent: bool
    validated: bool
    error: float | None
    """Standard error of the value."""


def results_of(run: RunRecord, folder: Path) -> list[Result]:
    """All results of the last checkpoint of a run; files that cannot be read are ignored."""
    files = sorted((folder / run.name / MAIN).rglob("summary.json"))
    read = (_read(file) for file in files if not any(part.startswith(TEMPORARY) for part in file.parts))
    return [result for result in read if result is not None]


def _read(file: Path) -> Result | None:
    try:
        summary = read_object(file)
        metric = summary["metric"]
        # Fine-tuning writes the mean over its own seeds.
        value = summary[metric] if metric in summary else summary["mean"][metric]
        label = f"{summary['task']}/{Path(summary['data']).name}, {metric.removesuffix('_percent').replace('_', ' ')}"
        validated = bool(summary.get("validated", True))
        label += _told(summary)
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return None
    is_share = metric in ("accuracy", "f1")
    known, error = (
        float(number) * (100 if is_share else 1) if isinstance(number, int | float) else None
        for number in (value, summary.get("standard_error"))
    )
    return Result(label, known, is_share, validated, error)


def _told(summary: Mapping[str, Any]) -> str:
    """Scoring settings other than the defaults. Models that predict one position earlier stand with the others."""
    silent = {None, *_USUAL, summary.get("rate") if summary.get("time") != "constant" else None}
    told = [str(summary[key]).replace("mntp", "pll") for key in SETTINGS if summary.get(key) not in silent]
    return f" ({', '.join(told)})" if told else ""


def ambiguous(groups: Sequence[Group]) -> list[str]:
    """Names that several runs have. Results are found by the name of the run, so those of these runs are not shown."""
    names = Counter(run.name for group in groups for run in group.runs)
    return sorted(name for name, times in names.items() if times > 1)


def evaluation_figures(groups: Sequence[Group], folder: Path) -> list[Figure]:
    """One metric per task and scoring settings; higher is better."""
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
    errors = {code: _only(result.error for result in some) for code, some in found.items()}
    write = ("{:.1f}" if first.percent else "{:.3f}").format
    return Figure(label, values, write, lower_is_better=False, errors=errors)


def _found(group: Group, task: str, by_run: Mapping[int, Mapping[str, Any]]) -> Iterator[Result]:
    return (by_run[id(run)][task] for run in group.runs if task in by_run.get(id(run), {}))


FOLDER, _REAL = "generation", "real text"


_JUDGED = ("perplexity_per_word", "mauve")
"""Metrics that depend on the judge, whose name is printed."""


FIGURES = {
    "perplexity_per_word": ("Perplexity per word", "{:.1f}", None),
    "mauve": ("MAUVE", "{:.3f}", False),
    "entropy": ("Token entropy", "{:.2f}", None),
    "distinct_2": ("Distinct-2", "{:.3f}", None),
    "rep_4": ("Repetition of 4-grams", "{:.3f}", None),
    "js_distance": ("Distance to the frequencies of the corpus", "{:.3f}", None),
    "grammatical_sentences": ("Fraction of grammatical sentences", "{:.3f}", False),
}
"""Label, format, and whether lower is better. None: values near that of held-out text are best, and none is marked."""


def generation_figures(groups: Sequence[Group], results: Path) -> dict[str, list[Figure]]:
    """By metric, one figure per sampling rule; none for runs with the same name."""
    unclear = ambiguous(groups)
    by_run = {
        id(run): dict(_figures_of(results / run.name / MAIN / FOLDER / "summary.json"))
        for group in groups
        for run in group.runs
        if run.name not in unclear
    }
    known = dict.fromkeys(place for found in by_run.values() for place in found)
    ways = sorted(dict.fromkeys(way for way, _ in known), key=_is_real)  # held-out text is last
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
    """Values by sampling rule and metric; empty if the summary cannot be read."""
    try:
        summary = read_object(file)
        told = _told_generation(summary, {"count": 100, "length": 64, "weights": "ema"})
        judge = f", judge {Path(summary['judge']).name}" if summary.get("judge") else ""
        ways = [*((_way(row["rule"]), row) for row in summary["results"]), (_REAL, summary["real_text"])]
        known = [(way + told, name, row[name]) for way, row in ways for name in FIGURES if row.get(name) is not None]
        yield from [((way + (judge if name in _JUDGED else ""), name), float(value)) for way, name, value in known]
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return


def _is_real(way: str) -> bool:
    return way.startswith(_REAL)


def _way(rule: Mapping[str, Any]) -> str:
    steps = rule.get("steps")
    others = {name: value for name, value in rule.items() if name not in ("sampler", "steps", "seed")}
    told = _told_generation(others, dict.fromkeys(others) | {"temperature": 1, "top_p": 1})
    return f"{rule['sampler']}, {'one token per step' if steps is None else f'{steps} steps'}{told}"


def _told_generation(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Settings other than the defaults, since metrics with different settings are not comparable."""
    unusual = (name for name in usual if settings.get(name, usual[name]) != usual[name])
    return "".join(f", {name.replace('_', ' ')} {settings[name]}" for name in unusual)
