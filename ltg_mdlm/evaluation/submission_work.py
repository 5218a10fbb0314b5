"""The evaluations that a submission to the strict tracks needs, shared between processes and resumed after a kill.

The work is divided into jobs: a task and a checkpoint. A job writes its result folder as soon as it is done, and a
folder is complete or absent, so a repeated command runs only the jobs without a folder. Every worker (a rank of
torchrun, or of a task of a Slurm array) has a fixed share of all jobs, so workers need not talk to each other.

    results/<model>/main/zero_shot/<backend>/...            full tasks, as other evaluations write them
    results/<model>/main/finetune/<task>/                   fine-tuning
    results/<model>/chck_*/zero_shot/<backend>/...          fast tasks
    results/<model>/chck_*/zero_shot/<backend>/AoA_word/    surprisals of one checkpoint
    results/<model>/main/zero_shot/<backend>/AoA_word/      those of all checkpoints, with the score
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import require_writable
from ltg_mdlm.core.json_files import read_object
from ltg_mdlm.core.terminal import clock
from ltg_mdlm.evaluation.age_of_acquisition import (
    AgeOfAcquisition,
    Milestone,
    milestones,
    read_contexts,
    read_shares,
    surprisal_file,
    surprisals_of,
)
from ltg_mdlm.evaluation.finetune_suite import differing, finetune_files
from ltg_mdlm.evaluation.finetune_tasks import TaskFiles, settings_of
from ltg_mdlm.evaluation.result_folders import (
    BACKENDS,
    WEIGHTS_HASH,
    model_facts,
    scoring_facts,
    to_json,
    write_folder,
    write_task_result,
)
from ltg_mdlm.evaluation.submission import (
    AOA,
    FAST_PARTS,
    FULL_PARTS,
    EvaluationData,
    Part,
)
from ltg_mdlm.evaluation.tasks import Skip
from ltg_mdlm.inference.exported_folder import MAIN
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule, require_fit
from ltg_mdlm.inference.texts import Scorer
from ltg_mdlm.inference.trained_model import TrainedModel, open_model

DATA_SUFFIXES = (".csv", ".json", ".jsonl")
TASK_SUFFIXES = (*DATA_SUFFIXES, ".py", ".tsv", ".yaml")
"""Of the files of lm-eval's tasks."""

_FINETUNING_COST = 100
"""Cost of fine-tuning per byte of training data, where that of scoring a byte is 1. Only the balance depends on it."""


@dataclass(frozen=True)
class Job:
    """A task and a checkpoint.

    Attributes:
        revision: `main` or `chck_*`.
        name: name of the task, as progress shows it.
        folder: the result folder.
        cost: about proportional to the time it takes.
        run: writes the result folder.
        request: what determines the result; a summary.json with other values belongs to another evaluation.
    """

    revision: str
    name: str
    folder: Path
    cost: float
    run: Callable[[], None]
    request: Mapping[str, Any]

    @property
    def done(self) -> bool:
        """Whether the result folder is there. Raises UserError if it holds the result of another evaluation."""
        if not self.folder.exists():
            return False
        summary = read_object(self.folder / "summary.json")
        # `eval suite` writes the same folders, without the hash of the data.
        request = {key: value for key, value in self.request.items() if key != "sha256" or key in summary}
        if keys := differing(summary, request):
            raise UserError(
                f"{self.folder}: holds a result with other {', '.join(keys)}; choose another --results or delete it"
            )
        return True


@dataclass(frozen=True)
class Worker:
    """One of several processes that share the jobs."""

    index: int
    count: int

    @classmethod
    def here(cls, ranks: Ranks, *, array: bool) -> Worker:
        """The worker of this process, among the ranks of torchrun and, with `array`, the tasks of its Slurm array.

        Raises UserError for an array whose task numbers have gaps.
        """
        task, tasks = array_task(os.environ) if array else (0, 1)
        return cls(task * ranks.world_size + ranks.rank, tasks * ranks.world_size)

    def share(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of this worker, in their order; all workers get about the same cost."""
        load, mine = [0.0] * self.count, set()
        for number in sorted(range(len(jobs)), key=lambda number: -jobs[number].cost):
            worker = load.index(min(load))
            load[worker] += jobs[number].cost
            if worker == self.index:
                mine.add(number)
        return [job for number, job in enumerate(jobs) if number in mine]


def array_task(environment: Mapping[str, str]) -> tuple[int, int]:
    """(index, count) of this task in its Slurm array; (0, 1) outside of one.

    Raises UserError for an array whose task numbers have gaps.
    """
    count = int(environment.get("SLURM_ARRAY_TASK_COUNT", 1))
    if count == 1:
        return 0, 1
    lowest, step = int(environment["SLURM_ARRAY_TASK_MIN"]), int(environment["SLURM_ARRAY_TASK_STEP"])
    index, rest = divmod(int(environment["SLURM_ARRAY_TASK_ID"]) - lowest, step)
    if rest or index >= count:
        raise UserError(
            "the numbers of this Slurm array have gaps, so its tasks cannot share the work"
            "\n  submit it as --array=0-7, or add --no-array"
        )
    return index, count


class SubmissionWork(ABC):
    """All jobs of a submission, for one model and one score."""

    def __init__(
        self,
        trained: TrainedModel,
        rule: ScoringRule,
        ranks: Ranks,
        revisions: Sequence[str],
        results: Path,
        *,
        sets: Sequence[str] = (),
    ) -> None:
        """Nothing is scored.

        Args:
            trained: the last checkpoint.
            revisions: names of the checkpoints of the track.
            results: the folder below which the results of all models are.
            sets: `key=value` texts for the settings of fine-tuning.

        Raises UserError for a score that the model cannot give, and results that cannot be written.
        """
        require_fit(trained, rule)
        if trained.revision != MAIN:
            raise UserError(f"{trained.source}: a submission is made of a run, not of one of its checkpoints")
        self.folder = results / trained.name
        require_writable(self.folder)
        self._trained, self._rule, self._sets, self._results = trained, rule, sets, results
        self._alone = replace(ranks, rank=0, world_size=1)  # jobs are shared, not the rows of a job
        self._facts = scoring_facts(trained, rule, "2026")
        self._backend = BACKENDS[rule.score]
        self._hash = cache(hash_of_files)  # all checkpoints share the data
        self._weights_sha256 = cache(lambda revision: self._open(revision).weights_sha256)
        found = milestones(trained.source.parent, lambda path: self._scorer(path.name))
        self.milestones = [milestone for milestone in found if milestone.name in revisions]
        self._opened = (MAIN, trained)

    @cached_property
    def jobs(self) -> list[Job]:
        """The jobs that have data. Raises UserError for data that cannot be read."""
        return list(self._list_jobs())

    @abstractmethod
    def _list_jobs(self) -> Iterator[Job]: ...

    def combine(self) -> None:  # noqa: B027
        """Write what is computed from the results of several jobs, if there is such a thing."""

    def _open(self, revision: str) -> TrainedModel:
        """A checkpoint of the model; the last one that was used stays open."""
        if revision != self._opened[0]:
            path = self._trained.source.parent / revision
            model = self._trained if revision == MAIN else open_model(path, self._alone, weights=self._trained.weights)
            self._opened = (revision, model)
        return self._opened[1]

    def _scorer(self, revision: str) -> Scorer:
        return LikelihoodScorer(self._open(revision), self._rule, self._alone, show_progress=True)

    def _request(self, revision: str, task: str, data: Path) -> dict[str, Any]:
        request = {**self._facts, "revision": revision, "task": task, "sha256": self._hash(data)}
        if revision != MAIN:
            # Known only when the checkpoint is opened, whose name says how many words it has seen.
            del request["step"], request["words_seen"]
            with suppress(UserError):  # of a damaged checkpoint, whose jobs fail when they run
                request[WEIGHTS_HASH] = self._weights_sha256(revision)
        return request

    def _finetuning(self, files: TaskFiles) -> Job:
        name = files.task.name

        def run() -> None:
            finetune_files(self._trained, [files], self._alone, sets=self._sets, out=self._results)

        request = {
            "task": name,
            **model_facts(self._trained),
            "protocol": "2026",
            "sha256": files.hashes,
            "settings": settings_of(files.task, self._sets).model_dump(mode="json"),
        }
        size = sum(file.stat().st_size for split, file in files.files.items() if "train" in split)
        return Job(MAIN, name, self.folder / MAIN / "finetune" / name, _FINETUNING_COST * size, run, request)

    def run(self, worker: Worker, say: Callable[[str], None]) -> list[str]:
        """Run the jobs of a worker that are not done; returns a line for every job that failed.

        Raises UserError, before anything is scored, if a result folder holds the result of another evaluation, or
        cannot be written.
        """
        mine = [job for job in worker.share(self.jobs) if not job.done]
        for job in mine:
            require_writable(job.folder)
        total, finished, started, failed = sum(job.cost for job in mine), 0.0, time.monotonic(), []
        for number, job in enumerate(mine, 1):
            began = time.monotonic()
            try:
                job.run()
            except Skip as reason:
                say(f"{number}/{len(mine)} {job.revision} {job.name}: left out, {reason}")
                total -= job.cost
                continue
            except UserError as error:
                failed.append(f"{job.revision} {job.name}: {error}")
                say(f"{number}/{len(mine)} {failed[-1]}")
                continue
            finished += job.cost
            now = time.monotonic()
            left = (now - started) / finished * (total - finished) if finished else 0.0
            say(f"{number}/{len(mine)} {job.revision} {job.name}: {clock(now - began)}, about {clock(left)} left")
        return failed

    def pending(self) -> list[Job]:
        """The jobs of all workers that are not done."""
        return [job for job in self.jobs if not job.done]


class StrictWork(SubmissionWork):
    """The jobs of the strict tracks; arguments are those of `SubmissionWork`, and the evaluation data."""

    def __init__(self, *arguments: Any, data: EvaluationData, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._data = data

    def _list_jobs(self) -> Iterator[Job]:
        """The jobs that have data, checkpoint by checkpoint."""
        for part in FULL_PARTS:
            if folder := self._data.folder(part):
                yield self._zero_shot(MAIN, part, folder)
        yield from map(self._finetuning, self._data.glue_files())
        fast = [(part, folder) for part in FAST_PARTS if (folder := self._data.folder(part))]
        words = self._data.age_of_acquisition
        for milestone in self.milestones:
            for part, folder in fast:
                yield self._zero_shot(milestone.name, part, folder)
            if words:
                yield Job(
                    milestone.name,
                    AOA,
                    self._place(milestone.name) / AOA,
                    bytes_of_files(words),
                    partial(self._words, milestone, words),
                    self._request(milestone.name, AOA, words),
                )

    def _place(self, revision: str) -> Path:
        return self.folder / revision / "zero_shot" / self._backend

    def _zero_shot(self, revision: str, part: Part, data: Path) -> Job:
        folder = self._place(revision) / part.place
        request = self._request(revision, part.task.name, data)

        def run() -> None:
            started = time.monotonic()
            result = part.task.run(data, self._scorer(revision))
            write_task_result(folder, result, request, time.monotonic() - started)

        return Job(revision, part.data, folder, bytes_of_files(data), run, request)

    def _words(self, milestone: Milestone, data: Path) -> None:
        words = read_contexts(data / "cdi_childes.json")
        surprisals = {milestone.name: surprisals_of(words, milestone.open())}
        files = {
            "surprisal.json": to_json(surprisal_file(self._trained.name, words, surprisals)),
            "summary.json": to_json(self._request(milestone.name, AOA, data), indent=2),
        }
        write_folder(self._place(milestone.name) / AOA, files)

    def combine(self) -> None:
        """Write the official files of age of acquisition from the surprisals of the checkpoints that are done.

        Nothing is written with fewer than three checkpoints, from which no curve can be fitted.
        """
        data = self._data.age_of_acquisition
        folder = self._place(MAIN) / AOA
        if data is None:
            return
        words = read_contexts(data / "cdi_childes.json")
        surprisals: dict[str, list[float]] = {}
        for milestone in self.milestones:
            file = self._place(milestone.name) / AOA / "surprisal.json"
            # `eval suite` on a checkpoint writes a file with the surprisals of all checkpoints.
            rows = read_object(file)["results"] if file.is_file() else []
            found = [row["surprisal"] for row in rows if row["step"] == milestone.name]
            if len(found) == len(words):
                surprisals[milestone.name] = found
        ready = list(surprisals)
        if len(ready) < 3:
            return
        request = {**self._request(MAIN, AOA, data), "checkpoints": ready}
        if folder.exists() and not differing(read_object(folder / "summary.json"), request):
            return
        human = data / "cdi_human.csv"
        task = AgeOfAcquisition(milestones=self.milestones, model=self._trained.name, tokenizer=self._trained.tokenizer)
        result = task.result(words, read_shares(human) if human.is_file() else {}, surprisals, data.name)
        write_task_result(folder, result, request, 0.0)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Only one process at a time is within this context for a folder, where the file system supports locks."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _files(data: Path, *, tasks: bool = False) -> list[Path]:
    """A data file, or those in a folder; with `tasks`, the files of lm-eval's tasks in a folder and below it."""
    if data.is_file():
        return [data]
    found, suffixes = (data.rglob("*"), TASK_SUFFIXES) if tasks else (data.iterdir(), DATA_SUFFIXES)
    visible = (path for path in found if not any(part.startswith(".") for part in path.relative_to(data).parts))
    return sorted(path for path in visible if path.suffix in suffixes)


def bytes_of_files(folder: Path) -> float:
    """Size of the data files in a folder."""
    return float(sum(path.stat().st_size for path in _files(folder)))


def hash_of_files(data: Path, *, tasks: bool = False) -> str:
    """Hash of the names and contents of `_files`."""
    digest = hashlib.sha256()
    for path in _files(data, tasks=tasks):
        name = path.relative_to(data).as_posix() if path != data else path.name
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
