"""`ltg-mdlm report`: a table of runs in any state, read from their files."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_errors, written_file
from ltg_mdlm.core.settings import flatten, parse_yaml
from ltg_mdlm.storage.metrics_file import damage, read_validations
from ltg_mdlm.storage.run_folder import SILENT_SECONDS, Lock, RunFolder
from ltg_mdlm.training.sweep import short_names

Cell = str | int | float | bool | None

SHOWN = (
    "validated",
    "bound",
    "bound_standard_error",
    "floor",
    "causal_nll",
    "accuracy",
    "minimal_pairs",
    "minimal_pairs_standard_error",
)
"""Validation metrics of the printed table. CSV and JSON have all of them."""

DEPTH = 3
"""Levels of folders that are searched for runs: of a sweep, of a folder of sweeps, and of a folder of those."""

UNREADABLE = "unreadable"
"""Status of a run whose settings cannot be read."""

_NOT_COMPARED = ("run.out", "name", "provenance.")
"""Settings that differ between any two runs, or follow from the plugins and their versions."""

_PLUGINS = "plugins"


@dataclass(frozen=True)
class RunRow:
    """A run, as its files describe it."""

    folder: Path
    status: str
    step: int | None
    reason: str
    settings: Mapping[str, Any]
    """By key path."""
    figures: Mapping[str, float | None]
    """Metrics of the last validation without the prefix `valid/`; `validated` is its step."""
    damaged: int = 0
    """Number of damaged lines of metrics.jsonl."""


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Find run folders among `paths` and up to `DEPTH` folders below them, in this order; a run behind links only once.

    Raises `UserError` if a path has none.
    """
    found: dict[str, Path] = {}
    for path in paths:
        try:
            folders = list(_runs_below(path, DEPTH))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        if not folders:
            raise UserError(
                f"{path}: neither a run folder (no config.yaml) nor a folder that contains run folders"
                f" (searched {DEPTH} levels deep)"
            )
        for folder in sorted(
            folders, key=lambda folder: folder.is_symlink()
        ):  # the name of a run is not that of a link
            found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


def _runs_below(path: Path, depth: int) -> Iterator[Path]:
    """The folder if it is a run, else the runs in it. Folders inside that may not be read have none."""
    if _is_run(path):
        yield path
    elif depth > 0:
        for inner in sorted(path.glob("*/")):
            if not inner.name.startswith("."):
                with suppress(OSError):
                    yield from _runs_below(inner, depth - 1)


def _is_run(path: Path) -> bool:
    """A run writes config.yaml first. A run that ended before has only its lock file."""
    # Unlike Path.is_file, this is false for a folder that may not be read, and for a loop of links.
    return os.path.isfile(path / "config.yaml") or os.path.isfile(path / Lock.FILE)


def read_run(path: Path) -> RunRow:
    """Read a run folder, without waiting and without changes. Settings that cannot be read are reported as `reason`."""
    folder = RunFolder(path)
    status = folder.read_status()
    state, reason = run_status(folder), status.reason if status is not None else ""
    compared: dict[str, Any] = {}
    try:
        if settings := read_settings(folder):
            flat = {key: value for key, value in flatten(settings).items() if not key.startswith(_NOT_COMPARED)}
            chosen = settings.get(_PLUGINS)
            compared = flat | {_PLUGINS: "+".join(map(str, chosen)) if isinstance(chosen, dict | list) else ""}
    except UserError as error:
        state, reason = UNREADABLE, str(error)
    except RecursionError:
        state, reason = UNREADABLE, f"{folder.config_file}: nested too deeply"
    figures: dict[str, float | None] = {}
    found = read_validations(folder.metrics_file)
    if found.last:
        figures["validated"] = found.last["step"]
        figures |= {key.removeprefix("valid/"): value for key, value in found.last.items() if key.startswith("valid/")}
    step = status.step if status is not None else None
    return RunRow(path, state, step, reason, settings=compared, figures=figures, damaged=found.damaged)


def read_settings(folder: RunFolder) -> Mapping[str, Any]:
    """The resolved settings of a run; empty before they are written. Raises `UserError` if they cannot be read."""
    try:
        settings = parse_yaml(folder.read_config() or "{}", str(folder.config_file))
    except OSError as error:
        raise UserError(f"{folder.config_file} cannot be read: {error.strerror}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{folder.config_file} must contain settings, not {type(settings).__name__}")
    return settings


def run_status(folder: RunFolder) -> str:
    """The status in status.json, or `interrupted` if it is `running` and no process is alive."""
    status = folder.read_status()
    if status is None:
        return "not started"
    return "interrupted" if status.status == "running" and not shows_life(folder) else status.status


def shows_life(folder: RunFolder) -> bool:
    """Whether a process holds the lock and has touched it recently."""
    try:
        facts = (folder.path / Lock.FILE).stat()
    except OSError:
        return False
    return facts.st_size > 0 and time.time() - facts.st_mtime < SILENT_SECONDS


def damage_note(rows: Sequence[RunRow]) -> str:
    """One sentence on the damaged lines of all runs; empty if there are none."""
    return "; ".join(f"{row.folder}: {damage(row.damaged)}" for row in rows if row.damaged)


def differing_settings(rows: Sequence[RunRow]) -> list[str]:
    """Key paths whose value is not the same in all runs that have them."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    return [key for key in keys if len({repr(row.settings[key]) for row in rows if key in row.settings}) > 1]


def report_table(rows: Sequence[RunRow], figures: Sequence[str] | None = None) -> list[dict[str, Cell]]:
    """One record per run, all with the same keys: settings that differ, status, step, and validation metrics.

    `figures` selects metrics; by default all of them are included.
    """
    known = dict.fromkeys(name for row in rows for name in row.figures)
    chosen = list(known) if figures is None else [name for name in figures if name in known]
    taken = {"run", "status", "step", "reason", *chosen}
    # The short name of a setting, or its key path if another column has this name.
    headings = {key: key if name in taken else name for key, name in short_names(differing_settings(rows)).items()}
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


def _cell(value: Any) -> Cell:
    """Lists and mappings become text."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def text_table(rows: Sequence[RunRow]) -> Table:
    """The table that is printed: columns that are not empty, with the metrics of `SHOWN`.

    Names of runs are relative to `shared_folder(rows)`, and are never cut.
    """
    records = report_table(rows, SHOWN)
    if all(record.get("validated") in (None, record["step"]) for record in records):
        for record in records:
            record.pop("validated", None)
    shared = shared_folder(rows)
    for row, record in zip(rows, records, strict=True):
        record["run"] = str(row.folder.absolute().relative_to(shared))
        for name in ("bound", "minimal_pairs"):
            error = record.pop(f"{name}_standard_error", None)
            if record.get(name) is not None and error is not None:
                record[name] = f"{record[name]:.3f} ± {error:.3f}"
    columns = [name for name in records[0] if any(record.get(name) not in (None, "") for record in records)]
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name.replace("_", " "), no_wrap=name in ("run", "bound", "minimal_pairs"), overflow="fold")
    for record in records:
        table.add_row(*(escape(_text(name, record.get(name))) for name in columns))
    return table


def shared_folder(rows: Sequence[RunRow]) -> Path:
    """The innermost folder that contains all runs."""
    return Path(os.path.commonpath([row.folder.absolute().parent for row in rows]))


def _text(column: str, value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if column in SHOWN and isinstance(value, float) else str(value)


def write_csv(table: Sequence[Mapping[str, Cell]], path: Path) -> None:
    """Write records to a CSV file, completely or not at all. Raises `UserError` if the file cannot be written."""
    with (
        write_errors(path),
        written_file(path) as unfinished,
        unfinished.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
