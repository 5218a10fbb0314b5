"""Results read back from result folders: answers to questions, grouped into models and seeds of a model."""

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
from ltg_mdlm.core.json_files import read_object
from ltg_mdlm.data.records import Record, read_records
from ltg_mdlm.evaluation.multiple_choice import CHOICE_TASKS, Protocol, same_questions

SETTINGS = ("weights", "score", "time", "rate", "normalise", "draws")
"""Keys of `summary.json` that say how a model was scored."""

_ITEMS = "items.jsonl"
_SUMMARY = "summary.json"
_SEED = re.compile(r"-s\d+$")


class TaskName(NamedTuple):
    """A task and its data."""

    task: str
    data: str

    def __str__(self) -> str:
        return f"{self.task}/{self.data}"


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of a model to the questions of a task. Shape suffix I: questions."""

    folder: Path
    model: str
    revision: str
    name: TaskName
    protocol: Protocol
    settings: Mapping[str, Any]
    ids: Sequence[str]
    uids: Sequence[str]
    correct_I: NDArray[np.float64]
    """1 for a right answer, 0 for a wrong one; in between for a tie."""

    @property
    def is_scored(self) -> bool:
        """Whether texts were scored; False after fine-tuning."""
        return "score" in self.settings

    def in_order_of(self, other: Answers) -> NDArray[np.float64]:
        """float64[I]: `correct_I` in the order of `other`. Raises UserError if the questions differ."""
        if not same_questions(self.name.task, self.protocol, other.protocol):
            raise UserError(
                f"{self.name}: the protocols {self.protocol} and {other.protocol} ask different questions\n"
                f"  {self.folder}\n  {other.folder}\n  evaluate both models with the same --protocol"
            )
        if self.ids == other.ids and self.uids == other.uids:
            return self.correct_I
        own, theirs = (dict(zip(answers.ids, answers.uids, strict=True)) for answers in (self, other))
        differing = [f"{id_} ({uid})" for id_, uid in sorted(own.items() ^ theirs.items())]
        if differing:
            raise UserError(
                f"{self.name}: not the same questions in {self.folder / _ITEMS} and {other.folder / _ITEMS}\n"
                f"  only in one of them, or with another uid: {', '.join(differing[:3])}"
                f"{f' and {len(differing) - 3} more' if len(differing) > 3 else ''}\n"
                "  evaluate both models on the same data"
            )
        index = {id_: i for i, id_ in enumerate(self.ids)}
        return self.correct_I[[index[id_] for id_ in other.ids]]


class FoundResults(NamedTuple):
    """The results in some folders."""

    answers: list[Answers]
    others: list[Path]
    """Folders of tasks whose questions have no right answer."""


def find_results(path: Path) -> FoundResults:
    """All results in and below a folder. Raises UserError if there are none, or a file cannot be read."""
    folders = sorted(
        file.parent
        for file in path.rglob(_ITEMS)
        if not any(part.startswith(TEMPORARY) for part in file.relative_to(path).parts)
    )
    if not folders:
        raise UserError(f"{path}: no results (no {_ITEMS}) in this folder or below")
    found = FoundResults([], [])
    for folder in folders:
        answers = _read_answers(folder)
        if answers is None:
            found.others.append(folder)
        else:
            found.answers.append(answers)
    return found


def _read_answers(folder: Path) -> Answers | None:
    """None if the questions have no right answer."""
    summary = Record(read_object(folder / _SUMMARY), folder / _SUMMARY, 1)
    if summary.text("metric") not in ("accuracy", "f1"):
        return None
    protocol = summary.values.get("protocol", "2025")  # older results do not name it
    if protocol not in CHOICE_TASKS:
        raise summary.error("protocol", " or ".join(CHOICE_TASKS))
    settings = {key: summary.values[key] for key in SETTINGS if summary.values.get(key) is not None}
    for key, value in settings.items():
        if not isinstance(value, str | int | float):
            raise summary.error(key, "text or a number")
    if settings.get("score") == "mntp":
        settings["score"] = "pll"  # the pseudo-log-likelihood of a model that predicts one position earlier
    if settings.get("time") != "constant":
        settings.pop("rate", None)  # has no effect
    records = read_records(folder / _ITEMS)
    ids = [record.text("id") for record in records]
    id_, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise UserError(f"{folder / _ITEMS}: {times} questions have the id {id_}")
    uids = [record.text("uid") for record in records]
    correct = [record.number("correct") for record in records]
    for record, value in zip(records, correct, strict=True):
        if not 0 <= value <= 1:
            raise record.error("correct", "a number from 0 to 1")
    return Answers(
        folder=folder,
        model=summary.text("model"),
        revision=summary.text("revision"),
        name=TaskName(summary.text("task"), Path(summary.text("data")).name),
        protocol=protocol,
        settings=settings,
        ids=ids,
        uids=uids,
        correct_I=np.array(correct),
    )


ModelResults = Mapping[TaskName, Answers]
"""The results of one model."""


@dataclass(frozen=True)
class ModelGroup:
    """Models whose results are averaged: seeds of one recipe, or a single model."""

    name: str
    members: Sequence[ModelResults]

    @property
    def tasks(self) -> list[TaskName]:
        """The tasks for which all its models have results."""
        first, *others = self.members
        return [task for task in first if all(task in other for other in others)]

    @property
    def models(self) -> list[str]:
        """Names of its models."""
        return [next(iter(member.values())).model for member in self.members]

    @property
    def settings(self) -> dict[str, Any]:
        """How its models were scored."""
        return {key: value for answers in self.members[0].values() for key, value in answers.settings.items()}


def collect_groups(paths: Iterable[Path], named: Iterable[str]) -> tuple[list[ModelGroup], list[Path]]:
    """Groups of the results below some paths, followed by the groups given as `NAME=PATH,PATH`.

    If the groups were not all scored in the same way, their names say how. Also returns the result folders of tasks
    without right answers.

    Raises UserError if nothing can be compared, or results are given twice.
    """
    found = [find_results(path) for path in paths]
    groups = group_by_recipe(answers for results in found for answers in results.answers)
    for option in named:
        name, _, members = option.partition("=")
        if not name or not all(members.split(",")):
            raise UserError(f"--group {option}: expected NAME=PATH or NAME=PATH,PATH")
        given = [(path, find_results(path)) for path in map(Path, members.split(","))]
        groups.append(group_of(name, given))
        found += [results for _, results in given]
    if not groups:
        raise UserError("no results to compare: give folders with items.jsonl of right-or-wrong tasks")
    groups = [ModelGroup(group.name + _distinguishing_settings(group, groups), group.members) for group in groups]
    require_distinct(groups)
    return groups, [folder for results in found for folder in results.others]


def baseline_first(groups: Sequence[ModelGroup], name: str) -> list[ModelGroup]:
    """The groups with the one of this name in front; a group is also found by the name of one of its models.

    Raises UserError if there is none, or several.
    """
    found = [group for group in groups if group.name == name]
    found = found or [group for group in groups if name in (group.name.split(" (")[0], *group.models)]
    if len(found) != 1:
        problem = "several groups have this name" if found else "no such group"
        raise UserError(f"--baseline {name}: {problem}\n  groups: {', '.join(group.name for group in groups)}")
    return [*found, *(group for group in groups if group is not found[0])]


def group_by_recipe(results: Iterable[Answers]) -> list[ModelGroup]:
    """Group the models whose names are equal up to `-s<seed>`, in order of appearance.

    Models of different revisions, or scored in different ways, form different groups. Results of fine-tuning have no
    score; they belong to the first group of their recipe.

    Raises UserError if a model has two results of one task with the same scoring.
    """
    recipes: dict[str, list[Answers]] = defaultdict(list)
    for answers in results:
        recipe = _SEED.sub("", answers.model)
        recipes[recipe if answers.revision == "main" else f"{recipe}@{answers.revision}"].append(answers)
    groups = []
    for recipe, same_recipe in recipes.items():
        by_scoring: dict[str, list[Answers]] = defaultdict(list)
        for answers in sorted(same_recipe, key=lambda answers: not answers.is_scored):
            scoring = json.dumps(answers.settings, sort_keys=True)
            by_scoring[scoring if answers.is_scored else next(iter(by_scoring), scoring)].append(answers)
        for alike in by_scoring.values():
            groups.append(ModelGroup(recipe, _members((answers.model, answers) for answers in alike)))
    return groups


def group_of(name: str, given: Iterable[tuple[Path, FoundResults]]) -> ModelGroup:
    """One group of all models below some paths; equal names below different paths are different models.

    Raises UserError if there are none, their scoring differs, or a model has two results of one task.
    """
    keyed = [((path, one.model, one.revision), one) for path, results in given for one in results.answers]
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
    return ModelGroup(name, _members(keyed))


def require_distinct(groups: Sequence[ModelGroup]) -> None:
    """Raises UserError if two groups have the same name, or a result folder appears twice."""
    name, times = Counter(group.name for group in groups).most_common(1)[0]
    if times > 1:
        raise UserError(f"two groups are called {name}; choose names with --group NAME=PATH,PATH")
    members = (member for group in groups for member in group.members)
    folders = Counter(answers.folder.resolve() for member in members for answers in member.values())
    folder, times = folders.most_common(1)[0]
    if times > 1:
        raise UserError(f"{folder}: given twice; leave one out")


def _members(keyed: Iterable[tuple[Hashable, Answers]]) -> list[ModelResults]:
    """One member per key."""
    members: dict[Hashable, dict[TaskName, Answers]] = defaultdict(dict)
    for key, answers in keyed:
        other = members[key].setdefault(answers.name, answers)
        if other is answers:
            continue
        if other.folder.resolve() == answers.folder.resolve():
            raise UserError(f"{answers.folder}: given twice; leave one out")
        raise UserError(
            f"two results of {answers.model} on {answers.name}, scored in the same way:\n"
            f"  {other.folder}\n  {answers.folder}\n  leave one out, or put each in a group with --group NAME=PATH"
        )
    return list(members.values())


def _distinguishing_settings(group: ModelGroup, groups: Iterable[ModelGroup]) -> str:
    """The settings of scoring in which a group differs from any other group, in parentheses."""
    others = [other.settings for other in groups]
    differing = {k: value for k, value in group.settings.items() if any(other.get(k) != value for other in others)}
    return f" ({_shown(differing)})" if differing else ""


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())
