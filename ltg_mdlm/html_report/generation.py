"""What `eval generation` wrote of the runs' samples: figures by sampler and steps, and of real text beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltg_mdlm.html_report.evaluation import MAIN, ambiguous
from ltg_mdlm.html_report.groups import Group, spread
from ltg_mdlm.html_report.tables import Figure

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
        if (figures := [_figure((way, name), groups, by_run) for way in ways if (way, name) in known])
    }


def _figure(place: tuple[str, str], groups: Sequence[Group], by_run: Mapping[int, Mapping[Any, float]]) -> Figure:
    way, name = place
    _, layout, lower_is_better = FIGURES[name]
    values = {g.code: spread(by_run.get(id(run), {}).get(place) for run in g.runs) for g in groups}
    return Figure(way, values, layout.format, None if _is_real(way) else lower_is_better)


def _figures_of(file: Path) -> Iterator[tuple[tuple[str, str], float]]:
    """By way of sampling and name; nothing if the summary cannot be read."""
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        told = _told(summary, {"count": 100, "length": 64, "weights": "ema"})
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
    told = _told(others, dict.fromkeys(others) | {"temperature": 1, "top_p": 1})
    return f"{rule['sampler']}, {'one token per step' if steps is None else f'{steps} steps'}{told}"


def _told(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Those that are not as usual: figures of other settings are not to be compared."""
    unusual = (name for name in usual if settings.get(name, usual[name]) != usual[name])
    return "".join(f", {name.replace('_', ' ')} {settings[name]}" for name in unusual)
