"""Results of right-or-wrong tasks, read back from the folders that evaluation writes.

Which results belong to which model, and which models are seeds of the same recipe.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import TEMPORARY
from ltg_mdlm.data.records import Record, parse_object, read_records, read_text

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


Member = Mapping[TaskName, Answers]
"""The results of one model."""


_SEED = re.compile(r"-s\d+$")


@dataclass(frozen=True)
class Group:
    """Models that are averaged: seeds of the same recipe, or a single model."""

    name: str
    members: Sequence[Member]

    @property
    def tasks(self) -> list[TaskName]:
        """Those that all its models have results of."""
        first, *others = self.members
        return [task for task in first if all(task in other for other in others)]

    @property
    def models(self) -> list[str]:
        """The names of its models."""
        return [_any_of(member).model for member in self.members]


def collect_groups(paths: Iterable[Path], named: Iterable[str]) -> tuple[list[Group], list[Path]]:
    """Groups of the results below some paths, then those called `NAME=PATH,PATH`.

    A group's name also tells how it was scored, if not all were scored in the same way.  Also returns the folders of
    results that have no right answers.

    Raises UserError if nothing can be compared, or the same results are there twice.
    """
    found = [find_results(path) for path in paths]
    groups = group_by_recipe(answers for results in found for answers in results.answers)
    for option in named:
        name, members = _parse(option)
        own = [find_results(path) for path in members]
        groups.append(group_of(name, zip(members, own, strict=True)))
        found += own
    if not groups:
        raise UserError("no results to compare: give folders with items.jsonl of right-or-wrong tasks")
    groups = [Group(group.name + _telling(group, groups), group.members) for group in groups]
    require_distinct(groups)
    return groups, [folder for results in found for folder in results.others]


def _parse(option: str) -> tuple[str, list[Path]]:
    name, _, paths = option.partition("=")
    if not name or not all(paths.split(",")):
        raise UserError(f"--group {option}: expected NAME=PATH or NAME=PATH,PATH")
    return name, [Path(path) for path in paths.split(",")]


def group_by_recipe(results: Iterable[Answers]) -> list[Group]:
    """Models in order of appearance; those whose names are equal up to `-s<seed>` are one group.

    They must be of the same revision and scored in the same way, or they are groups of their own; fine-tuned results
    are not scored, and belong to the first group of their recipe.  Raises UserError if a model has two results of one
    task that were scored in the same way.
    """
    recipes: dict[str, list[Answers]] = defaultdict(list)
    for answers in results:
        recipes[_recipe(answers)].append(answers)
    return [
        Group(recipe, _members((answers.model, answers) for answers in alike))
        for recipe, some in recipes.items()
        for alike in _scored_alike(some)
    ]


def _scored_alike(results: Sequence[Answers]) -> Iterable[list[Answers]]:
    variants: dict[str, list[Answers]] = defaultdict(list)
    for answers in sorted(results, key=lambda answers: not answers.is_scored):
        scoring = json.dumps(answers.settings, sort_keys=True)
        variants[scoring if answers.is_scored else next(iter(variants), scoring)].append(answers)
    return variants.values()


def group_of(name: str, results: Iterable[tuple[Path, Results]]) -> Group:
    """All models below some paths as one group; equal names below different paths are different models.

    Raises UserError if there are none, they were not all scored in the same way, or a model has two results of a task.
    """
    keyed = [((path, one.model, one.revision), one) for path, some in results for one in some.answers]
    if not keyed:
        raise UserError(f"group {name}: no results of right-or-wrong tasks")
    of_task: dict[TaskName, Answers] = {}
    for _, answers in keyed:
        first = of_task.setdefault(answers.name, answers)
        if first.settings != answers.settings:
            raise UserError(
                f"group {name}: its models were not scored in the same way\n"
                f"  {first.folder}: {_shown(first.settings)}\n  {answers.folder}: {_shown(answers.settings)}"
            )
    return Group(name, _members(keyed))


def require_distinct(groups: Sequence[Group]) -> None:
    """Raises UserError if two groups have one name, or a folder of results is in the comparison twice."""
    name, times = Counter(group.name for group in groups).most_common(1)[0]
    if times > 1:
        raise UserError(f"two groups are called {name}; choose names with --group NAME=PATH,PATH")
    members = (member for group in groups for member in group.members)
    folders = Counter(answers.folder.resolve() for member in members for answers in member.values())
    folder, times = folders.most_common(1)[0]
    if times > 1:
        raise UserError(f"{folder}: given twice; leave one out")


def _members(keyed: Iterable[tuple[Hashable, Answers]]) -> list[Member]:
    """The results that have one key are those of one model."""
    members: dict[Hashable, dict[TaskName, Answers]] = defaultdict(dict)
    for key, answers in keyed:
        other = members[key].setdefault(answers.name, answers)
        if other.folder.resolve() == answers.folder.resolve() and other is not answers:
            raise UserError(f"{answers.folder}: given twice; leave one out")
        if other is not answers:
            raise UserError(
                f"two results of {answers.model} on {answers.name}, scored in the same way:\n"
                f"  {other.folder}\n  {answers.folder}\n  leave one out, or tell them apart with --group NAME=PATH"
            )
    return list(members.values())


def _any_of(member: Member) -> Answers:
    return next(iter(member.values()))


def _recipe(answers: Answers) -> str:
    """The model's name without its seed, and its revision if that is not the last state."""
    name = _SEED.sub("", answers.model)
    return name if answers.revision == "main" else f"{name}@{answers.revision}"


def _telling(group: Group, groups: Iterable[Group]) -> str:
    """How its models were scored, as far as that tells it apart from any other group."""
    others = [_group_settings(other) for other in groups]
    telling = {key: value for key, value in _group_settings(group).items() if any(o.get(key) != value for o in others)}
    return f" ({_shown(telling)})" if telling else ""


def _group_settings(group: Group) -> dict[str, object]:
    return {key: value for answers in group.members[0].values() for key, value in answers.settings.items()}


def _shown(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())
