"""Fine-tuning on several tasks, shared between processes; what is done already is not done again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ltg_mdlm.distributed import Ranks
from ltg_mdlm.durable import require_writable
from ltg_mdlm.errors import UserError
from ltg_mdlm.finetune.results import FinetuneResult, Summary, differing, read_summary, write_result
from ltg_mdlm.finetune.rows import encode
from ltg_mdlm.finetune.settings import FinetuneSettings, settings_of
from ltg_mdlm.finetune.tasks import TaskFiles, find_tasks, read_examples
from ltg_mdlm.finetune.training import TaskRows, finetune_once, steps_per_epoch
from ltg_mdlm.progress import count_progress
from ltg_mdlm.trained_model import TrainedModel

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
