"""`ltg-mdlm eval compare`: how sure is it that one model is better than another?

Suffixes: R models of a group, I questions, U uids.

A comparison for reading: what stands in the table, and what it means.
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
from ltg_mdlm.evaluation.answers import Answers, Group, TaskName
from ltg_mdlm.evaluation.multiple_choice import TASKS
from ltg_mdlm.evaluation.statistics import PairedDifferences, holm, mcnemar_p, seeds_and_questions_p

Cell = str | int | float | None


P_VALUES = ("p", "p_seeds", "p_mcnemar")


class Against(NamedTuple):
    """A group against the baseline."""

    difference: float
    low: float
    """of the 95 % interval"""
    high: float
    won: int | None
    """questions that this model has right, or more right, than the baseline; None for several seeds"""
    lost: int | None
    p: float
    p_seeds: float | None
    """None where a group has one seed only"""
    p_mcnemar: float | None
    """None for several seeds"""


@dataclass(frozen=True, slots=True)
class Row:
    """A group's accuracy on a task, or on one uid of it, and how it compares with the baseline."""

    task: TaskName
    uid: str
    """empty for the whole task"""
    group: Group
    questions: int
    accuracies: Sequence[float]
    """of the seeds"""
    against: Against | None
    """None for the baseline itself"""
    holm: Mapping[str, float | None]
    """of the p-values in `Against`, corrected for their number in the table"""

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
            **(self.against._asdict() if self.against else dict.fromkeys(Against._fields)),
            **{f"{name}_holm": self.holm[name] for name in P_VALUES},
        }


def compare(groups: Sequence[Group], *, by_uid: bool, draws: int, seed: int) -> list[Row]:
    """Compare all groups with the first on the tasks that all have; with `by_uid`, on each uid, too.

    Raises UserError if there is no such task, or if the questions of a task are not the same.
    """
    tasks = common_tasks(groups)
    if not tasks:
        has = "\n".join(f"  {group.name}: {', '.join(map(str, group.tasks))}" for group in groups)
        raise UserError(f"no task that all models have results of\n{has}")
    scored = [_TaskScores.of(task, groups) for task in tasks]
    rows = _corrected([row for scores in scored for row in scores.rows(draws, seed)])
    if by_uid:
        rows += _corrected([row for scores in scored for part in scores.parts() for row in part.rows(draws, seed)])
    return rows


def common_tasks(groups: Sequence[Group]) -> list[TaskName]:
    """The tasks that all models of all groups have results of."""
    first, *others = groups
    return [task for task in first.tasks if all(task in other.tasks for other in others)]


def left_out(groups: Sequence[Group]) -> list[str]:
    """Tasks that some models have results of, but not all."""
    every = dict.fromkeys(task for group in groups for member in group.members for task in member)
    return [str(task) for task in every if task not in common_tasks(groups)]


@dataclass(frozen=True, eq=False)
class _TaskScores:
    """What each group has right of a task's questions, or of one uid's."""

    task: TaskName
    uid: str
    groups: Sequence[Group]
    correct_RI: Sequence[NDArray[np.float64]]
    """of each group"""
    uid_I: NDArray[np.int64]
    names_U: Sequence[str]

    @classmethod
    def of(cls, task: TaskName, groups: Sequence[Group]) -> _TaskScores:
        reference: Answers = groups[0].members[0][task]
        names_U = list(dict.fromkeys(reference.uids))
        number = {name: i for i, name in enumerate(names_U)}
        correct_RI = [np.stack([member[task].in_order_of(reference) for member in group.members]) for group in groups]
        return cls(task, "", groups, correct_RI, np.array([number[uid] for uid in reference.uids]), names_U)

    def parts(self) -> Iterator[_TaskScores]:
        """One for every uid."""
        for i, name in enumerate(self.names_U):
            mine_I = self.uid_I == i
            correct_RI = [correct_RI[:, mine_I] for correct_RI in self.correct_RI]
            yield replace(self, uid=name, correct_RI=correct_RI, uid_I=np.zeros(mine_I.sum(), np.int64), names_U=[name])

    def rows(self, draws: int, seed: int) -> Iterator[Row]:
        """One for every group."""
        baseline_RI = self.correct_RI[0]
        for group, correct_RI in zip(self.groups, self.correct_RI, strict=True):
            against = self._against(correct_RI, baseline_RI, draws, seed) if group is not self.groups[0] else None
            yield Row(self.task, self.uid, group, len(self.uid_I), self._accuracies(correct_RI), against, {})

    def _against(
        self, correct_RI: NDArray[np.float64], baseline_RI: NDArray[np.float64], draws: int, seed: int
    ) -> Against:
        # Rounded, since means over seeds that are equal in theory must not count as different.
        difference_I = (correct_RI.mean(0) - baseline_RI.mean(0)).round(12)
        differences = PairedDifferences(difference_I, self.uid_I, self._weight_U)
        low, high = differences.bootstrap_interval(draws, np.random.default_rng(seed))
        single = len(correct_RI) == len(baseline_RI) == 1
        won, lost = int(np.sum(difference_I > 0)), int(np.sum(difference_I < 0))
        seeds = [self._accuracies(correct_RI), self._accuracies(baseline_RI)]
        return Against(
            difference=differences.mean,
            low=low,
            high=high,
            won=won if single else None,
            lost=lost if single else None,
            p=differences.permutation_p(draws, np.random.default_rng(seed)),
            p_seeds=seeds_and_questions_p(differences, seeds),
            p_mcnemar=mcnemar_p(won, lost) if single else None,
        )

    @property
    def _weight_U(self) -> NDArray[np.float64]:
        """What each uid counts in the task's macro accuracy, which is linear in the accuracies of the uids."""
        task = next((task for task in TASKS if task.name == self.task.task), TASKS[0])
        return np.array([task.macro({name: float(name == one) for name in self.names_U}) for one in self.names_U])

    def _accuracies(self, correct_RI: NDArray[np.float64]) -> list[float]:
        """Macro accuracy of every seed."""
        count_U = np.bincount(self.uid_I)
        return [float(self._weight_U @ (np.bincount(self.uid_I, correct_I) / count_U)) for correct_I in correct_RI]


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """With p-values corrected for how many of each kind there are."""
    corrected = {name: holm([getattr(row.against, name, None) for row in rows]) for name in P_VALUES}
    return [replace(row, holm={name: values[i] for name, values in corrected.items()}) for i, row in enumerate(rows)]


_HOLM = " Holm"


_EXPLANATIONS = {
    "accuracy": "in per cent, macro average over the uids",
    "sd": "over the seeds of a model",
    "difference": "to {baseline}, in percentage points; its interval: bootstrap of the questions within each uid",
    "p": "paired permutation over the questions: would these very models differ on other questions of these kinds?",
    "p seeds": "min F' over seeds and questions: would other seeds differ, too? (errs on the large side)",
    "McNemar": "exact, all questions counting alike; won:lost are those that this model or the first has right alone",
    f"p{_HOLM}": "corrected for the number of such tests, those of whole tasks and those of single uids apart",
}


def comparison_table(rows: Sequence[Row]) -> Table:
    """One line per row."""
    lines = [_line(row.record()) for row in rows]
    columns = _columns(lines)
    table = Table(*columns, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*(escape(line[name]) for name in columns))
    return table


def explanation(rows: Sequence[Row]) -> str:
    """What the columns of the table are."""
    shown = _columns([_line(row.record()) for row in rows])
    said = [f"{column}: {text}" for column, text in _EXPLANATIONS.items() if column in shown]
    return "\n".join(said).format(baseline=rows[0].group.name)


def _columns(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """Those that are not empty, and no correction that changes nothing."""
    return [name for name in lines[0] if any(line[name] != line.get(_uncorrected(name), "") for line in lines)]


def _uncorrected(column: str) -> str:
    """The column without its correction; nothing for one that is none."""
    return column.removesuffix(_HOLM) if column.endswith(_HOLM) else ""


def _line(record: Mapping[str, Cell]) -> dict[str, str]:
    """Empty where there is nothing to say."""
    return {
        "task": f"{record['task']}/{record['data']}",
        "uid": str(record["uid"]),
        "model": str(record["model"]),
        "seeds": str(record["seeds"]),
        "accuracy": _percent(record["accuracy"]),
        "sd": _percent(record["sd"]),
        "difference": _percent(record["difference"], sign="+"),
        "95 % interval": _interval(record),
        "p": _p(record["p"]),
        f"p{_HOLM}": _p(record["p_holm"]),
        "p seeds": _p(record["p_seeds"]),
        f"p seeds{_HOLM}": _p(record["p_seeds_holm"]),
        "won:lost": "" if record["won"] is None else f"{record['won']}:{record['lost']}",
        "McNemar": _p(record["p_mcnemar"]),
        f"McNemar{_HOLM}": _p(record["p_mcnemar_holm"]),
    }


def _percent(value: Cell, sign: str = "") -> str:
    return "" if value is None else f"{100 * float(value):{sign}.2f}"


def _interval(record: Mapping[str, Cell]) -> str:
    low, high = (_percent(record[name], sign="+") for name in ("low", "high"))
    return f"{low} .. {high}" if low else ""


def _p(value: Cell) -> str:
    return "" if value is None else f"{value:.2g}"
