"""Files of minimal pairs, in the format of BLiMP (Warstadt et al. 2020, arXiv 1912.00582): one JSON object per line."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ltg_mdlm.evaluate.records import Record, read_records


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
