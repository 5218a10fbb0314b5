"""Files of minimal pairs, in the format of BLiMP (Warstadt et al. 2020, arXiv 1912.00582): one JSON object per line."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ltg_mdlm.errors import UserError


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
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    pairs = [pair for file in files for pair in _read_file(file)]
    if not pairs:
        raise UserError(f"{path}: no minimal pairs; expected JSONL with sentence_good and sentence_bad")
    return pairs


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


def _read_file(file: Path) -> list[MinimalPair]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file of minimal pairs") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from None
    return [_read_row(line, f"{file}:{number}", file.stem) for number, line in enumerate(lines, 1) if line.strip()]


def _read_row(line: str, where: str, default_uid: str) -> MinimalPair:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object with sentence_good and sentence_bad")
    for key in ("sentence_good", "sentence_bad"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise UserError(f"{where}: {key} must be a sentence")
    texts = {key: str(row.get(key, "")) for key in ("field", "linguistics_term")}
    uid = str(row.get("UID", default_uid))
    return MinimalPair(row["sentence_good"], row["sentence_bad"], uid, texts["field"], texts["linguistics_term"])
