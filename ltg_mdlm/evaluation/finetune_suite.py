"""Fine-tuning on several tasks, shared between processes. Finished tasks are not repeated.

results/<model>/<revision>/finetune/<task>/
    predictions.json   official: {task: {"predictions": [{"id": "rte_0", "pred": 1}, ...]}}, of the first seed
    results.txt        official: a metric per line, of the first seed
    items.jsonl        {"id", "uid", "label", "predictions", "correct"} per validation row, over all seeds
    summary.json       metrics of every epoch and seed, settings, counts

Tasks of the multilingual track have `predictions.txt` and `eval_results.json` in place of the first two files; `pos`
has them in a folder for every language, with `predict_results.json`.
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
from ltg_mdlm.core.files import require_writable
from ltg_mdlm.core.json_files import read_object
from ltg_mdlm.core.settings import flatten
from ltg_mdlm.core.terminal import share_progress
from ltg_mdlm.evaluation.finetune_tasks import (
    FinetuneSettings,
    Label,
    TaskFiles,
    classes_of,
    find_tasks,
    read_examples,
    settings_of,
)
from ltg_mdlm.evaluation.finetune_training import (
    EncodedExamples,
    EncodedTask,
    FinetuneRun,
    encode,
    finetune_once,
    work_per_seed,
)
from ltg_mdlm.evaluation.multiple_choice import Protocol
from ltg_mdlm.evaluation.pos_tagging import EncodedTreebanks, encode_treebanks, tagging_files
from ltg_mdlm.evaluation.result_folders import WEIGHTS_HASH, model_facts, model_folder, write_folder
from ltg_mdlm.inference.trained_model import TrainedModel

TIMEOUT = timedelta(days=2)
"""Ranks wait for each other only at the end, and one task may take hours longer than another."""

Summary = Mapping[str, Any]
"""The content of a summary.json."""


@dataclass(frozen=True)
class FinetuneJob:
    """One task, with all its data read and checked before training."""

    data: EncodedTask
    settings: FinetuneSettings
    seeds: Sequence[int]
    request: Mapping[str, Any]
    """Everything that determines the result: task, model, hashes of the files, seeds, settings."""
    source: str
    """Name of the folder of the files."""
    folder: Path
    """The result folder."""

    @property
    def name(self) -> str:
        return self.data.task.name

    @property
    def tokens(self) -> int:
        """Tokens of all passes over the training file, which take most of the time."""
        return len(self.seeds) * self.settings.epochs * sum(map(len, self.data.train.ids))


def finetune_suite(
    trained: TrainedModel,
    data: Path,
    ranks: Ranks,
    *,
    tasks: Sequence[str] = (),
    sets: Sequence[str] = (),
    seeds: Sequence[int] = (),
    out: Path = Path("results"),
    protocol: Protocol = "2026",
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Summary]:
    """Fine-tune on the tasks in `data`, or on those with these names; returns summaries in the order of the suite.

    Every rank trains some of the tasks and writes their folders below `out`; all ranks return all summaries. Finished
    tasks are not repeated, unless `overwrite`.

    Args:
        sets: `key=value` texts for `FinetuneSettings`, for all tasks.
        seeds: by default the published seed of each task.
        protocol: 2025 pools the first position, and counts accuracy for all tasks of GLUE.
        say: called with one line for every task that was finished before, and every task that this rank has finished.

    Raises:
        UserError: before training, for missing or malformed files, wrong settings, existing results with other
            settings, and folders that cannot be written; on all ranks, after all tasks, for every task that failed.
    """
    return finetune_files(
        trained,
        find_tasks(data, tasks),
        ranks,
        sets=sets,
        seeds=seeds,
        out=out,
        protocol=protocol,
        overwrite=overwrite,
        say=say,
    )


def finetune_files(
    trained: TrainedModel,
    tasks: Sequence[TaskFiles],
    ranks: Ranks,
    *,
    sets: Sequence[str] = (),
    seeds: Sequence[int] = (),
    out: Path = Path("results"),
    protocol: Protocol = "2026",
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Summary]:
    """Fine-tune on the tasks with these files; otherwise as `finetune_suite`."""
    jobs = [prepare_job(trained, files, sets, seeds, out, protocol) for files in tasks]
    done = finished_results(jobs, overwrite=overwrite)
    for job in jobs:
        require_writable(job.folder)
    ranks.barrier()  # no rank writes before all have looked for finished results
    for job in jobs:
        if job.name in done and ranks.is_main:
            say(f"{job.name}: already finished, in {job.folder} (--overwrite repeats it)")
    problems = []
    for job in share([job for job in jobs if job.name not in done], ranks):
        work = len(job.seeds) * work_per_seed(job.data, job.settings)
        try:
            with share_progress(f"fine-tuning on {job.name}", work, show=ranks.is_main) as advance:
                runs = [finetune_once(trained, job.data, job.settings, seed, advance=advance) for seed in job.seeds]
            done[job.name] = write_finetuning(job, runs)
        except UserError as error:  # raised on all ranks after the other tasks
            problems.append(str(error))  # which names the task
        else:
            say(f"{job.name}: {job.folder}")
    gathered = ranks.gather_objects((done, problems))
    if failed := [problem for _, of_rank in gathered for problem in of_rank]:
        raise UserError("\nerror: ".join(failed))
    summaries = {name: summary for of_rank, _ in gathered for name, summary in of_rank.items()}
    return [summaries[job.name] for job in jobs]


def prepare_job(
    trained: TrainedModel, files: TaskFiles, sets: Sequence[str], seeds: Sequence[int], out: Path, protocol: Protocol
) -> FinetuneJob:
    """Read the files of a task and check the settings.

    Raises UserError for malformed files, wrong settings, and rows longer than the maximum of the model.
    """
    task, settings = files.task, settings_of(files.task, sets, protocol)
    limit = trained.model.config.max_position_embeddings
    if settings.seq_len > limit:
        raise UserError(
            f"{trained.source}: the model takes at most {limit} tokens, fewer than seq_len {settings.seq_len};"
            f" add --set seq_len={limit}"
        )
    data: EncodedTask
    if task.tags_words:
        data = encode_treebanks(files, trained.tokenizer, settings.seq_len)
    else:
        classes = classes_of(files.train, task)
        examples = read_examples(files.valid, task, classes)
        evaluated = len(examples) - len(examples) % task.evaluation_batch or len(examples)
        train, valid = (
            encode(some, trained.tokenizer, settings.seq_len)
            for some in (read_examples(files.train, task, classes), examples[:evaluated])
        )
        data = EncodedTask(task, classes, train, valid)
    seeds = list(dict.fromkeys(seeds or (task.seed,)))
    request = {
        "task": task.name,
        **model_facts(trained),
        "protocol": protocol,
        "sha256": files.hashes,
        "seeds": seeds,
        "settings": settings.model_dump(mode="json"),
    }
    folder = model_folder(out, trained) / "finetune" / task.name
    source = [*files.files.values()][-1].resolve().parent.name
    return FinetuneJob(data, settings, seeds, request, source, folder)


def finished_results(jobs: Sequence[FinetuneJob], *, overwrite: bool) -> dict[str, Summary]:
    """Summaries, by task, of the jobs that are already finished; none with `overwrite`.

    Raises UserError if a result folder holds anything else. A result with other settings is an error unless
    `overwrite`.
    """
    found: dict[str, Summary] = {}
    for job in jobs:
        if not job.folder.exists():
            continue
        try:
            found[job.name] = read_object(job.folder / "summary.json")
        except UserError as error:
            raise UserError(
                f"{job.folder}: not a result of fine-tuning; choose another --out or delete it\n  {error}"
            ) from None
    if overwrite:
        return {}
    for job in jobs:
        if job.name in found and (keys := differing(found[job.name], job.request)):
            raise UserError(
                f"{job.folder}: holds a result with other {', '.join(keys)}; choose another --out, or add --overwrite"
            )
    return found


def differing(summary: Summary, request: Mapping[str, Any]) -> list[str]:
    """Dotted keys of a request in which an existing result differs."""
    # Results of older versions have no hash of the weights.
    keys = [key for key in request if key != WEIGHTS_HASH or key in summary]
    existing, wanted = (flatten({key: facts.get(key) for key in keys}) for facts in (summary, request))
    return sorted(key for key in existing.keys() | wanted.keys() if existing.get(key) != wanted.get(key))


def share(jobs: Sequence[FinetuneJob], ranks: Ranks) -> list[FinetuneJob]:
    """The jobs of this rank, short ones first; all ranks get about the same number of tokens."""
    load = [0] * ranks.world_size
    mine = []
    for job in sorted(jobs, key=lambda job: job.tokens, reverse=True):
        rank = load.index(min(load))
        load[rank] += job.tokens
        if rank == ranks.rank:
            mine.append(job)
    return mine[::-1]


def write_finetuning(job: FinetuneJob, runs: Sequence[FinetuneRun]) -> Summary:
    """Write the result folder of a job with the runs of its seeds; returns the summary.

    Raises UserError if it cannot be written.
    """
    name, labels, classes = job.name, job.data.valid.labels, job.data.classes
    by_item = zip(*(run.best_epoch.predictions for run in runs), strict=True)
    languages = job.data.languages if isinstance(job.data, EncodedTreebanks) else {}
    uids = [language for language, splits in languages.items() for _ in splits.valid.labels] or [name] * len(labels)
    items = [
        {
            "id": f"{name}_{i}",
            "uid": uid,
            "label": classes[label],
            "predictions": [classes[prediction] for prediction in predictions],
            "correct": predictions.count(label) / len(predictions),
        }
        for i, (uid, label, predictions) in enumerate(zip(uids, labels, by_item, strict=True))
    ]
    summary = summarise(job, runs)
    files = {
        **_official_files(job, runs[0]),
        "items.jsonl": "".join(json.dumps(item) + "\n" for item in items),
        "summary.json": json.dumps(summary, indent=1),
    }
    write_folder(job.folder, files)
    return summary


def _official_files(job: FinetuneJob, run: FinetuneRun) -> dict[str, str]:
    """The files of the official scripts, by name: of strict tracks, or of the multilingual track."""
    if isinstance(job.data, EncodedTreebanks):
        return tagging_files(job.data, run.best_epoch)
    predictions = [job.data.classes[prediction] for prediction in run.best_epoch.predictions]
    if job.data.task.classes is None:
        lines = ["index\tprediction", *(f"{i}\t{label}" for i, label in enumerate(predictions))]
        results = {f"eval_{metric}": value for metric, value in run.best_epoch.metrics.items()}
        return {
            "predictions.txt": "".join(f"{line}\n" for line in lines),
            "eval_results.json": json.dumps({**results, "eval_samples": len(predictions)}, indent=4),
        }
    rows = [{"id": f"{job.name}_{i}", "pred": prediction} for i, prediction in enumerate(predictions)]
    return {
        "predictions.json": json.dumps({job.name: {"predictions": rows}}),
        "results.txt": "\n".join(f"{metric}: {value}" for metric, value in run.best_epoch.metrics.items()),
    }


def summarise(job: FinetuneJob, runs: Sequence[FinetuneRun]) -> Summary:
    """The content of summary.json."""
    task, valid = job.data.task, job.data.valid
    values = {metric: [run.best_epoch.metrics[metric] for run in runs] for metric in runs[0].best_epoch.metrics}
    return {
        **job.request,
        "data": job.source,
        "metric": task.selects if job.request["protocol"] == "2026" else "accuracy",
        "selected_by": job.data.selects,
        "mean": {metric: statistics.fmean(found) for metric, found in values.items()},
        "spread": {
            metric: statistics.stdev(found) if len(found) > 1 else None  # over the seeds
            for metric, found in values.items()
        },
        "majority_accuracy": max(Counter(valid.labels).values()) / len(valid.labels),
        "train": _counts(job.data.train, job.data.classes),
        "valid": _counts(valid, job.data.classes),
        "runs": [
            {
                "seed": run.seed,
                "best_epoch": run.best + 1,
                "metrics": dict(run.best_epoch.metrics),
                "epochs": [
                    {"epoch": number, "loss": epoch.loss, **epoch.metrics} for number, epoch in enumerate(run.epochs, 1)
                ],
                "seconds": round(run.seconds, 1),
            }
            for run in runs
        ],
    }


def _counts(examples: EncodedExamples, classes: Sequence[Label]) -> dict[str, Any]:
    labels = {str(classes[label]): count for label, count in sorted(Counter(examples.labels).items())}
    return {"rows": len(examples), "labels": labels, "truncated": examples.truncated}


def finetuning_table(summaries: Sequence[Summary]) -> Table:
    """One line per task, and the mean score; the score is the metric that counts in the official suite."""
    table = Table(box=None, pad_edge=False)
    table.add_column("task")
    for column in ("rows", "seeds", "epoch", "score", "accuracy", "F1", "MCC", "majority", "truncated"):
        table.add_column(column, justify="right")

    def percent(summary: Summary, metric: str) -> str:
        mean, spread = summary["mean"].get(metric), summary["spread"].get(metric)
        if mean is None:
            return "-"
        return f"{100 * mean:.1f}" if spread is None else f"{100 * mean:.1f} ± {100 * spread:.1f}"

    for summary in summaries:
        train, valid = summary["train"], summary["valid"]
        best_epochs = [run["best_epoch"] for run in summary["runs"]]
        table.add_row(
            summary["task"],
            f"{train['rows']:,} + {valid['rows']:,}",
            str(len(summary["runs"])),
            "-".join(map(str, sorted({min(best_epochs), max(best_epochs)}))),
            *(percent(summary, metric) for metric in (summary["metric"], "accuracy", "f1", "mcc")),
            f"{100 * summary['majority_accuracy']:.1f}",
            str(train["truncated"] + valid["truncated"]),
        )
    if len(summaries) > 1:
        mean = statistics.fmean(summary["mean"][summary["metric"]] for summary in summaries)
        table.add_row("mean", "", "", "", f"{100 * mean:.1f}")
    return table
