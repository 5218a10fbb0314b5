"""Results of fine-tuning: a folder per task, in the layout of the official pipeline, and the table over tasks.

results/<model>/<revision>/finetune/<task>/
    predictions.json   the official file: {task: {"predictions": [{"id": "rte_0", "pred": 1}, ...]}}, of the first seed
    items.jsonl        {"id", "uid", "label", "predictions", "correct"} per validation row, over all seeds
    summary.json       metrics of every epoch and seed, what was asked for, counts
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ltg_mdlm.config import flatten
from ltg_mdlm.durable import publish_folder, temporary_name, write_file
from ltg_mdlm.errors import UserError
from ltg_mdlm.finetune.rows import Rows
from ltg_mdlm.finetune.training import FinetuneRun, TaskRows

Summary = Mapping[str, Any]
"""The content of a summary.json."""


@dataclass(frozen=True)
class FinetuneResult:
    """A task fine-tuned with one seed or several."""

    rows: TaskRows
    runs: Sequence[FinetuneRun]
    data: str
    """Name of the folder that the files lie in."""
    request: Mapping[str, Any]
    """Everything that decides the result: model, data, settings, seeds."""

    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        best = [run.best_epoch.metrics for run in self.runs]
        values = {metric: [metrics[metric] for metrics in best] for metric in self.rows.task.metrics}
        return {
            **self.request,
            "data": self.data,
            "metric": "accuracy",  # what the official suite reports; epochs may be selected by another one
            "selected_by": self.rows.task.selects,
            "mean": {metric: statistics.fmean(found) for metric, found in values.items()},
            "spread": {metric: spread(found) for metric, found in values.items()},
            "majority_accuracy": max(Counter(self.rows.valid.labels).values()) / len(self.rows.valid),
            "train": _counts(self.rows.train),
            "valid": _counts(self.rows.valid),
            "runs": [_describe(run) for run in self.runs],
        }

    def items(self) -> list[dict[str, Any]]:
        """One object per validation row, in file order."""
        name, labels = self.rows.task.name, self.rows.valid.labels
        by_row = zip(*(run.best_epoch.predictions for run in self.runs), strict=True)
        return [
            {
                "id": f"{name}_{i}",
                "uid": name,
                "label": label,
                "predictions": list(predictions),
                "correct": predictions.count(label) / len(predictions),
            }
            for i, (label, predictions) in enumerate(zip(labels, by_row, strict=True))
        ]

    def official_predictions(self) -> dict[str, Any]:
        """Those of the first seed, as the official pipeline writes them."""
        name = self.rows.task.name
        predictions = self.runs[0].best_epoch.predictions
        return {name: {"predictions": [{"id": f"{name}_{i}", "pred": pred} for i, pred in enumerate(predictions)]}}


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation over the seeds; None of one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def _counts(rows: Rows) -> dict[str, Any]:
    labels = {str(label): count for label, count in sorted(Counter(rows.labels).items())}
    return {"rows": len(rows), "labels": labels, "truncated": rows.truncated}


def _describe(run: FinetuneRun) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "best_epoch": run.best + 1,
        "metrics": dict(run.best_epoch.metrics),
        "epochs": [
            {"epoch": number, "loss": epoch.loss, **epoch.metrics} for number, epoch in enumerate(run.epochs, 1)
        ],
        "seconds": round(run.seconds, 1),
    }


def write_result(folder: Path, result: FinetuneResult) -> None:
    """Make the folder of a task, in place of an older one: complete, or not at all.

    Raises UserError if the disk is full or the place is not writable.
    """
    aside = temporary_name(folder)
    try:
        aside.mkdir(parents=True)
        write_file(aside / "predictions.json", json.dumps(result.official_predictions()))
        write_file(aside / "items.jsonl", "".join(json.dumps(item) + "\n" for item in result.items()))
        write_file(aside / "summary.json", json.dumps(result.summary(), indent=1))
        publish_folder(aside, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_summary(folder: Path) -> Summary | None:
    """The summary of a finished task; None where nothing is.

    Raises UserError for a folder that holds something else.
    """
    if not folder.exists():
        return None
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = None
    if not isinstance(summary, dict):
        raise UserError(f"{folder}: not a result of fine-tuning; choose another --out or delete it")
    return summary


def differing(summary: Summary, request: Mapping[str, Any]) -> list[str]:
    """Dotted keys of what was asked for otherwise when a result was made."""
    there, wanted = (flatten({key: facts.get(key) for key in request}) for facts in (summary, request))
    return sorted(key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key))


def result_table(summaries: Sequence[Summary]) -> Table:
    """A line per task, and the mean accuracy, which is what the official suite reports."""
    table = Table(box=None, pad_edge=False)
    table.add_column("task")
    for column in ("rows", "seeds", "epoch", "accuracy", "F1", "MCC", "majority", "truncated"):
        table.add_column(column, justify="right")
    for summary in summaries:
        table.add_row(*_cells(summary))
    if len(summaries) > 1:
        mean = statistics.fmean(summary["mean"]["accuracy"] for summary in summaries)
        table.add_row("mean", "", "", "", f"{100 * mean:.1f}")
    return table


def _cells(summary: Summary) -> list[str]:
    train, valid = summary["train"], summary["valid"]
    best_epochs = [run["best_epoch"] for run in summary["runs"]]
    return [
        summary["task"],
        f"{train['rows']:,} + {valid['rows']:,}",
        str(len(summary["runs"])),
        "-".join(map(str, sorted({min(best_epochs), max(best_epochs)}))),
        *(_percent(summary, metric) for metric in ("accuracy", "f1", "mcc")),
        f"{100 * summary['majority_accuracy']:.1f}",
        str(train["truncated"] + valid["truncated"]),
    ]


def _percent(summary: Summary, metric: str) -> str:
    mean, spread = summary["mean"].get(metric), summary["spread"].get(metric)
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" if spread is None else f"{100 * mean:.1f} ± {100 * spread:.1f}"
