"""A task: data that are recognised in a folder, questions to a model, and the figures that come out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.records import read_records, read_table
from ltg_mdlm.inference.texts import NextWord, Scorer, Text, TextScore

_DEEPEST = 3
"""Folders below the given one in which data are looked for: evaluation_data / full_eval / blimp_filtered."""


class Skip(Exception):
    """A task cannot be done, for a reason that is nobody's mistake."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What a model achieved on a task's data."""

    task: str
    """As the official pipeline calls it."""
    data: str
    """Name of the data's folder."""
    metric: str
    """Which of the figures counts most."""
    figures: Mapping[str, float]
    """By name: accuracies and rates in 0..1, correlations in -1..1, `..._percent` in per cent; NaN where undefined."""
    questions: int
    breakdown: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The metric within groups: {"UID": {group: value}}, and whatever else divides the data, in the official order."""
    items: Sequence[Mapping[str, Any]] = ()
    """One JSON object per question, in the order of the files."""
    predictions: Any = None
    """Content of the official predictions file."""
    place: str | None = None
    """Folder of the official predictions below `zero_shot/<backend>`; None for a task that writes its own results."""
    predictions_file: str = "predictions.json"
    validated: bool = True
    """Whether the figures were checked on the published data; if not, on small files of the same format only."""

    @property
    def value(self) -> float:
        """The figure that counts most."""
        return self.figures[self.metric]


class Task(ABC):
    """A kind of data, and how a model is measured on it."""

    name: ClassVar[str]
    """As the official pipeline calls it."""
    prefixes: ClassVar[tuple[str, ...]]
    """How names of its data folders begin."""
    fields: ClassVar[frozenset[str]]
    """Fields of its rows, by which data in a folder of another name are recognised."""

    @abstractmethod
    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Measure a model on a folder or file of data.

        Raises UserError for data that cannot be read, Skip for what is not to be done.
        """


def ask(scorer: Scorer, groups: Sequence[Sequence[Text]]) -> list[list[TextScore]]:
    """Scores of all texts.  Raises UserError if one is not a number, of which comparisons would make anything."""
    scores = scorer(groups)
    for group, scored in zip(groups, scores, strict=True):
        for text, score in zip(group, scored, strict=True):
            _require_number(score.log_likelihood, text.completion)
    return scores


def ask_surprisals(scorer: Scorer, words: Iterable[NextWord]) -> dict[NextWord, float]:
    """Surprisals of all words, each asked for once.  Raises UserError if one is not a number."""
    distinct = list(dict.fromkeys(words))
    surprisals = dict(zip(distinct, scorer.surprisals(distinct), strict=True))
    for word, surprisal in surprisals.items():
        _require_number(surprisal, word.word)
    return surprisals


def _require_number(value: float, text: str) -> None:
    if math.isnan(value):
        raise UserError(f"the model gives {text[:80]!r} no likelihood: it is not a number (broken weights?)")


def data_name(path: Path) -> str:
    """What results call the data in a folder or file."""
    return path.resolve().name if path.is_dir() else path.stem


def task_of(path: Path, tasks: Sequence[Task]) -> Task | None:
    """The task that a folder or file is data of: by its name, or by the fields of its first row."""
    name = data_name(path)
    by_name = [(len(prefix), task) for task in tasks for prefix in task.prefixes if name.startswith(prefix)]
    if by_name:
        return max(by_name, key=lambda found: found[0])[1]
    fields = _first_fields(path)
    return next((task for task in tasks if task.fields and task.fields <= fields), None)


def find_data(path: Path, tasks: Sequence[Task], depth: int = 0) -> Iterator[tuple[Path, Task | None]]:
    """Folders with data at or below a path, each with its task; None for data of no task.

    Raises UserError if there is no such folder.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder of evaluation data")
    inner = sorted(path.glob("[!.]*/")) if path.is_dir() and depth < _DEEPEST else []
    rows = _row_files(path)
    # The root of all data may have a name that begins like that of a task.
    task = task_of(path, tasks) if rows or any(path.glob("*.json")) or not inner else None
    if task is not None or rows:
        yield path, task
    if task is None:
        for folder in inner:
            yield from find_data(folder, tasks, depth + 1)


def _row_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [*sorted(path.glob("*.jsonl")), *sorted(path.glob("*.csv"))]


def _first_fields(path: Path) -> frozenset[str]:
    """Empty if there is no readable row."""
    for file in _row_files(path)[:1]:
        try:
            records = read_table(file) if file.suffix == ".csv" else read_records(file)
        except UserError:
            return frozenset()
        return frozenset(records[0].values)
    return frozenset()
