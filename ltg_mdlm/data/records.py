"""Records of evaluation files, JSON lines or CSV; whatever is wrong with one is reported with its file and line.

Files of minimal pairs, in the format of BLiMP (Warstadt et al. 2020, arXiv 1912.00582): one JSON object per line.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltg_mdlm.core.errors import UserError

_MISSING = ("", "NA", "NaN", "nan")


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file.  Its methods raise UserError, naming the row, for a value that is not what they promise."""

    values: Mapping[str, Any]
    file: Path
    line: int

    @property
    def where(self) -> str:
        """`file:line`"""
        return f"{self.file}:{self.line}"

    def text(self, key: str) -> str:
        """Text that is not blank."""
        value = self._value(key)
        if not _is_text(value):
            raise self.error(key, "text")
        return str(value)

    def texts(self, key: str, at_least: int) -> list[str]:
        """A list of texts."""
        value = self._value(key)
        if not isinstance(value, list) or len(value) < at_least or not all(map(_is_text, value)):
            raise self.error(key, f"a list of at least {at_least} texts")
        return value

    def label(self, key: str, default: str) -> str:
        """What a group of rows is called: text or a number; the default where there is none."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not (isinstance(value, int) or _is_text(value)):
            raise self.error(key, "text")
        return str(value)

    def count(self, key: str) -> int:
        """A whole number, not negative."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(key, "a count")
        return value

    def number(self, key: str) -> float:
        """A finite number, or text that reads as one."""
        value = self._value(key)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(key, "a number")
        return number

    def number_or_missing(self, key: str) -> float:
        """A number; NaN for an empty cell."""
        return math.nan if self._value(key) in _MISSING else self.number(key)

    def error(self, key: str, expected: str) -> UserError:
        """The error for a value that is not the expected one."""
        return UserError(f"{self.where}: {key} must be {expected}, not {_shown(self.values.get(key))}")

    def _value(self, key: str) -> Any:
        if key not in self.values:
            raise UserError(
                f"{self.where}: {key} is missing (there is {', '.join(map(str, self.values)) or 'nothing'})"
            )
        return self.values[key]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and _is_unicode(value)


def _is_unicode(text: str) -> bool:
    """JSON can escape half a surrogate pair, which is no text that a tokenizer could read."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(value: object) -> str:
    shown = ascii(value) if isinstance(value, str) and not _is_unicode(value) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def read_records(path: Path) -> list[Record]:
    """Objects of a JSONL file, or of all `*.jsonl` files of a folder in order of their names; blank lines are skipped.

    Raises UserError if there are none, or for a line that is not a JSON object.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    records = [record for file in files for record in _json_lines(file)]
    if not records:
        raise UserError(f"{path}: no rows; expected JSONL, one object per line")
    return records


def _json_lines(file: Path) -> Iterator[Record]:
    # Not splitlines(): a JSON string may hold line separators of Unicode as they are.
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            yield Record(parse_object(line, file, number), file, number)


def parse_object(text: str, file: Path, line: int = 1) -> dict[str, Any]:
    """The object of a JSON text that begins on this line of a file.  Raises UserError if it is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{line + error.lineno - 1}: not JSON: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{file}:{line}: JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}:{line}: expected a JSON object, not {_shown(value)}")
    return value


def read_table(file: Path) -> list[Record]:
    """Rows of a CSV file with a heading; all values are text.

    Raises UserError if there are none, or for a row of another length than the heading.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        records = [Record(row, file, reader.line_num) for row in reader]
    except csv.Error as error:
        raise UserError(f"{file}:{reader.reader.line_num}: not CSV: {error}") from None
    for record in records:
        if None in record.values or None in record.values.values():
            raise UserError(f"{record.where}: a row of another length than the heading")
    if not records:
        raise UserError(f"{file}: no rows; expected CSV with a heading")
    return records


def only_file(path: Path, suffix: str) -> Path:
    """A file, or the one with this suffix in a folder.  Raises UserError if there is none or several."""
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{suffix}"))
    if len(found) != 1:
        raise UserError(f"{path}: expected one {suffix} file, found {', '.join(file.name for file in found) or 'none'}")
    return found[0]


def read_text(file: Path) -> str:
    """The text of a file, without a byte order mark.  Raises UserError if it cannot be read or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """Two sentences, of which the first is acceptable and the second is not.

    Attributes:
        uid: the phenomenon that they test; accuracy is reported for each.
        field: part of linguistics; empty where the file does not say.
        term: linguistic term; empty where the file does not say.
    """

    good: str
    bad: str
    uid: str
    field: str = ""
    term: str = ""


def read_minimal_pairs(path: Path | str) -> list[MinimalPair]:
    """Pairs of a JSONL file, or of all `*.jsonl` files of a folder, in order.

    A row without `UID` belongs to the phenomenon named like its file, as in the BabyLM supplement.

    Raises:
        UserError: nothing there, or a row that is not a pair; names the file and the line.
    """
    return [_pair(record) for record in read_records(Path(path))]


def write_minimal_pairs(path: Path, pairs: Iterable[MinimalPair]) -> None:
    """Write pairs as one JSONL file."""
    rows = (
        {
            "sentence_good": pair.good,
            "sentence_bad": pair.bad,
            "UID": pair.uid,
            "field": pair.field,
            "linguistics_term": pair.term,
        }
        for pair in pairs
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _pair(record: Record) -> MinimalPair:
    return MinimalPair(
        good=record.text("sentence_good"),
        bad=record.text("sentence_bad"),
        uid=record.label("UID", record.file.stem),
        field=str(record.values.get("field", "")),
        term=str(record.values.get("linguistics_term", "")),
    )
