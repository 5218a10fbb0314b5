"""Comparison of models on the same questions (`ltg-mdlm eval compare`): differences, intervals, paired tests.

Shape suffixes: R models of a group, I questions, U uids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation.answers import ModelGroup, TaskName
from ltg_mdlm.evaluation.multiple_choice import macro_weights
from ltg_mdlm.evaluation.statistics import Floats, PairedDifferences, holm, mcnemar_p, seeds_and_questions_p

Cell = str | int | float | None

P_VALUES = ("p", "p_seeds", "p_mcnemar")
"""Fields of `BaselineComparison` that are p-values."""

_HOLM = " Holm"
"""Suffix of the columns with corrected p-values."""

_EXPLANATIONS = {
    "accuracy": "in per cent; macro average over the uids",
    "sd": "standard deviation over the seeds",
    "difference": "from {baseline}, in percentage points; interval: bootstrap over the questions within each uid",
    "p": "paired permutation test over the questions: would these models differ on new questions of the same kind?",
    "p seeds": "min F' over seeds and questions: would other seeds differ, too? (conservative)",
    "McNemar": "exact test, all questions weighted equally; won:lost: answered correctly by only one of the two",
    f"p{_HOLM}": "corrected for the number of tests (Holm), separately for whole tasks and for single uids",
}


class BaselineComparison(NamedTuple):
    """A group compared with the baseline."""

    difference: float
    low: float
    """Lower end of the 95 % interval"""
    high: float
    won: int | None
    """Questions that this model answers better than the baseline; None for several seeds"""
    lost: int | None
    p: float
    p_seeds: float | None
    """None if a group has only one seed"""
    p_mcnemar: float | None
    """None for several seeds"""


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """Accuracy of a group on a task or on one uid of it, and its comparison with the baseline."""

    task: TaskName
    uid: str
    """Empty for the whole task"""
    group: ModelGroup
    questions: int
    accuracies: Sequence[float]
    """One per seed"""
    against: BaselineComparison | None
    """None for the baseline itself"""
    holm: Mapping[str, float | None]
    """p-values corrected for their number in the table"""

    def record(self) -> dict[str, Cell]:
        """All figures, by name."""
        return {
            "task": self.task.task,
            "data": self.task.data,
            "uid": self.uid,
            "model": self.group.name,
            "runs": " ".join(self.group.models),
            "seeds": len(self.accuracies),
            "questions": self.questions,
            "accuracy": float(np.mean(self.accuracies)),
            "sd": float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else None,
            **(self.against._asdict() if self.against else dict.fromkeys(BaselineComparison._fields)),
            **{f"{name}_holm": self.holm[name] for name in P_VALUES},
        }


def compare(groups: Sequence[ModelGroup], *, by_uid: bool, draws: int, seed: int) -> list[ComparisonRow]:
    """Compare all groups with the first one on their common tasks; with `by_uid`, also on every uid.

    Raises UserError if there is no common task, or the questions of a task differ.
    """
    tasks = common_tasks(groups)
    if not tasks:
        has = "\n".join(f"  {group.name}: {', '.join(map(str, group.tasks))}" for group in groups)
        raise UserError(f"no task that all models have results of\n{has}")
    scored = [_TaskScores.of(task, groups) for task in tasks]
    rows = _corrected([row for scores in scored for row in scores.rows(draws, seed)])
    if by_uid:
        rows += _corrected([row for scores in scored for part in scores.by_uid() for row in part.rows(draws, seed)])
    return rows


def common_tasks(groups: Sequence[ModelGroup]) -> list[TaskName]:
    """The tasks for which all models of all groups have results."""
    first, *others = groups
    return [task for task in first.tasks if all(task in other.tasks for other in others)]


def left_out(groups: Sequence[ModelGroup]) -> list[str]:
    """The tasks for which some models have results, but not all."""
    every = dict.fromkeys(task for group in groups for member in group.members for task in member)
    return [str(task) for task in every if task not in common_tasks(groups)]


@dataclass(frozen=True, eq=False)
class _TaskScores:
    """The answers of all groups to the questions of a task, or of one uid."""

    task: TaskName
    uid: str
    groups: Sequence[ModelGroup]
    correct_RI: Sequence[Floats]
    """One array per group"""
    uid_I: NDArray[np.int64]
    names_U: Sequence[str]

    @classmethod
    def of(cls, task: TaskName, groups: Sequence[ModelGroup]) -> _TaskScores:
        reference = groups[0].members[0][task]
        names_U = list(dict.fromkeys(reference.uids))
        number = {name: i for i, name in enumerate(names_U)}
        correct_RI = [np.stack([member[task].in_order_of(reference) for member in group.members]) for group in groups]
        return cls(task, "", groups, correct_RI, np.array([number[uid] for uid in reference.uids]), names_U)

    def by_uid(self) -> Iterator[_TaskScores]:
        for i, name in enumerate(self.names_U):
            mine_I = self.uid_I == i
            correct_RI = [correct_RI[:, mine_I] for correct_RI in self.correct_RI]
            yield replace(self, uid=name, correct_RI=correct_RI, uid_I=np.zeros(mine_I.sum(), np.int64), names_U=[name])

    def rows(self, draws: int, seed: int) -> Iterator[ComparisonRow]:
        """One row per group."""
        weight_U = macro_weights(self.task.task, self.names_U)
        count_U = np.bincount(self.uid_I)
        accuracies = [
            [float(weight_U @ (np.bincount(self.uid_I, correct_I) / count_U)) for correct_I in correct_RI]
            for correct_RI in self.correct_RI
        ]
        baseline_RI = self.correct_RI[0]
        for i, (group, correct_RI) in enumerate(zip(self.groups, self.correct_RI, strict=True)):
            against = None
            if i > 0:
                # Rounded, because means over seeds that are equal in theory must not count as different.
                difference_I = (correct_RI.mean(0) - baseline_RI.mean(0)).round(12)
                differences = PairedDifferences(difference_I, self.uid_I, weight_U)
                low, high = differences.bootstrap_interval(draws, np.random.default_rng(seed))
                single = len(correct_RI) == len(baseline_RI) == 1
                won, lost = int(np.sum(difference_I > 0)), int(np.sum(difference_I < 0))
                against = BaselineComparison(
                    difference=differences.mean,
                    low=low,
                    high=high,
                    won=won if single else None,
                    lost=lost if single else None,
                    p=differences.permutation_p(draws, np.random.default_rng(seed)),
                    p_seeds=seeds_and_questions_p(differences, [accuracies[i], accuracies[0]]),
                    p_mcnemar=mcnemar_p(won, lost) if single else None,
                )
            yield ComparisonRow(self.task, self.uid, group, len(self.uid_I), accuracies[i], against, {})


def _corrected(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """The rows with p-values corrected for the number of p-values of each kind."""
    corrected = {name: holm([getattr(row.against, name, None) for row in rows]) for name in P_VALUES}
    return [replace(row, holm={name: values[i] for name, values in corrected.items()}) for i, row in enumerate(rows)]


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """One line per row."""
    lines = [_line(row.record()) for row in rows]
    columns = _columns(lines)
    table = Table(*columns, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*(escape(line[name]) for name in columns))
    return table


def explanation(rows: Sequence[ComparisonRow]) -> str:
    """The meaning of the columns of the table."""
    shown = _columns([_line(row.record()) for row in rows])
    lines = [f"{column}: {text}" for column, text in _EXPLANATIONS.items() if column in shown]
    return "\n".join(lines).format(baseline=rows[0].group.name)


def _columns(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns that are not empty, without corrections that change nothing."""

    def uninformative(name: str, line: Mapping[str, str]) -> str:
        return line[name.removesuffix(_HOLM)] if name.endswith(_HOLM) else ""

    return [name for name in lines[0] if any(line[name] != uninformative(name, line) for line in lines)]


def _line(record: Mapping[str, Cell]) -> dict[str, str]:
    """Cells of a row; empty where there is no value."""

    def percent(name: str, sign: str = "") -> str:
        value = record[name]
        return "" if value is None else f"{100 * float(value):{sign}.2f}"

    def p(name: str) -> str:
        value = record[name]
        return "" if value is None else f"{value:.2g}"

    low, high = percent("low", sign="+"), percent("high", sign="+")
    return {
        "task": f"{record['task']}/{record['data']}",
        "uid": str(record["uid"]),
        "model": str(record["model"]),
        "seeds": str(record["seeds"]),
        "accuracy": percent("accuracy"),
        "sd": percent("sd"),
        "difference": percent("difference", sign="+"),
        "95 % interval": f"{low} .. {high}" if low else "",
        "p": p("p"),
        f"p{_HOLM}": p("p_holm"),
        "p seeds": p("p_seeds"),
        f"p seeds{_HOLM}": p("p_seeds_holm"),
        "won:lost": "" if record["won"] is None else f"{record['won']}:{record['lost']}",
        "McNemar": p("p_mcnemar"),
        f"McNemar{_HOLM}": p("p_mcnemar_holm"),
    }
