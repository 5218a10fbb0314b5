"""Results of right-or-wrong tasks, read back from the folders that evaluation writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.durable import TEMPORARY
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.records import Record, parse_object, read_records, read_text

SETTINGS = ("weights", "score", "time", "rate", "normalise", "draws")
"""What of `summary.json` says how a model was scored."""

_ITEMS = "items.jsonl"
_SUMMARY = "summary.json"


class TaskName(NamedTuple):
    """Which questions were asked."""

    task: str
    data: str

    def __str__(self) -> str:
        return f"{self.task}/{self.data}"


@dataclass(frozen=True, eq=False)
class Answers:
    """How right a model is on each question of a task.  Suffix I: questions."""

    folder: Path
    model: str
    revision: str
    name: TaskName
    settings: Mapping[str, Any]
    ids: Sequence[str]
    uids: Sequence[str]
    correct_I: NDArray[np.float64]
    """1 right, 0 wrong, between them for a tie"""

    @property
    def is_scored(self) -> bool:
        """Whether texts were scored, as they are not after fine-tuning."""
        return "score" in self.settings

    def in_order_of(self, other: Answers) -> NDArray[np.float64]:
        """float64[I]: `correct_I` in the other's order.  Raises UserError if these are not the same questions."""
        if self.ids == other.ids and self.uids == other.uids:
            return self.correct_I
        own, theirs = (dict(zip(answers.ids, answers.uids, strict=True)) for answers in (self, other))
        differing = [f"{id_} ({uid})" for id_, uid in sorted(own.items() ^ theirs.items())]
        if differing:
            raise UserError(
                f"{self.name}: not the same questions in {self.folder / _ITEMS} and {other.folder / _ITEMS}\n"
                f"  only in one of them, or of another uid: {', '.join(differing[:3])}"
                f"{f' and {len(differing) - 3} more' if len(differing) > 3 else ''}\n"
                "  evaluate both models on the same data"
            )
        place = {id_: i for i, id_ in enumerate(self.ids)}
        return self.correct_I[[place[id_] for id_ in other.ids]]


class Results(NamedTuple):
    """What stands in folders of results."""

    answers: list[Answers]
    others: list[Path]
    """Results of tasks whose questions have no right answer."""


def find_results(path: Path) -> Results:
    """Results in a folder and below.  Raises UserError if there are none, or for files that cannot be read."""
    folders = sorted(file.parent for file in path.rglob(_ITEMS) if not _is_unfinished(file.relative_to(path)))
    if not folders:
        raise UserError(f"{path}: no results (no {_ITEMS}) in this folder or below")
    found = {folder: _read_answers(folder) for folder in folders}
    return Results(
        [answers for answers in found.values() if answers is not None],
        [folder for folder, answers in found.items() if answers is None],
    )


def _is_unfinished(path: Path) -> bool:
    return any(part.startswith(TEMPORARY) for part in path.parts)


def _read_answers(folder: Path) -> Answers | None:
    """None if the questions have no right answer."""
    summary = Record(parse_object(read_text(folder / _SUMMARY), folder / _SUMMARY), folder / _SUMMARY, 1)
    if summary.text("metric") != "accuracy":
        return None
    records = read_records(folder / _ITEMS)
    ids = [record.text("id") for record in records]
    id_, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise UserError(f"{folder / _ITEMS}: {times} questions have the id {id_}")
    return Answers(
        folder=folder,
        model=summary.text("model"),
        revision=summary.text("revision"),
        name=TaskName(summary.text("task"), Path(summary.text("data")).name),
        settings=_settings(summary.values),
        ids=ids,
        uids=[record.text("uid") for record in records],
        correct_I=np.array([_correct(record) for record in records]),
    )


def _settings(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given and mattered."""
    known = {key: summary[key] for key in SETTINGS if summary.get(key) is not None}
    if known.get("time") != "constant":
        known.pop("rate", None)
    return known


def _correct(record: Record) -> float:
    correct = record.number("correct")
    if not 0 <= correct <= 1:
        raise record.error("correct", "a number from 0 to 1")
    return correct
