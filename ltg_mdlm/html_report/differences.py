"""What differs between the runs, and what does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ltg_mdlm.html_report.groups import PLUGINS, Group, differing, shown, shown_plugins
from ltg_mdlm.html_report.runs import RunRecord
from ltg_mdlm.html_report.tables import Cell, Table, grid

_NONE = "–"


class Fact(NamedTuple):
    """What holds for all runs, as far as they have it."""

    name: str
    value: str


def differing_settings(groups: Sequence[Group]) -> list[Table]:
    """The settings in which runs differ, but for the seed; a group that lacks one has a dash."""
    keys = differing([run.settings for run in _runs(groups)])
    return grid(groups, [(key, [Cell(_settings(group, key)) for group in groups]) for key in keys], "setting")


def equal_settings(groups: Sequence[Group]) -> list[Fact]:
    """All other settings; an option of a plugin that only some runs select has the value that it has there."""
    known: dict[str, Any] = {}
    for run in _runs(groups):
        known |= run.settings
    changing = {*differing([run.settings for run in _runs(groups)]), "seed"}
    return [Fact(key, _shown(key, value)) for key, value in known.items() if key not in changing]


def differing_versions(groups: Sequence[Group]) -> list[Table]:
    """Versions of what took part, where runs do not agree; several in a place where a group's runs do not."""
    keys = differing([run.versions for run in _runs(groups)])
    return grid(groups, [(key, [Cell(_versions(group, key)) for group in groups]) for key in keys], "version of")


def equal_versions(groups: Sequence[Group]) -> list[Fact]:
    """Those on which all runs agree that know them."""
    changing = differing([run.versions for run in _runs(groups)])
    known = {key: value for run in _runs(groups) for key, value in run.versions.items()}
    return [Fact(key, value) for key, value in known.items() if key not in changing]


def _runs(groups: Sequence[Group]) -> list[RunRecord]:
    return [run for group in groups for run in group.runs]


def _settings(group: Group, key: str) -> str:
    values = dict.fromkeys(_shown(key, run.settings[key]) for run in group.runs if key in run.settings)
    return ", ".join(values) or _NONE


def _shown(key: str, value: Any) -> str:
    return shown_plugins(value) if key == PLUGINS else shown(value)


def _versions(group: Group, key: str) -> str:
    return ", ".join(sorted({run.versions[key] for run in group.runs if key in run.versions})) or _NONE
