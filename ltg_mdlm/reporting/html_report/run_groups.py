"""Runs of the HTML report, and groups of runs that differ only in their seed, whose metrics are averaged.

A run folder in any state can be read; problems are part of its record.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import read_object
from ltg_mdlm.reporting.run_table import RunRow, read_run
from ltg_mdlm.storage.metrics_file import MetricsFile, damage
from ltg_mdlm.storage.run_folder import RunFolder
from ltg_mdlm.training.sweep import SEED, short_names

PLUGINS = "plugins"


WITHOUT_EFFECT = ("logging.", "checkpoint.", "training.threads", "training.micro_batch_rows")
"""Settings without effect on the trained model."""


CORPUS = tuple(
    f"data.{name}"
    for name in ("corpus", "builtin_words", "builtin_zipf_exponent", "train", "valid", "tokenizer", "end_of_document")
)
"""Settings that decide which held-out text is measured, and in which tokens."""


def corpus_of(group: Group) -> tuple[str, ...]:
    """What identifies the held-out text of a group."""
    return tuple(str(group.settings.get(key)) for key in CORPUS)


INIT_FROM = "run.init_from"


_FALLBACK = "uniform_mdlm"


_LONGEST_VALUE = 32


@dataclass(frozen=True)
class Group:
    """Runs with the same recipe."""

    code: str
    """Letters that name the group in charts and tables."""
    name: str
    """The settings that differ from those of other groups."""
    runs: tuple[RunRecord, ...]

    @property
    def label(self) -> str:
        """Code and name, which no line break separates."""
        return f"{self.code}\u00a0{self.name}"

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The settings that all runs of the group share."""
        return recipe(self.runs[0])

    @property
    def measured(self) -> tuple[tuple[RunRecord, ...], bool]:
        """The finished runs if there are any, else all runs; and whether they are finished."""
        finished = tuple(run for run in self.runs if run.finished)
        return finished or self.runs, bool(finished)


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Group the runs, in order of appearance. A run without settings is a separate group."""
    alike: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        settings = recipe(run)
        alike[repr(sorted(settings.items(), key=lambda item: item[0])) if settings else str(run.row.folder)].append(run)
    names = group_names([recipe(members[0]) for members in alike.values()])
    return [
        Group(group_code(i), name or members[0].name, tuple(members))
        for i, (name, members) in enumerate(zip(names, alike.values(), strict=True))
    ]


def group_names(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Short names: the plugins and the corpora if they differ, and as few other settings as tell the groups apart.

    The name of a group without settings is empty.
    """
    chosen: list[str] = []
    parts: dict[tuple[str, ...], list[int]] = {(): [i for i, some in enumerate(recipes) if some]}
    for key in differing(recipes):
        finer: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for values, members in parts.items():
            for i in members:
                finer[values + (repr(recipes[i].get(key)),)].append(i)  # noqa: RUF005
        # A setting that tells no more groups apart repeats the ones before; what is measured on another text says so.
        if len(finer) > len(parts) or key in CORPUS:
            chosen, parts = [*chosen, key], finer
    labels = short_names(chosen)
    return [
        ", ".join(setting_text(key, some[key], labels[key]) for key in chosen if key in some)
        or (shown_plugins(some.get(PLUGINS)) if some else "")
        for some in recipes
    ]


def recipe(run: RunRecord) -> dict[str, Any]:
    """The settings that affect the trained model, without the seed.

    `run.init_from` loses the suffix `-s<seed>`: runs that start from other seeds of one recipe are one group.
    """
    found = {key: value for key, value in run.settings.items() if key != SEED and not key.startswith(WITHOUT_EFFECT)}
    if start := found.get(INIT_FROM):
        found[INIT_FROM] = re.sub(r"-s\d+(?=/|$)", "", str(start))
    return found


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Key paths, except the seed, whose value differs between mappings that have them; the plugins come first."""
    keys = dict.fromkeys([PLUGINS, *(key for some in settings for key in some if key != SEED)])
    return [key for key in keys if len({repr(some[key]) for some in settings if key in some}) > 1]


def group_code(index: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    code = ""
    while index >= 0:
        code, index = string.ascii_uppercase[index % 26] + code, index // 26 - 1
    return code


def setting_text(key: str, value: Any, label: str) -> str:
    """For example `power=0.5`; for plugins, only their names."""
    return shown_plugins(value) if key == PLUGINS else f"{label}={shown(value)}"


def shown_plugins(value: Any) -> str:
    """Names of the selected plugins, without uniform_mdlm if there are others."""
    names = [name for name in str(value or _FALLBACK).split("+") if name]
    return " + ".join([name for name in names if name != _FALLBACK] or [_FALLBACK])


def shown(value: Any) -> str:
    """A value as in YAML, shortened in the middle."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    half = _LONGEST_VALUE // 2
    return text if len(text) <= _LONGEST_VALUE else f"{text[: half - 1]}…{text[-half:]}"


_OF_VERSIONS = "plugin_versions."


@dataclass(frozen=True)
class RunRecord:
    """One run of the report."""

    row: RunRow
    metrics: MetricsFile
    versions: Mapping[str, str]
    """Versions of the program, torch and plugins, and the number of ranks."""
    problems: tuple[str, ...]
    """Problems that affect how far its metrics can be trusted."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.row.folder.resolve().name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings by key path, without the versions of plugins."""
        return {key: value for key, value in self.row.settings.items() if not key.startswith(_OF_VERSIONS)}

    @property
    def words_seen(self) -> int | None:
        """Words seen, as last logged."""
        seen = self.metrics.last.get("words_seen", math.nan)
        return int(seen) if math.isfinite(seen) else None

    @property
    def remarks(self) -> list[str]:
        """The reason of its status, and its problems."""
        return [*([self.row.reason] if self.row.reason else []), *self.problems]

    @property
    def finished(self) -> bool:
        """Whether training has finished."""
        return self.row.status == "finished"


def read_record(path: Path) -> RunRecord:
    """Read a run folder. Damaged files do not raise."""
    row, metrics = read_run(path), MetricsFile(RunFolder(path).metrics_file).refresh()
    problems = []
    if not metrics.names:
        problems.append("no metrics were logged")
    if metrics.unreadable:
        problems.append(damage(metrics.unreadable))
    if metrics.refused:
        problems.append(f"{metrics.refused} updates were refused because they were not finite")
    if (diverged_at := first_not_finite(metrics)) is not None:
        problems.append(f"the objective was not finite at step {diverged_at}")
    return RunRecord(row=row, metrics=metrics, versions=_versions(row, path), problems=tuple(problems))


def said(error: Exception) -> str:
    """The first line of an error message."""
    text = str(error).partition("\n")[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def first_not_finite(metrics: MetricsFile) -> int | None:
    """The first logged step whose objective is not finite."""
    curve = metrics.curves.get("loss")
    return curve.first_not_finite if curve is not None else None


def _versions(row: RunRow, path: Path) -> dict[str, str]:
    """Versions in the newest checkpoint, and versions of plugins in the settings."""
    of_plugins = {
        key.removeprefix(_OF_VERSIONS): str(value)
        for key, value in row.settings.items()
        if key.startswith(_OF_VERSIONS)
    }
    states = sorted(RunFolder(path).checkpoints.glob("step_*/state.json"))
    return of_plugins | (_versions_of_checkpoint(states[-1]) if states else {})


def _versions_of_checkpoint(state: Path) -> dict[str, str]:
    """Versions in a checkpoint; empty if it cannot be read."""
    try:
        about = read_object(state, finite=False)
        return {str(key): str(value) for key, value in about["versions"].items()} | {"ranks": str(about["world_size"])}
    except (UserError, KeyError, AttributeError):
        return {}
