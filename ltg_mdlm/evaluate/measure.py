"""Measure a trained model on everything that a folder of evaluation data holds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ltg_mdlm.distributed import Ranks
from ltg_mdlm.durable import require_writable
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.age_of_acquisition import Milestone, milestones
from ltg_mdlm.evaluate.fine_tuning import Finetune
from ltg_mdlm.evaluate.results import describe, result_folder, write_result
from ltg_mdlm.evaluate.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.evaluate.suite import Outcome, run_suite, suite_tasks, write_suite
from ltg_mdlm.evaluate.tasks import Task
from ltg_mdlm.trained_model import TrainedModel, Weights, open_model

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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another folder with --out") from None
