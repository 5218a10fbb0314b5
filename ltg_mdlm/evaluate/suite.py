"""All tasks that there are data for, one after the other: one JSON file and one table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from ltg_mdlm.durable import write_text
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.age_of_acquisition import AgeOfAcquisition, Milestone
from ltg_mdlm.evaluate.fine_tuning import Finetune, FineTuning
from ltg_mdlm.evaluate.multiple_choice import TASKS
from ltg_mdlm.evaluate.reading import Reading
from ltg_mdlm.evaluate.tasks import Skip, Task, TaskResult, data_name, find_data
from ltg_mdlm.evaluate.texts import Scorer
from ltg_mdlm.evaluate.wug import WugAdjectives, WugPastTenses


def suite_tasks(milestones: Sequence[Milestone], model_name: str, finetune: Finetune | None = None) -> list[Task]:
    """All tasks, for a model whose training left these checkpoints behind; `finetune` measures it on a GLUE folder."""
    return [
        *TASKS,
        WugAdjectives(),
        WugPastTenses(),
        Reading(),
        AgeOfAcquisition(milestones, model_name),
        FineTuning(finetune),
    ]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a task, or of a folder with data."""

    task: str
    data: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    """Why it was not done."""
    result: TaskResult | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but items and predictions; undefined figures are null."""
        row: dict[str, Any] = {"task": self.task, "data": self.data, "status": self.status}
        if self.result is None:
            return row | {"reason": self.reason}
        return row | {
            "metric": self.result.metric,
            "value": _defined(self.result.value),
            "figures": _all_defined(self.result.figures),
            "breakdown": {divides: _all_defined(groups) for divides, groups in self.result.breakdown.items()},
            "questions": self.result.questions,
            "validated": self.result.validated,
        }


def run_suite(tasks: Sequence[Task], scorer: Scorer, data: Path) -> Iterator[Outcome]:
    """Measure a model on everything below a folder; then tell which tasks there were no data for.

    A task with malformed data fails alone.  Under torchrun, every rank must go through all outcomes.

    Raises UserError if the folder holds data of no task.
    """
    found = list(find_data(data, tasks))
    if not any(task for _, task in found):
        raise UserError(f"{data}: no evaluation data; expected folders such as {', '.join(_folder_names(tasks))}")
    seen: dict[str, Path] = {}
    for path, task in found:
        place = f"{task.name if task else ''}/{data_name(path)}"
        yield _run(task, path, scorer, seen.get(place))
        seen.setdefault(place, path)
    for task in tasks:
        if not any(task is present for _, present in found):
            yield Outcome(task=task.name, data="-", status="skipped", reason=f"no folder {task.prefixes[0]}* in {data}")


def _run(task: Task | None, path: Path, scorer: Scorer, same_name: Path | None) -> Outcome:
    if task is None:
        return Outcome(task="-", data=data_name(path), status="skipped", reason="not the data of a known task")
    if same_name is not None:
        reason = f"{same_name} has the same name, and results would be mixed up"
        return Outcome(task=task.name, data=data_name(path), status="skipped", reason=reason)
    try:
        result = task.run(path, scorer)
    except Skip as skip:
        return Outcome(task=task.name, data=data_name(path), status="skipped", reason=str(skip))
    except UserError as error:
        return Outcome(task=task.name, data=data_name(path), status="failed", reason=str(error))
    return Outcome(task=task.name, data=result.data, status="done", result=result)


def _folder_names(tasks: Sequence[Task]) -> list[str]:
    return [f"{prefix}*" for task in tasks for prefix in task.prefixes]


def require_success(outcomes: Sequence[Outcome]) -> None:
    """Raises UserError with the reasons if a task failed."""
    failed = [f"{outcome.data}: {outcome.reason}" for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise UserError("\n  ".join([f"{len(failed)} of {len(outcomes)} tasks failed", *failed]))


def write_suite(file: Path, about: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write `about`, which names model and score, and all outcomes as one JSON object."""
    content = {**about, "tasks": [outcome.to_json() for outcome in outcomes]}
    write_text(file, json.dumps(content, indent=2, allow_nan=False) + "\n")


def suite_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per outcome, for reading."""
    table = Table("task", "data", "questions", "result", "remark", box=None, pad_edge=False)
    for outcome in outcomes:
        table.add_row(*map(escape, _cells(outcome)))
    return table


def breakdown_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per group of questions."""
    table = Table("data", "uid", "result", box=None, pad_edge=False)
    for outcome in outcomes:
        if outcome.result is not None:
            metric = outcome.result.metric
            for uid, value in outcome.result.breakdown.get("UID", {}).items():
                table.add_row(escape(outcome.data), escape(uid), _figure(metric, value))
    return table


def _cells(outcome: Outcome) -> tuple[str, str, str, str, str]:
    result = outcome.result
    if result is None:
        return outcome.task, outcome.data, "-", "-", f"{outcome.status}: {outcome.reason}"
    figures = ", ".join(_figure(name, value) for name, value in result.figures.items())
    remark = "" if result.validated else "unvalidated: checked on hand-made files only"
    return outcome.task, outcome.data, str(result.questions), figures, remark


def _figure(name: str, value: float) -> str:
    label = name.removesuffix("_percent").replace("_", " ")
    if isinstance(value, int):
        return f"{label} {value}"
    if name.endswith("_percent"):
        return f"{label} {value:.2f} %"
    return f"{label} {value:.1%}" if name in ("accuracy", "tie_rate", "undecided_rate") else f"{label} {value:.3f}"


def _all_defined(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _defined(value) for name, value in figures.items()}


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
