"""Held-out figures at the end of training, averaged over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ltg_mdlm.html_report.groups import PLUGINS, Group, differing, spread
from ltg_mdlm.html_report.tables import Figure
from ltg_mdlm.result import ROWS

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
