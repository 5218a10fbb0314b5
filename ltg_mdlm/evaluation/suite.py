"""The evaluation suite: run every task that has data, with one JSON file and one table of all results."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import require_writable, write_text
from ltg_mdlm.evaluation.age_of_acquisition import AgeOfAcquisition, milestones
from ltg_mdlm.evaluation.multiple_choice import CHOICE_TASKS, WUG_ADJECTIVES, WUG_PAST_TENSES, Protocol
from ltg_mdlm.evaluation.reading import Reading
from ltg_mdlm.evaluation.result_folders import BACKENDS, model_folder, scoring_facts, write_task_result
from ltg_mdlm.evaluation.tasks import Skip, Task, TaskResult, data_name, find_data
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.inference.texts import Scorer
from ltg_mdlm.inference.trained_model import TrainedModel, open_model

SUITE_FILE = "suite.json"

Finetune = Callable[[Path], Sequence[Mapping[str, Any]]]
"""Fine-tunes a copy of the model on every classification task in a folder, and returns their summaries."""


@dataclass(frozen=True, kw_only=True)
class FineTuning(Task):
    """Mean score over the classification tasks of (Super)GLUE, after fine-tuning a copy of the model."""

    name: str = "glue"
    prefixes: tuple[str, ...] = ("glue",)
    fields: frozenset[str] | None = frozenset({"label"})
    finetune: Finetune | None

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Fine-tune, which writes its own results; `scorer` is not used.

        The score of a task is the metric that counts in the official suite: F1 for mrpc and qqp, else accuracy.
        """
        if self.finetune is None:
            raise Skip("needs training; add --finetune")
        summaries = self.finetune(path)
        scores = {summary["task"]: summary["mean"][summary["metric"]] for summary in summaries}
        return TaskResult(
            task=self.name,
            data=data_name(path),
            metric="score",
            figures={
                "score": fmean(scores.values()),
                "accuracy": fmean(summary["mean"]["accuracy"] for summary in summaries),
            },
            breakdown={"UID": scores},
            questions=sum(summary["valid"]["rows"] for summary in summaries),
        )


@dataclass(frozen=True, kw_only=True)
class OfOtherProtocol(Task):
    """A task that the protocol of this evaluation does not have; its data are recognised, but not scored."""

    protocol: Protocol
    """The protocol that has it."""

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Raises Skip."""
        raise Skip(f"not in this protocol; add --protocol {self.protocol}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened to a task, or to a folder with data."""

    task: str
    data: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    """Why the task was skipped or failed."""
    result: TaskResult | None = None
    missing: str = ""
    """Pattern of the folders that would hold the data of the task; empty if there are data."""

    def to_json(self) -> dict[str, Any]:
        """Everything except items and predictions; undefined figures are null."""
        row: dict[str, Any] = {"task": self.task, "data": self.data, "status": self.status}
        if self.result is None:
            return row | {"reason": self.reason}

        def defined(figures: Mapping[str, float]) -> dict[str, float | None]:
            return {name: None if math.isnan(value) else value for name, value in figures.items()}

        figures = defined(self.result.figures)
        return row | {
            "metric": self.result.metric,
            "value": figures[self.result.metric],
            "figures": figures,
            "breakdown": {division: defined(groups) for division, groups in self.result.breakdown.items()},
            "questions": self.result.questions,
            "validated": self.result.validated,
        }


def suite_tasks(protocol: Protocol, ages: AgeOfAcquisition, finetune: Finetune | None = None) -> list[Task]:
    """All tasks of a protocol; `finetune` evaluates the model on a GLUE folder."""
    of_protocol: dict[Protocol, list[Task]] = {
        "2026": [*CHOICE_TASKS["2026"], Reading(), ages],
        "2025": [*CHOICE_TASKS["2025"], WUG_ADJECTIVES, WUG_PAST_TENSES, Reading()],
    }
    tasks = of_protocol.pop(protocol)
    names = {task.name for task in tasks}
    others = [
        OfOtherProtocol(name=task.name, prefixes=task.prefixes, fields=task.fields, protocol=other)
        for other, of_other in of_protocol.items()
        for task in of_other
        if task.name not in names
    ]
    return [*tasks, *others, FineTuning(finetune=finetune)]


def all_tasks(
    trained: TrainedModel, rule: ScoringRule, ranks: Ranks, protocol: Protocol, finetune: Finetune | None
) -> list[Task]:
    """All tasks of a protocol; the milestones are the `chck_*` checkpoints beside the model, opened when needed."""
    whole = replace(rule, normalise="none")  # the surprisal of a word is the sum over its tokens

    def open_scorer(path: Path) -> Scorer:
        return LikelihoodScorer(open_model(path, ranks, weights=trained.weights), whole, ranks)

    ages = AgeOfAcquisition(
        milestones=milestones(trained.source.parent, open_scorer), model=trained.name, tokenizer=trained.tokenizer
    )
    return suite_tasks(protocol, ages, finetune)


def measure(
    trained: TrainedModel,
    tasks: Sequence[Task],
    data: Path,
    rule: ScoringRule,
    ranks: Ranks,
    out: Path,
    protocol: Protocol,
    *,
    suite_file: bool = False,
) -> list[Outcome]:
    """Run all tasks, and write the results of each one as soon as it is done. Every rank must call it.

    If the data of a task are malformed, only this task fails, and its outcome says so. With `suite_file`, all outcomes
    are also written to one JSON file.

    Raises UserError for a score that the model cannot give, a folder without data, and results that cannot be written.
    """
    scorer = LikelihoodScorer(trained, rule, ranks, show_progress=True)
    facts, folder = scoring_facts(trained, rule, protocol), model_folder(out, trained)
    for place in (folder, folder / "zero_shot" / BACKENDS[rule.score]):
        require_writable(place, inside=True)  # before hours of scoring
    outcomes = []
    started = time.monotonic()
    for outcome in run_suite(tasks, scorer, data, say=_say if ranks.is_main else lambda text: None):
        outcomes.append(outcome)
        seconds, started = time.monotonic() - started, time.monotonic()
        result = outcome.result
        if ranks.is_main and result is not None and result.place is not None:
            write_task_result(folder / "zero_shot" / BACKENDS[rule.score] / result.place, result, facts, seconds)
        if ranks.is_main and suite_file:
            write_suite(folder / SUITE_FILE, facts, outcomes)
    return outcomes


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_suite(
    tasks: Sequence[Task], scorer: Scorer, data: Path, say: Callable[[str], None] = lambda text: None
) -> Iterator[Outcome]:
    """Run the tasks on all data below a folder; then yield the tasks without data as skipped.

    `say` is told the number and the name of every task that begins.

    If the data of a task are malformed, only this task fails. Under torchrun, every rank must consume all outcomes.

    Raises UserError if the folder has no data of any task.
    """
    found = list(find_data(data, tasks))
    if not any(task for _, task in found):
        expected = ", ".join(f"{prefix}*" for task in tasks for prefix in task.prefixes)
        raise UserError(f"{data}: no evaluation data; expected folders such as {expected}")
    seen: dict[tuple[str, str], Path] = {}
    for number, (path, task) in enumerate(found, 1):
        name = data_name(path)
        if task is None:
            yield Outcome(task="-", data=name, status="skipped", reason="not the data of a known task")
            continue
        first = seen.setdefault((task.name, name), path)
        if first is not path and not isinstance(task, FineTuning):  # whose results are named after the task
            reason = f"{first} has the same name; its results would be overwritten"
            yield Outcome(task=task.name, data=name, status="skipped", reason=reason)
            continue
        say(f"{number}/{len(found)} {name}")
        try:
            result = task.run(path, scorer)
        except Skip as skip:
            yield Outcome(task=task.name, data=name, status="skipped", reason=str(skip))
        except UserError as error:
            yield Outcome(task=task.name, data=name, status="failed", reason=str(error))
        else:
            yield Outcome(task=task.name, data=result.data, status="done", result=result)
    for task in tasks:
        if not (isinstance(task, OfOtherProtocol) or any(task is present for _, present in found)):
            missing = f"{task.prefixes[0]}*"
            shared = sum(other.name == task.name for other in tasks) > 1  # the name of BLiMP and its supplement
            yield Outcome(
                task=task.prefixes[0] if shared else task.name,
                data="-",
                status="skipped",
                reason=f"no folder {missing} in {data}",
                missing=missing,
            )


def require_success(outcomes: Sequence[Outcome]) -> None:
    """Raises UserError with the reasons if a task failed."""
    failed = [f"{outcome.data}: {outcome.reason}" for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise UserError("\n  ".join([f"{len(failed)} of {len(outcomes)} tasks failed", *failed]))


def write_suite(file: Path, facts: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write the facts of the model and all outcomes as one JSON object. Raises UserError if it cannot be written."""
    content = {**facts, "tasks": [outcome.to_json() for outcome in outcomes]}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(content, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; choose another folder with --out") from None


def suite_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per task or folder with data, and one row for all tasks without data."""
    table = Table("task", "data", "questions", "result", "remark", box=None, pad_edge=False)
    for outcome in outcomes:
        questions, figures, remark = "-", "-", f"{outcome.status}: {outcome.reason}"
        if outcome.missing:
            continue
        if (result := outcome.result) is not None:
            questions, figures = str(result.questions), _figures(result.figures)
            remark = "" if result.validated else "unvalidated: not checked on the published data"
        table.add_row(*map(escape, (outcome.task, outcome.data, questions, figures, remark)))
    if missing := [outcome.missing for outcome in outcomes if outcome.missing]:
        table.add_row("-", "-", "-", "-", escape(f"no data: {', '.join(missing)}"))
    return table


def breakdown_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per uid."""
    table = Table("data", "uid", "result", box=None, pad_edge=False)
    for outcome in outcomes:
        if outcome.result is not None:
            for uid, value in outcome.result.breakdown.get("UID", {}).items():
                table.add_row(escape(outcome.data), escape(uid), _figure(outcome.result.metric, value))
    return table


def _figures(figures: Mapping[str, float]) -> str:
    """All figures; a standard error and the level of chance stand beside the accuracy."""
    shown = {name: _figure(name, value) for name, value in figures.items()}
    error, chance = figures.get("standard_error", math.nan), figures.get("chance")
    if not math.isnan(error):
        shown["accuracy"] += f" ± {error:.1%}"
    if chance is not None:
        shown["accuracy"] += f" (chance {chance:.1%})"
    return ", ".join(text for name, text in shown.items() if name not in ("standard_error", "chance"))


def _figure(name: str, value: float) -> str:
    label = name.removesuffix("_percent").replace("_", " ").replace("nan ", "NaN ")
    if isinstance(value, int):
        return f"{label} {value}"
    if name.endswith("_percent"):
        return f"{label} {value:.2f} %"
    is_share = name in ("accuracy", "score") or name.endswith("_rate")
    return f"{label} {value:.1%}" if is_share else f"{label} {value:.3f}"
