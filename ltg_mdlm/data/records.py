"""Records of evaluation files (JSON lines or CSV), and minimal pairs in the format of BLiMP.

Everything that is wrong with a record is reported with its file and line. BLiMP is Warstadt et al. 2020,
arXiv 1912.00582: one JSON object per line.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import is_unicode, parse_object, read_text, shown

_MISSING = ("", "NA", "NaN", "nan")


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file. The methods return the value of a key, or raise UserError, which names the row."""

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
        """The name of a group of rows: text or an integer; the default if the key is missing."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not (isinstance(value, int) or _is_text(value)):
            raise self.error(key, "text")
        return str(value)

    def count(self, key: str) -> int:
        """An integer that is not negative."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(key, "a count")
        return value

    def number(self, key: str) -> float:
        """A finite number, or text that can be converted to one."""
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
        """The error for a value of another kind than expected."""
        return UserError(f"{self.where}: {key} must be {expected}, not {shown(self.values.get(key))}")

    def _value(self, key: str) -> Any:
        if key not in self.values:
            keys = ", ".join(key if is_unicode(key) else ascii(key) for key in self.values) or "none"
            raise UserError(f"{self.where}: {key} is missing (keys of this row: {keys})")
        return self.values[key]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_unicode(value)


def read_records(path: Path) -> list[Record]:
    """The objects of a JSONL file, or of all `*.jsonl` files of a folder in the order of their names.

    Blank lines are skipped. Raises UserError for a line that is not a JSON object, and if there are no records.
    """
    records = []
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        # Not splitlines(): a JSON string may contain the line separators of Unicode.
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if line.strip():
                records.append(Record(parse_object(line, file, number), file, number))
    if not records:
        raise UserError(f"{path}: no rows; expected JSONL, one object per line")
    return records


def read_table(file: Path, *, delimiter: str = ",") -> list[Record]:
    """The rows of a CSV file with a header, or of another table; all values are text.

    Raises UserError for a row that is not as long as the header, and if there are no rows.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True, delimiter=delimiter)
    try:
        records = [Record(row, file, reader.line_num) for row in reader]
    except csv.Error as error:
        raise UserError(f"{file}:{reader.reader.line_num}: not CSV: {error}") from None
    for record in records:
        if None in record.values or None in record.values.values():
            raise UserError(f"{record.where}: the row and the header have different lengths")
    if not records:
        raise UserError(f"{file}: no rows; expected CSV with a header")
    return records


def only_file(path: Path, suffix: str) -> Path:
    """A file, or the only file with this suffix in a folder. Raises UserError if there is not exactly one."""
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{suffix}"))
    if len(found) != 1:
        raise UserError(f"{path}: expected one {suffix} file, found {', '.join(file.name for file in found) or 'none'}")
    return found[0]


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """An acceptable and an unacceptable sentence.

    Attributes:
        good: the acceptable sentence
        bad: the unacceptable sentence
        uid: the phenomenon that the pair tests; accuracy is reported for each
        field: field of linguistics; empty if the file does not name one
        term: linguistic term; empty if the file does not name one
    """

    good: str
    bad: str
    uid: str
    field: str = ""
    term: str = ""


def read_minimal_pairs(path: Path | str) -> list[MinimalPair]:
    """The pairs of a JSONL file, or of all `*.jsonl` files of a folder in the order of their names.

    A row without `UID` belongs to the phenomenon named by its file, as in the BabyLM supplement.

    Raises:
        UserError: no pairs, or a row that is not a pair; the message names the file and the line.
    """
    return [
        MinimalPair(
            good=record.text("sentence_good"),
            bad=record.text("sentence_bad"),
            uid=record.label("UID", record.file.stem),
            field=str(record.values.get("field", "")),
            term=str(record.values.get("linguistics_term", "")),
        )
        for record in read_records(Path(path))
    ]


def write_minimal_pairs(path: Path, pairs: Iterable[MinimalPair]) -> None:
    """Write pairs to a JSONL file."""
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
