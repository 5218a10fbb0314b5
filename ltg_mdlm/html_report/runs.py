"""What a run folder holds for the page; a folder in any state gives a record, and says what is wrong with it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltg_mdlm.errors import UserError
from ltg_mdlm.metrics_file import MetricsFile
from ltg_mdlm.report import RunRow, read_run
from ltg_mdlm.run_folder import RunFolder

_OF_VERSIONS = "plugin_versions."


@dataclass(frozen=True)
class RunRecord:
    """One run of the page."""

    row: RunRow
    metrics: MetricsFile
    versions: Mapping[str, str]
    """Of the program, torch and every plugin; and on how many ranks it ran."""
    problems: tuple[str, ...]
    """What a reader should know before they trust its figures."""

    @property
    def name(self) -> str:
        """The folder's."""
        return self.row.folder.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """By key path, without the versions, which the trainer wrote beside them."""
        return {key: value for key, value in self.row.settings.items() if not key.startswith(_OF_VERSIONS)}

    @property
    def words_seen(self) -> int | None:
        """As last logged."""
        seen = self.metrics.last.get("words_seen", math.nan)
        return int(seen) if math.isfinite(seen) else None

    @property
    def remarks(self) -> list[str]:
        """Why it ended as it did, and its problems."""
        return [*([self.row.reason] if self.row.reason else []), *self.problems]

    @property
    def finished(self) -> bool:
        """Whether its figures are those of the end of training."""
        return self.row.status == "finished"


def read_record(path: Path) -> RunRecord:
    """Read a run folder; never raises for what it holds."""
    row, metrics = read_run(path), MetricsFile(RunFolder(path).metrics_file).refresh()
    problems = []
    if not metrics.curves:
        problems.append("no metrics were logged")
    if metrics.unreadable:
        problems.append(f"{metrics.unreadable} lines of metrics.jsonl are damaged and left out")
    if metrics.refused:
        problems.append(f"{metrics.refused} updates were refused because they were not finite")
    if (diverged_at := first_not_finite(metrics)) is not None:
        problems.append(f"the objective was not finite at step {diverged_at}")
    return RunRecord(row=row, metrics=metrics, versions=_versions(row, path), problems=tuple(problems))


def said(error: Exception) -> str:
    """The first line of an error, as the page shows it."""
    text = str(error).partition("\n")[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def first_not_finite(metrics: MetricsFile) -> int | None:
    """The first logged step whose objective is not a number."""
    curve = metrics.curves.get("loss")
    if curve is None:
        return None
    return next((step for step, value in zip(curve.steps, curve.values, strict=True) if not math.isfinite(value)), None)


def _versions(row: RunRow, path: Path) -> dict[str, str]:
    """Of the newest checkpoint, and of the settings, which name plugins only."""
    of_plugins = {
        key.removeprefix(_OF_VERSIONS): str(value)
        for key, value in row.settings.items()
        if key.startswith(_OF_VERSIONS)
    }
    states = sorted(RunFolder(path).checkpoints.glob("step_*/state.json"))
    return of_plugins | (_versions_of_checkpoint(states[-1]) if states else {})


def _versions_of_checkpoint(state: Path) -> dict[str, str]:
    """Empty if it cannot be read: the run's figures do not depend on it."""
    try:
        about = json.loads(state.read_text(encoding="utf-8"))
        return {**about["versions"], "ranks": str(about["world_size"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
