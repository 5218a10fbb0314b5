"""metrics.jsonl of a run: reading its rows and curves, also while it grows; its summary; truncation on resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltg_mdlm.core.files import written_file

NOT_CURVES = ("step", "epoch", "words_seen", "tokens_seen")
"""Numbers of a row that describe the progress of training and are not metrics."""

ROWS = (
    ("valid/loss", "objective", "{:.4f}"),
    ("valid/bound", "bound on -log p, nats per token", "{:.4f}"),
    ("valid/training_bound", "  under the training's own masking", "{:.4f}"),
    ("valid/causal_nll", "causal -log p, nats per token", "{:.4f}"),
    ("valid/unigram", "unigram cross-entropy, for comparison", "{:.4f}"),
    ("valid/bits_per_byte", "bound, bits per byte of text", "{:.4f}"),
    ("valid/accuracy", "accuracy of masked tokens", "{:.1%}"),
    ("valid/accuracy_frequent", "  of frequent token types", "{:.1%}"),
    ("valid/accuracy_rare", "  of rare token types", "{:.1%}"),
    ("valid/minimal_pairs", "minimal pairs", "{:.1%}"),
)
"""Rows of the summary: metric, label, format of the value."""


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row in a line; None if the line is incomplete or damaged, or has no step."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def read_rows(path: Path, containing: bytes = b"") -> Iterator[dict[str, Any]]:
    """The rows of a metrics file whose line contains `containing`; none if there is no file.

    Damaged lines are skipped, and so is an incomplete last line.
    """
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            # Most lines are training steps; a reader of other rows need not parse them.
            if line.endswith(b"\n") and containing in line and (row := parse_row(line)) is not None:
                yield row


@dataclass
class Curve:
    """One metric over steps, as it was logged; NaN where it was not finite."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1]


class MetricsFile:
    """The curves of one run, kept up to date with its file by `refresh`.

    Attributes:
        curves: curves by name of the metric, in order of appearance
        last: newest value of every number in the rows, including `NOT_CURVES`
        refused: number of updates that were refused because they were not finite
        unreadable: number of complete lines that are not rows
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._inode: int | None = None
        self._offset = 0
        self.curves: dict[str, Curve] = {}
        self.last: dict[str, float] = {}
        self.refused = self.unreadable = 0

    def refresh(self) -> MetricsFile:
        """Read the complete lines that are new.  A resumed run has a new file, which is read from its start."""
        try:
            with self._path.open("rb") as lines:
                facts = os.fstat(lines.fileno())
                if facts.st_ino != self._inode or facts.st_size < self._offset:
                    self._forget()
                    self._inode = facts.st_ino
                lines.seek(self._offset)
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._add(parse_row(line))
        except OSError:
            pass  # not written yet, or the file system is unavailable for a moment
        return self

    def _add(self, row: dict[str, Any] | None) -> None:
        if row is None:
            self.unreadable += 1
            return
        if row.get("event") == "refused_update":
            self.refused += 1
            return
        for key, value in row.items():
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
                number = math.nan if value is None else float(value)
                self.last[key] = number
                if key not in NOT_CURVES:
                    curve = self.curves.setdefault(key, Curve())
                    curve.steps.append(row["step"])
                    curve.values.append(number)


def result_text(folder: Path) -> str:
    """Summary of a run folder: metrics on held-out text before and after training."""
    rows = list(read_rows(folder / "metrics.jsonl", b'"valid/loss"'))
    if not rows:
        return f"no validation text, so there is nothing to report beyond {folder / 'metrics.jsonl'}"
    first, last = rows[0], rows[-1]
    lines = [f"{'held-out text':<42}{'step ' + str(first['step']):>12}{'step ' + str(last['step']):>12}"]
    for key, label, form in ROWS:
        if last.get(key) is not None:
            before = "-" if first.get(key) is None else form.format(first[key])
            lines.append(f"{label:<42}{before:>12}{form.format(last[key]):>12}")
    lines.append(f"standard error of the bound: {last['valid/bound_standard_error']:.4f}")
    lines.append(f"run folder: {folder}")
    return "\n".join(lines)


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines that a run resumed after `step` steps writes again, and those that are no rows.

    The `step` of a row is the number of steps done when it was written.  Does nothing if there is no file.
    """
    if not path.is_file():
        return
    with written_file(path) as aside, path.open("rb") as lines, aside.open("wb") as kept:
        for line in lines:
            row = parse_row(line) if line.endswith(b"\n") else None
            if row is not None and row["step"] <= step:
                kept.write(line)
