"""metrics.jsonl of a run: reading its rows and curves, also while it grows; its summary; truncation on resume."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.core.files import write_errors, written_file

PROGRESS = ("words_seen", "tokens_seen")
"""Amounts of text up to a row, which have curves like metrics."""

NOT_METRICS = ("step", "epoch", *PROGRESS)
"""Numbers of a row that describe the progress of training and are not metrics."""

ROWS = (
    ("valid/loss", "objective", "{:.4f}"),
    ("valid/bound", "bound on -log p, nats per token", "{:.4f}"),
    ("valid/training_bound", "  under the training's own masking", "{:.4f}"),
    ("valid/causal_nll", "causal -log p, nats per token", "{:.4f}"),
    ("valid/unigram", "unigram cross-entropy, for comparison", "{:.4f}"),
    ("valid/floor", "floor: -log p under the generator", "{:.4f}"),
    ("valid/bits_per_byte", "bound, bits per byte of text", "{:.4f}"),
    ("valid/accuracy", "accuracy of masked tokens", "{:.1%}"),
    ("valid/accuracy_frequent", "  of frequent token types", "{:.1%}"),
    ("valid/accuracy_rare", "  of rare token types", "{:.1%}"),
    ("valid/accuracy_rare_chance", "  of the best constant guess for them", "{:.1%}"),
    ("valid/minimal_pairs", "minimal pairs", "{:.1%}"),
)
"""Rows of the summary: metric, label, format of the value."""

PAIRS = "valid/pairs/"
"""Prefix of the accuracies on minimal pairs by phenomenon."""

_MAX_PHENOMENA = 20
"""Phenomena that the summary lists; the metrics file has all of them."""


_BLOCK = 1 << 20
"""Bytes that are read at a time; a longer line is no row."""

_MERGED = 8192
"""Number of values of a curve that are kept as they are, and maximum number of merged ones."""

_DECODER = json.JSONDecoder(parse_constant=lambda _: math.nan)

_ORDINARY = bytes(range(ord("0"), ord("9") + 1)) + bytes(range(ord("a"), ord("z") + 1)) + b'_ ":.,/+-'
"""Characters of a row besides its braces."""

_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row in a line; None if the line is incomplete or damaged, or has no step."""
    try:
        row = _DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if _is_row(row) and all(map(_in_range, row.values())) else None


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < 2**63


def _may_overflow(lines: bytes) -> bool:
    """Whether there may be a number beyond the range of float: one with 300 digits, or a three-digit exponent."""
    digits = lines.translate(_DIGITS, b"+")
    return b"e000" in digits or b"0" * 300 in digits


def _are_plain(lines: bytes) -> bool:
    """Whether these are lines as this program writes them, unless they are damaged in a way that only parsing shows."""
    count = lines.count(b"\n")
    return (
        lines.translate(None, _ORDINARY) == b"{}\n" * count
        and lines.startswith(b'{"step": ')
        and lines.count(b'\n{"step": ') == count - 1
        and not _may_overflow(lines)
    )


def _in_range(value: object) -> bool:
    try:
        return not isinstance(value, int | float) or not math.isinf(value)
    except OverflowError:
        return False


def _parse_lines(lines: bytes) -> list[dict[str, Any] | None]:
    """`parse_row` of every line. All lines are parsed together if they are sound, which saves a third of the time."""
    single = lines.split(b"\n")[:-1]
    if not _may_overflow(lines):
        try:
            rows = _DECODER.decode(f"[{b','.join(single).decode()}]")
        except (ValueError, RecursionError):
            rows = []
        if len(rows) == len(single):
            return [row if _is_row(row) else None for row in rows]
    return [parse_row(line) for line in single]


def _blocks(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The complete lines of a file, many at a time, each time with the offset of the line after them.

    A line of more than `_BLOCK` bytes, of which nothing is kept, is given as "?".
    """
    offset, rest, skipped = file.tell(), b"", 0
    while chunk := file.read(_BLOCK):
        lines = rest + chunk
        end = lines.rfind(b"\n") + 1
        if not end:
            rest = lines
            if len(rest) > _BLOCK:
                rest, skipped = b"", skipped + len(rest)
            continue
        offset, rest, lines = offset + skipped + end, lines[end:], lines[:end]
        if skipped:
            lines, skipped = b"?" + lines[lines.index(b"\n") :], 0
        yield offset, lines


@dataclass(frozen=True)
class Validations:
    """The first and the last validation in a metrics file: numbers by name; None where one was not finite."""

    first: dict[str, Any]
    """Empty if there is no validation."""
    last: dict[str, Any]
    damaged: int
    """Complete lines that are not rows.  Rows of training are not parsed, so damage in them may be missed."""


def read_validations(path: Path, up_to: int | None = None) -> Validations:
    """The validations up to this step; without one, all of them.  A file that cannot be read has none."""
    first: dict[str, Any] = {}
    last, damaged = first, 0
    try:
        # A named pipe would block.
        with open(path if os.path.isfile(path) else os.devnull, "rb") as file:
            for _, lines in _blocks(file):
                # Most lines are plain rows of training, which are not needed.
                is_plain = _are_plain(lines)
                for line in lines.split(b"\n")[:-1]:
                    if is_plain and b'"valid/loss"' not in line:
                        continue
                    row = parse_row(line)
                    if row is None:
                        damaged += 1
                    elif "valid/loss" in row and (up_to is None or row["step"] <= up_to):
                        last = {key: _finite(value) for key, value in row.items() if _is_number(value)}
                        first = first or last
    except OSError:
        pass  # deleted meanwhile, or not permitted
    return Validations(first, last, damaged)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _finite(value: Any) -> Any:
    return value if value is not None and math.isfinite(value) else None


def damage(lines: int) -> str:
    """The note on this number of damaged lines; empty if there are none."""
    return f"{lines} damaged line{'s' * (lines > 1)} of metrics.jsonl ignored" if lines else ""


@dataclass
class Curve:
    """One metric over steps, as it was logged; NaN where it was not finite.

    Of a long curve, the older values are merged, so that it takes a bounded amount of memory.
    """

    steps: list[int] = field(default_factory=list)
    """The newest steps; all of them if there are no more than `2 * _MERGED`."""
    values: list[float] = field(default_factory=list)
    first_lost: int | None = None
    """The first step among the merged ones whose value was not finite."""
    _stride: int = 1
    _merged_5M: NDArray[np.float64] = field(default_factory=lambda: np.empty((5, 0)), compare=False)
    """Mean of the steps, mean, minimum, maximum and number of the finite values, of `_stride` rows each."""

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1]

    def __len__(self) -> int:
        return int(self._merged_5M.shape[1]) * self._stride + len(self.steps)

    @property
    def first_not_finite(self) -> int | None:
        """The first step whose value is not finite."""
        if self.first_lost is not None:
            return self.first_lost
        return next((s for s, value in zip(self.steps, self.values, strict=True) if not math.isfinite(value)), None)

    def shorten(self) -> None:
        """Merge the older values if there are many."""
        while len(self.steps) >= max(2 * _MERGED, 2 * self._stride):
            n = max(_MERGED, self._stride)
            self.first_lost = self.first_not_finite if not np.isfinite(self.values[:n]).all() else self.first_lost
            new_5M = _merge(_columns(self.steps[:n], self.values[:n]), self._stride)
            del self.steps[:n], self.values[:n]
            self._merged_5M = np.concatenate([self._merged_5M, new_5M], axis=1)
            if self._merged_5M.shape[1] > _MERGED:
                self._merged_5M, self._stride = _merge(self._merged_5M, 2), 2 * self._stride

    def columns(self) -> NDArray[np.float64]:
        """float64[5, N]: steps, means, minima, maxima, and the number of finite values in each of the N."""
        return np.concatenate([self._merged_5M, _columns(self.steps, self.values)], axis=1)


def _columns(steps: list[int], values: list[float]) -> NDArray[np.float64]:
    value_N = np.asarray(values, dtype=np.float64)
    return np.stack([np.asarray(steps, dtype=np.float64), value_N, value_N, value_N, np.isfinite(value_N)])


def _merge(columns_5N: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """Merge groups of `stride` neighbours; N is a multiple of it."""
    step, mean, low, high, weight = columns_5N.reshape(5, -1, stride)
    count = weight.sum(-1)
    known = weight > 0
    with np.errstate(over="ignore", invalid="ignore"):
        means = (np.where(known, mean, 0) * weight).sum(-1) / np.maximum(count, 1)
    lows, highs = np.where(known, low, np.inf).min(-1), np.where(known, high, -np.inf).max(-1)
    means, lows, highs = (np.where(count > 0, column, np.nan) for column in (means, lows, highs))
    return np.stack([step.mean(-1), means, lows, highs, count])


class MetricsFile:
    """The curves of one run, kept up to date with its file by `refresh`.

    Attributes:
        curves: curves by name of the metric, in order of appearance, and of `PROGRESS`
        names: names of all metrics
        last: newest value of every number in the rows, including `NOT_METRICS`
        refused: number of updates that were refused because they were not finite
        unreadable: number of complete lines that are not rows
    """

    def __init__(self, path: Path, wanted: Collection[str] | None = None) -> None:
        """With `wanted`, only these metrics have curves."""
        self._path, self._wanted = path, wanted
        self._forget()

    def _forget(self) -> None:
        self._inode: int | None = None
        self._offset = 0
        self.curves: dict[str, Curve] = {}
        self._last: dict[str, Any] = {}
        self.refused = self.unreadable = 0

    @property
    def last(self) -> dict[str, float]:
        """Newest value of every number in the rows; NaN if it was not finite."""
        numbers = {key: value for key, value in self._last.items() if _is_number(value)}
        return {key: math.nan if value is None else float(value) for key, value in numbers.items()}

    @property
    def names(self) -> list[str]:
        """Names of all metrics."""
        return [key for key, value in self._last.items() if _is_number(value) and key not in NOT_METRICS]

    def refresh(self) -> MetricsFile:
        """Read the complete lines that are new.  A resumed run has a new file, which is read from its start."""
        try:
            # A named pipe would block.
            with open(self._path if os.path.isfile(self._path) else os.devnull, "rb") as file:
                if file.name == os.devnull:
                    return self
                facts = os.fstat(file.fileno())
                if facts.st_ino != self._inode or facts.st_size < self._offset:
                    self._forget()
                    self._inode = facts.st_ino
                file.seek(self._offset)
                for offset, lines in _blocks(file):
                    self._offset = offset
                    if not self._add_alike(lines):
                        self._add(_parse_lines(lines))
        except OSError:
            pass  # not written yet, or the file system is unavailable for a moment
        return self

    def _add_alike(self, lines: bytes) -> bool:
        """Add lines of which most have the same keys, and parse only the wanted numbers of these.

        Returns whether that was possible; parsing all of a million lines takes three times as long.
        """
        if self._wanted is None or not _are_plain(lines):
            return False
        single = lines.split(b"\n")[:-1]
        quotes = [line.count(b'"') for line in single]
        usual = max(set(quotes), key=quotes.count)
        alike = [line for line, count in zip(single, quotes, strict=True) if count == usual]
        others = [parse_row(line) for line, count in zip(single, quotes, strict=True) if count != usual]
        row, text = parse_row(alike[-1]), b"\n".join(alike)
        if row is None or not all(map(_is_number, row.values())):
            return False
        if any(text.count(b'"%s": ' % key.encode()) != len(alike) for key in row):
            return False
        keys = [key for key in self._wanted if key in row]
        if any(other is not None and key in other for key in keys for other in others):
            return False
        try:
            steps = [int(line[len('{"step": ') : line.index(b",")]) for line in alike]
            values = {
                key: [float(v) for v in re.findall(b'"%s": ([^,}]+)' % re.escape(key.encode()), text)] for key in keys
            }
        except ValueError:  # null, or damaged
            return False
        if any(len(found) != len(steps) for found in values.values()):
            return False
        self._add(others)
        self._last |= row
        for key, found in values.items():
            curve = self.curves.setdefault(key, Curve())
            curve.steps += steps
            curve.values += found
            curve.shorten()
        return True

    def _add(self, rows: list[dict[str, Any] | None]) -> None:
        sound = [row for row in rows if row is not None]
        logged = [row for row in sound if row.get("event") != "refused_update"]
        self.unreadable += len(rows) - len(sound)
        self.refused += len(sound) - len(logged)
        for row in logged:
            self._last |= row
        for key in [*self.names, *PROGRESS] if self._wanted is None else self._wanted:
            # Nearly all values are floats.
            found = [(row["step"], value) for row in logged if type(value := row.get(key, "")) is float]
            if len(found) < sum(key in row for row in logged):
                numbers = [(row["step"], row[key]) for row in logged if key in row and _is_number(row[key])]
                found = [(step, math.nan if value is None else float(value)) for step, value in numbers]
            if found:
                steps, values = zip(*found, strict=True)
                curve = self.curves.setdefault(key, Curve())
                curve.steps += steps
                curve.values += values
                curve.shorten()


def result_text(folder: Path) -> str:
    """Summary of a run folder: metrics on held-out text before and after training."""
    found = read_validations(folder / "metrics.jsonl")
    first, last = found.first, found.last
    if not first:
        lines = [f"no validation text, so there is nothing to report beyond {folder / 'metrics.jsonl'}"]
    else:
        lines = [f"{'held-out text':<42}{'step ' + str(first['step']):>12}{'step ' + str(last['step']):>12}"]
        by_phenomenon = [key for key in last if key.startswith(PAIRS) and not key.endswith("_standard_error")]
        shown = by_phenomenon if len(by_phenomenon) <= _MAX_PHENOMENA else []
        for key, label, form in (*ROWS, *((key, f"  {key.removeprefix(PAIRS)}", "{:.1%}") for key in shown)):
            if last.get(key) is not None:
                before = "-" if first.get(key) is None else form.format(first[key])
                error = last.get(f"{key}_standard_error")
                plus_minus = f" ± {form.format(error)}" if error is not None else ""
                lines.append(f"{label:<42}{before:>12}{form.format(last[key]):>12}{plus_minus}")
        lines.append(f"run folder: {folder}")
    if found.damaged:
        lines.append(f"note: {damage(found.damaged)}")
    return "\n".join(lines)


def truncate_metrics(path: Path, step: int) -> int:
    """Drop the lines that a run resumed after `step` steps writes again, and those that are not rows.

    The `step` of a row is the number of steps done when it was written.  Does nothing if there is no file.  Returns the
    number of complete lines that are not rows.  Raises UserError if the file cannot be read or written.
    """
    damaged = 0
    if not path.exists():
        return damaged
    with write_errors(path), written_file(path) as aside, path.open("rb") as file, aside.open("wb") as kept:
        for _, lines in _blocks(file):
            for line, row in zip(lines.split(b"\n"), _parse_lines(lines), strict=False):
                if row is None:
                    damaged += 1
                elif row["step"] <= step:
                    kept.write(line + b"\n")
    return damaged


def missing_at_end(path: Path, step: int, every: int, since: int = 0) -> str:
    """A note on the rows of training up to `step` that a truncated file has lost; empty if it has the last one.

    A process that started after `since` steps has written a row of step 1 and of every `every`-th step.  A file that
    cannot be read has no rows.
    """
    expected = max(step // every * every, 1)
    if expected <= since:
        return ""
    lines = b""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _BLOCK, 0))
        lines = file.read()
    rows = (parse_row(line) for line in lines.splitlines())
    last = max((row["step"] for row in rows if row is not None and "loss" in row), default=0)
    if last >= expected:
        return ""
    first = (last // every + 1) * every if last else 1
    steps = f"steps {first} to {expected}" if first < expected else f"step {expected}"
    return f"metrics.jsonl has lost the rows of {steps}: it was truncated or deleted after they were written"
