"""`ltg-mdlm report`: many runs in one table, read from their files alone, whatever state they are in."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_errors, written_file
from ltg_mdlm.core.settings import flatten, parse_yaml
from ltg_mdlm.storage.metrics_file import read_rows
from ltg_mdlm.storage.run_folder import SILENT_SECONDS, Lock, RunFolder
from ltg_mdlm.training.sweep import short_names

Cell = str | int | float | bool | None


SHOWN = ("validated", "bound", "bound_standard_error", "causal_nll", "accuracy", "minimal_pairs")
"""Figures for reading; CSV and JSON have all of them."""


UNREADABLE = "unreadable"
"""The status of a run whose settings cannot be read."""


_NOT_COMPARED = ("run.", "name", "provenance.")
"""What differs between any two runs, and what follows from their plugins and the versions of these."""


_PLUGINS = "plugins"


@dataclass(frozen=True)
class RunRow:
    """What a run's files say."""

    folder: Path
    status: str
    step: int | None
    reason: str
    settings: Mapping[str, Any]
    """by key path"""
    figures: Mapping[str, float | None]
    """of the last validation, without `valid/`; `validated` is its step"""


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Run folders among `paths` and directly in them, in the order given.  Raises UserError for anything else."""
    found: dict[Path, None] = {}
    for path in paths:
        folders = [path] if _is_run(path) else sorted(inner for inner in path.glob("*/") if _is_run(inner))
        if not folders:
            raise UserError(f"{path}: neither a run folder (no config.yaml) nor a folder that holds some")
        found |= dict.fromkeys(folders)
    return list(found)


def _is_run(path: Path) -> bool:
    """A run writes its settings first; one that ended before that has left its lock alone."""
    return (path / "config.yaml").is_file() or (path / Lock.FILE).is_file()


def read_run(path: Path) -> RunRow:
    """Read a run folder; nothing in it is waited for or changed.  Settings that cannot be read become its reason."""
    folder = RunFolder(path)
    status = folder.read_status()
    state, reason = run_status(folder), status.reason if status is not None else ""
    settings: Mapping[str, Any] = {}
    try:
        settings = _read_settings(folder)
    except UserError as error:
        state, reason = UNREADABLE, str(error)
    return RunRow(
        folder=path,
        status=state,
        step=status.step if status is not None else None,
        reason=reason,
        settings=_compared(settings) if settings else {},
        figures=_last_figures(folder.metrics_file),
    )


def _read_settings(folder: RunFolder) -> Mapping[str, Any]:
    try:
        settings = parse_yaml(folder.read_config() or "{}")
    except (yaml.YAMLError, UnicodeError) as error:
        raise UserError(f"{folder.config_file} is not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UserError(f"{folder.config_file} cannot be read: {error.strerror}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{folder.config_file} must hold settings, not {type(settings).__name__}")
    return settings


def run_status(folder: RunFolder) -> str:
    """As in status.json; a run that was killed could not write that it no longer runs."""
    status = folder.read_status()
    if status is None:
        return "not started"
    return "interrupted" if status.status == "running" and not shows_life(folder) else status.status


def shows_life(folder: RunFolder) -> bool:
    """Whether a process holds the lock and has touched it lately."""
    try:
        facts = (folder.path / Lock.FILE).stat()
    except OSError:
        return False
    return facts.st_size > 0 and time.time() - facts.st_mtime < SILENT_SECONDS


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by key path; under `plugins`, which ones were selected."""
    flat = {key: value for key, value in flatten(settings).items() if not key.startswith(_NOT_COMPARED)}
    return flat | {_PLUGINS: "+".join(settings.get(_PLUGINS) or {})}


def _last_figures(metrics: Path) -> dict[str, float | None]:
    """Of the last validation."""
    validations = list(read_rows(metrics, b'"valid/loss"'))
    if not validations:
        return {}
    last = validations[-1]
    figures = {key.removeprefix("valid/"): value for key, value in last.items() if key.startswith("valid/")}
    return {"validated": last["step"], **figures}


def differing_settings(rows: Sequence[RunRow]) -> list[str]:
    """Key paths that do not have one value in all the runs that know them."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    return [key for key in keys if len({repr(row.settings[key]) for row in rows if key in row.settings}) > 1]


def report_table(rows: Sequence[RunRow], figures: Sequence[str] | None = None) -> list[dict[str, Cell]]:
    """One record per run, all with the same keys: what differs between the runs, how far they are, held-out figures.

    `figures` chooses some of the figures; by default they are all there.
    """
    known = dict.fromkeys(name for row in rows for name in row.figures)
    chosen = list(known) if figures is None else [name for name in figures if name in known]
    headings = _headings(differing_settings(rows), {"run", "status", "step", "reason", *chosen})
    return [
        {
            "run": str(row.folder),
            **{heading: _cell(row.settings.get(key)) for key, heading in headings.items()},
            "status": row.status,
            "step": row.step,
            **{name: row.figures.get(name) for name in chosen},
            "reason": row.reason,
        }
        for row in rows
    ]


def _headings(keys: Sequence[str], taken: Iterable[str]) -> dict[str, str]:
    """Short names of settings, but for those that another column has."""
    return {key: key if name in taken else name for key, name in short_names(keys).items()}


def _cell(value: Any) -> Cell:
    """Lists and sections as text."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def text_table(rows: Sequence[RunRow]) -> Table:
    """The figures that matter most, for reading."""
    records = report_table(rows, SHOWN)
    columns = [name for name in records[0] if any(record[name] not in (None, "") for record in records)]
    table = Table(*columns, box=None, pad_edge=False)
    for record in records:
        table.add_row(*(escape(_text(name, record[name])) for name in columns))
    return table


def _text(column: str, value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if column in SHOWN and isinstance(value, float) else str(value)


def write_csv(table: Sequence[Mapping[str, Cell]], path: Path) -> None:
    """Write the records, complete or not at all.  Raises UserError if the file cannot be written."""
    with write_errors(path), written_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
