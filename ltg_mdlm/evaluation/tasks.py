"""Evaluation tasks: how data are recognised in a folder, and what a task returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.records import read_records, read_table
from ltg_mdlm.inference.texts import NextWord, Scorer, Text, TextScore

_MAX_DEPTH = 3
"""Levels of folders that are searched for data: evaluation_data / full_eval / blimp_filtered."""


class Skip(Exception):
    """A task cannot be run, and this is not an error."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The result of a model on the data of a task."""

    task: str
    """Name in the official pipeline."""
    data: str
    """Name of the data folder."""
    metric: str
    """Name of the main figure."""
    figures: Mapping[str, float]
    """By name: accuracies and rates in 0..1, correlations in -1..1, `..._percent` in per cent; NaN where undefined."""
    questions: int
    breakdown: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The metric within groups, {"UID": {group: value}}, for every division of the data, in the official order."""
    items: Sequence[Mapping[str, Any]] = ()
    """One JSON object per question, in the order of the files."""
    predictions: Any = None
    """Content of the official predictions file."""
    place: str | None = None
    """Folder of the official predictions below `zero_shot/<backend>`; None for a task that writes its own results."""
    predictions_file: str = "predictions.json"
    other_files: Mapping[str, str] = field(default_factory=dict)
    """Contents of other files that the official pipeline writes beside the predictions, by name."""
    validated: bool = True
    """Whether the figures were checked on the published data; otherwise only on small files of the same format."""

    @property
    def value(self) -> float:
        """The main figure."""
        return self.figures[self.metric]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A kind of evaluation data, and how a model is evaluated on it.

    Attributes:
        name: name in the official pipeline.
        prefixes: prefixes of the names of its data folders.
        fields: fields of its rows, by which data in a folder with any other name are recognised; None if they are not.
    """

    name: str
    prefixes: tuple[str, ...]
    fields: frozenset[str] | None

    @abstractmethod
    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Evaluate a model on a folder or file of data.

        Raises UserError for data that cannot be read, Skip if the task does not apply.
        """


def ask(scorer: Scorer, groups: Sequence[Sequence[Text]]) -> list[list[TextScore]]:
    """Scores of all texts. Raises UserError if a score is NaN, because comparisons with NaN are meaningless."""
    scores = scorer(groups)
    for group, scored in zip(groups, scores, strict=True):
        for text, score in zip(group, scored, strict=True):
            require_number(score.log_likelihood, text.completion)
    return scores


def ask_surprisals(scorer: Scorer, words: Iterable[NextWord]) -> dict[NextWord, float]:
    """Surprisals of all distinct words. Raises UserError if one is NaN."""
    distinct = list(dict.fromkeys(words))
    surprisals = dict(zip(distinct, scorer.surprisals(distinct), strict=True))
    for word, surprisal in surprisals.items():
        require_number(surprisal, word.word)
    return surprisals


def require_number(value: float, text: str) -> None:
    """Raises UserError if the score of a text is NaN."""
    if math.isnan(value):
        raise UserError(f"the likelihood of {text[:80]!r} is not a number; the weights of the model may be broken")


def data_name(path: Path) -> str:
    """The name under which results refer to the data in a folder or file."""
    return path.resolve().name if path.is_dir() else path.stem


def task_of(path: Path, tasks: Sequence[Task]) -> Task | None:
    """The task whose data a folder or file holds: by its name, or else by the fields of its first row."""
    name = data_name(path)
    by_name = [(len(prefix), task) for task in tasks for prefix in task.prefixes if name.startswith(prefix)]
    if by_name:
        return max(by_name, key=lambda found: found[0])[1]
    for file in _row_files(path)[:1]:
        try:
            first = (read_table(file) if file.suffix == ".csv" else read_records(file))[0]
        except UserError:
            return None
        return next((task for task in tasks if task.fields and task.fields <= first.values.keys()), None)
    return None


def find_data(path: Path, tasks: Sequence[Task], depth: int = 0) -> Iterator[tuple[Path, Task | None]]:
    """Folders with data at or below a path, each with its task; None for data of an unknown task.

    Raises UserError if the folder does not exist.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder of evaluation data")
    below = path.glob("[!.]*") if path.is_dir() and depth < _MAX_DEPTH else ()
    inner = sorted(folder for folder in below if folder.is_dir())
    rows = _row_files(path)
    # The root of all data may have a name that begins with the prefix of a task.
    task = task_of(path, tasks) if rows or any(path.glob("*.json")) or not inner else None
    if task is not None or rows:
        yield path, task
    if task is None:
        for folder in inner:
            yield from find_data(folder, tasks, depth + 1)


def _row_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [*sorted(path.glob("*.jsonl")), *sorted(path.glob("*.csv"))]
