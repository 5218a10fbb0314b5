"""Fine-tuning on several tasks, shared between processes; what is done already is not done again.

Results of fine-tuning: a folder per task, in the layout of the official pipeline, and the table over tasks.

results/<model>/<revision>/finetune/<task>/
    predictions.json   the official file: {task: {"predictions": [{"id": "rte_0", "pred": 1}, ...]}}, of the first seed
    items.jsonl        {"id", "uid", "label", "predictions", "correct"} per validation row, over all seeds
    summary.json       metrics of every epoch and seed, what was asked for, counts
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.table import Table

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import require_writable, write_errors, written_folder
from ltg_mdlm.core.settings import flatten
from ltg_mdlm.core.terminal import count_progress
from ltg_mdlm.evaluation.finetune_tasks import FinetuneSettings, TaskFiles, find_tasks, read_examples, settings_of
from ltg_mdlm.evaluation.finetune_training import FinetuneRun, Rows, TaskRows, encode, finetune_once, steps_per_epoch
from ltg_mdlm.inference.trained_model import TrainedModel

PUBLISHED_SEED = 42


TIMEOUT = timedelta(days=2)
"""Ranks wait for each other at the end only, and one task may take hours longer than another."""


@dataclass(frozen=True)
class FinetuneJob:
    """One task with everything read and checked, so that only training is left to do."""

    rows: TaskRows
    settings: FinetuneSettings
    seeds: Sequence[int]
    request: Mapping[str, Any]
    """Everything that decides the result, as summary.json repeats it."""
    data: str
    """Name of the folder that the files lie in."""
    folder: Path
    """Where the result belongs."""

    @property
    def name(self) -> str:
        return self.rows.task.name

    @property
    def steps(self) -> int:
        """Updates of all epochs and seeds."""
        return len(self.seeds) * self.settings.epochs * steps_per_epoch(self.rows, self.settings)

    @property
    def tokens(self) -> int:
        """Tokens of all passes over the training file, which take most of the time."""
        return len(self.seeds) * self.settings.epochs * sum(map(len, self.rows.train.ids))


def finetune_suite(
    trained: TrainedModel,
    data: Path,
    ranks: Ranks,
    *,
    tasks: Sequence[str] = (),
    sets: Sequence[str] = (),
    seeds: Sequence[int] = (PUBLISHED_SEED,),
    out: Path = Path("results"),
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Summary]:
    """Fine-tune on the tasks found in `data`, or those of these names; summaries in the order of the suite.

    Every rank trains some of the tasks and writes their folders below `out`; all ranks get all summaries.  A task that
    is done already is left alone, unless `overwrite`.

    Args:
        sets: `key=value` texts for `FinetuneSettings`, for all tasks.
        say: called with a line about every task that is done already, and every one that this rank has finished.

    Raises:
        UserError: before anything is trained, for a missing or malformed file, a wrong setting, or a result of other
            settings in the place of a new one, and a place that cannot be written to; during training for a loss that
            is not finite.
    """
    unique_seeds = list(dict.fromkeys(seeds))
    jobs = [prepare_job(trained, files, sets, unique_seeds, out) for files in find_tasks(data, tasks)]
    done = results_there(jobs, overwrite=overwrite)
    for job in jobs:
        require_writable(job.folder)
    ranks.barrier()  # nobody writes before all have looked
    for job in jobs:
        if job.name in done and ranks.is_main:
            say(f"{job.name}: done already, in {job.folder} (--overwrite does it again)")
    for job in share([job for job in jobs if job.name not in done], ranks):
        result = finetune_task(trained, job, show=ranks.is_main)
        write_result(job.folder, result)
        done[job.name] = result.summary()
        say(f"{job.name}: {job.folder}")
    everyones = {name: summary for each in ranks.gather_objects(done) for name, summary in each.items()}
    return [everyones[job.name] for job in jobs]


def prepare_job(
    trained: TrainedModel, files: TaskFiles, sets: Sequence[str], seeds: Sequence[int], out: Path
) -> FinetuneJob:
    """Read a task and check what is asked for.

    Raises UserError for malformed files, wrong settings, and rows longer than the model takes.
    """
    task, settings = files.task, settings_of(files.task, sets)
    limit = trained.model.config.max_position_embeddings
    if settings.seq_len > limit:
        raise UserError(
            f"{trained.source}: the model takes at most {limit} tokens, fewer than seq_len {settings.seq_len};"
            f" add --set seq_len={limit}"
        )
    train, valid = (
        encode(read_examples(file, task), trained.tokenizer, settings.seq_len) for file in (files.train, files.valid)
    )
    request = {
        "task": task.name,
        "model": trained.name,
        "revision": trained.revision,
        "weights": trained.weights,
        "step": trained.about.get("step"),
        "words_seen": trained.about.get("words_seen"),
        "sha256": files.hashes,
        "seeds": list(seeds),
        "settings": settings.model_dump(mode="json"),
    }
    folder = out / trained.name / trained.revision / "finetune" / task.name
    return FinetuneJob(TaskRows(task, train, valid), settings, seeds, request, files.valid.parent.name, folder)


def results_there(jobs: Sequence[FinetuneJob], *, overwrite: bool) -> dict[str, Summary]:
    """Summaries, by task, of the jobs whose results are there; none if they shall be overwritten.

    Raises UserError if something else lies where a result belongs: a result of other settings, or no result at all.
    """
    found = {job.name: (job, summary) for job in jobs if (summary := read_summary(job.folder))}
    if overwrite:
        return {}
    for job, summary in found.values():
        if keys := differing(summary, job.request):
            raise UserError(
                f"{job.folder}: holds a result of other {', '.join(keys)};"
                " choose another --out, or --overwrite what is there"
            )
    return {name: summary for name, (_, summary) in found.items()}


def share(jobs: Sequence[FinetuneJob], ranks: Ranks) -> list[FinetuneJob]:
    """The jobs of this rank, short ones first; ranks get about equal numbers of tokens."""
    load = [0] * ranks.world_size
    mine = []
    for job in sorted(jobs, key=lambda job: job.tokens, reverse=True):
        rank = load.index(min(load))
        load[rank] += job.tokens
        if rank == ranks.rank:
            mine.append(job)
    return mine[::-1]


def finetune_task(trained: TrainedModel, job: FinetuneJob, *, show: bool = False) -> FinetuneResult:
    """Fine-tune with every seed of a job; `show` a progress bar.

    Raises UserError if a loss or gradient was not finite.
    """
    with count_progress(job.name, job.steps, show=show) as advance:
        runs = [
            finetune_once(trained, job.rows, job.settings, seed, step_done=lambda: advance(1)) for seed in job.seeds
        ]
    return FinetuneResult(job.rows, runs, job.data, job.request)


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
    files = {
        "predictions.json": json.dumps(result.official_predictions()),
        "items.jsonl": "".join(json.dumps(item) + "\n" for item in result.items()),
        "summary.json": json.dumps(result.summary(), indent=1),
    }
    with write_errors(folder), written_folder(folder, replace=True) as aside:
        for name, text in files.items():
            (aside / name).write_text(text, encoding="utf-8")


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
