"""metrics.jsonl as curves, read while it grows: every look takes in what is new, whatever state the file is in.

What came out of a run, read back from its metrics: the same text at the end of training and ever after.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltg_mdlm.core.files import written_file

NOT_CURVES = ("step", "epoch", "words_seen", "tokens_seen")
"""Numbers of a row that say where training is."""


def parse_row(line: bytes) -> dict[str, Any] | None:
    """A line's row; None if it is torn, damaged, or lacks its step."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def read_rows(path: Path, containing: bytes = b"") -> Iterator[dict[str, Any]]:
    """The rows of a metrics file, if there is one, whose line contains some bytes; damaged lines are left out.

    So is a torn last line, which is being written or never will be.
    """
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            # Most lines are of training: those who look for others need not parse them.
            if line.endswith(b"\n") and containing in line and (row := parse_row(line)) is not None:
                yield row


@dataclass
class Curve:
    """One metric over steps, as logged; NaN where it was not finite."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1]


class MetricsFile:
    """The curves of one run.

    Attributes:
        curves: by the name of the metric, in order of appearance
        last: the newest value of everything that rows hold, place in training included
        refused: how many updates were refused because they were not finite
        unreadable: how many complete lines were no rows
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._file: int | None = None
        self._offset = 0
        self.curves: dict[str, Curve] = {}
        self.last: dict[str, float] = {}
        self.refused = self.unreadable = 0

    def refresh(self) -> MetricsFile:
        """Read the complete lines that are new; a run that was resumed has a new file, which is read from its start."""
        try:
            with self._path.open("rb") as lines:
                self._start_over_if_replaced(lines.fileno())
                lines.seek(self._offset)
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._take(parse_row(line))
        except OSError:
            pass  # not written yet, or a file system that is away for a moment
        return self

    def _start_over_if_replaced(self, descriptor: int) -> None:
        facts = os.fstat(descriptor)
        if facts.st_ino != self._file or facts.st_size < self._offset:
            self._forget()
            self._file = facts.st_ino

    def _take(self, row: dict[str, Any] | None) -> None:
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


def result_text(folder: Path) -> str:
    """Held-out figures before and after training, and where everything lies."""
    rows = list(read_rows(folder / "metrics.jsonl", b'"valid/loss"'))
    if not rows:
        return f"no validation text, so there is nothing to report beyond {folder / 'metrics.jsonl'}"
    first, last = rows[0], rows[-1]
    lines = [f"{'held-out text':<42}{'step ' + str(first['step']):>12}{'step ' + str(last['step']):>12}"]
    for key, label, form in ROWS:
        if last.get(key) is not None:
            lines.append(f"{label:<42}{_cell(first, key, form):>12}{_cell(last, key, form):>12}")
    lines.append(f"standard error of the bound: {last['valid/bound_standard_error']:.4f}")
    lines.append(f"run folder: {folder}")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], key: str, form: str) -> str:
    value = row.get(key)
    return "-" if value is None else form.format(value)


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines that a resumed run will write again: those beyond `step` steps done, and torn ones.

    The `step` of a line is the number of steps done when it was written.  Nothing happens without a file.
    """
    if not path.is_file():
        return
    with written_file(path) as aside, path.open("rb") as lines, aside.open("wb") as kept:
        kept.writelines(line for line in lines if _is_within(line, step))


def _is_within(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False
