"""All tasks that there are data for, one after the other: one JSON file and one table.

Measure a trained model on everything that a folder of evaluation data holds.

Fine-tuning as one task of the suite.

Result folders: the predictions that the official pipelines collect, and beside them every score.

results/<model>/<revision>/zero_shot/<backend>/<task>/<data>/
    predictions.json              official
    best_temperature_report.txt   official
    items.jsonl                   one question per line: what every candidate scored
    summary.json                  figures, and how they were made
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import require_writable, write_errors, write_text, written_folder
from ltg_mdlm.evaluation.age_of_acquisition import AgeOfAcquisition, Milestone, milestones
from ltg_mdlm.evaluation.multiple_choice import TASKS, WugAdjectives, WugPastTenses
from ltg_mdlm.evaluation.reading import Reading
from ltg_mdlm.evaluation.tasks import Skip, Task, TaskResult, data_name, find_data
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.inference.texts import Scorer
from ltg_mdlm.inference.trained_model import TrainedModel, Weights, open_model


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


SUITE_FILE = "suite.json"


def all_tasks(trained: TrainedModel, rule: ScoringRule, ranks: Ranks, finetune: Finetune | None) -> list[Task]:
    """Every task; those over training time look at the `chck_*` checkpoints beside the model's."""
    kept = kept_checkpoints(trained.source.parent, trained.weights, rule, ranks)
    return suite_tasks(kept, trained.name, finetune)


def kept_checkpoints(folder: Path, weights: Weights, rule: ScoringRule, ranks: Ranks) -> list[Milestone]:
    """The checkpoints by words seen in a run's folder of checkpoints, opened when they are asked."""
    return milestones(folder, lambda path: LikelihoodScorer(open_model(path, ranks, weights=weights), rule, ranks))


def measure(
    trained: TrainedModel,
    tasks: Sequence[Task],
    data: Path,
    rule: ScoringRule,
    ranks: Ranks,
    out: Path,
    *,
    suite_file: bool = False,
) -> list[Outcome]:
    """Run all tasks, writing the results of each as soon as it is done; every rank must call it.

    A task with malformed data fails alone, and its outcome says so.  `suite_file` keeps what became of all tasks in one
    JSON file, too.

    Raises UserError for a score that the model cannot give, a folder without data, and results that cannot be written.
    """
    scorer = LikelihoodScorer(trained, rule, ranks, show_progress=True)
    require_writable(out)  # scoring may take hours
    about, outcomes = describe(trained, rule), []
    started = time.monotonic()
    for outcome in run_suite(tasks, scorer, data):
        outcomes.append(outcome)
        seconds, started = time.monotonic() - started, time.monotonic()
        result = outcome.result
        if ranks.is_main and result is not None and result.place is not None:
            with _writing(result_folder(out, trained, rule, result.place)) as folder:
                write_result(folder, result, about, seconds)
        if ranks.is_main and suite_file:
            with _writing(out / trained.name / trained.revision / SUITE_FILE) as file:
                write_suite(file, about, outcomes)
    return outcomes


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    with write_errors(path, "; choose another folder with --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path


Finetune = Callable[[Path], Sequence[Mapping[str, Any]]]
"""Trains a copy of the model on every classification task in a folder, and returns their summaries."""


class FineTuning(Task):
    """Accuracy on classification tasks of (Super)GLUE, each counting the same, after training a copy of the model."""

    name = "glue"
    prefixes = ("glue",)
    fields = frozenset({"label"})

    def __init__(self, finetune: Finetune | None) -> None:
        self.finetune = finetune

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Fine-tune, which writes its own results; `scorer` is not asked."""
        if self.finetune is None:
            raise Skip("takes training; add --finetune")
        summaries = self.finetune(path)
        accuracies = {summary["task"]: summary["mean"]["accuracy"] for summary in summaries}
        return TaskResult(
            task=self.name,
            data=data_name(path),
            metric="accuracy",
            figures={"accuracy": fmean(accuracies.values())},
            breakdown={"UID": accuracies},
            questions=sum(summary["valid"]["rows"] for summary in summaries),
        )


BACKENDS = {"pll": "mlm", "mntp": "mntp", "causal": "causal", "bound": "bound"}
"""What official pipelines call a score; they know no bound."""


def describe(trained: TrainedModel, rule: ScoringRule) -> dict[str, Any]:
    """Which model was measured, and how."""
    settings = asdict(rule)
    del settings["tokens_per_batch"]  # changes nothing but speed
    return {
        "model": trained.name,
        "revision": trained.revision,
        "weights": trained.weights,
        "step": trained.about.get("step"),
        "words_seen": trained.about.get("words_seen"),
        **settings,
    }


def result_folder(out: Path, trained: TrainedModel, rule: ScoringRule, place: str) -> Path:
    """Where the results of a task with this `TaskResult.place` belong."""
    return out / trained.name / trained.revision / "zero_shot" / BACKENDS[rule.score] / place


def write_result(folder: Path, result: TaskResult, about: Mapping[str, Any], seconds: float) -> None:
    """Write a result folder, in place of an older one, complete or not at all.  Raises OSError."""
    summary = {
        **about,
        "task": result.task,
        "data": result.data,
        "metric": result.metric,
        **result.figures,
        "accuracy_by_uid": result.breakdown.get("UID", {}),
        "questions": result.questions,
        "validated": result.validated,
        "seconds": round(seconds, 3),
    }
    files = {
        result.predictions_file: as_json(result.predictions),
        "best_temperature_report.txt": temperature_report(result),
        "items.jsonl": "".join(as_json(item) for item in result.items),
        "summary.json": as_json(summary, indent=2),
    }
    with written_folder(folder, replace=True) as aside:
        for name, text in files.items():
            (aside / name).write_text(text, encoding="utf-8")


def temperature_report(result: TaskResult) -> str:
    """Figures as the official report lists them, in per cent; this program scores at temperature 1 only."""
    lines = ["TEMPERATURE: 1.00", ""]
    for divides, groups in result.breakdown.items():
        shown = [f"{group}: {100 * value:.2f}" for group, value in groups.items()]
        lines += [f"### {divides.upper()} {result.metric.upper()}", *shown, ""]
    value = result.value if result.metric.endswith("_percent") else 100 * result.value
    lines += [f"### AVERAGE {result.metric.upper()}", f"{value:.2f}", ""]
    return "\n".join(lines)


def as_json(value: Any, indent: int | None = None) -> str:
    """One JSON document and a line break; what is not a number becomes null."""
    return json.dumps(_null_if_undefined(value), ensure_ascii=False, indent=indent, allow_nan=False) + "\n"


def _null_if_undefined(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _null_if_undefined(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_null_if_undefined(inner) for inner in value]
    return value
