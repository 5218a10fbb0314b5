"""A contamination check for reading: counts by data set, and a list of the texts, worst first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ltg_mdlm.durable import write_text
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.contamination import Contamination, Overlap
from ltg_mdlm.evaluate.task_texts import TaskText

ANY_FIELD = "(any)"
"""In place of a field, for the questions with all their texts."""

Cell = str | int | float | None


def summary(contamination: Contamination) -> list[dict[str, Cell]]:
    """One record per data set and field, of distinct texts; one per data set with its questions."""
    records = []
    for data in contamination.found.questions:
        fields: dict[str, dict[str, Overlap]] = {}
        for text in contamination.found.texts:
            if text.data == data:
                fields.setdefault(text.field, {})[text.text] = contamination.overlaps[text.text]
        records += [_counts(data, field, [[overlap] for overlap in texts.values()]) for field, texts in fields.items()]
        records.append(_counts(data, ANY_FIELD, contamination.by_question(data).values()))
    return records


def _counts(data: str, field: str, groups: Iterable[Sequence[Overlap]]) -> dict[str, Cell]:
    """Counts of groups of texts, by what is true of any text of the group."""
    groups = list(groups)
    shared = sum(any(overlap.shared for overlap in group) for group in groups)
    verbatim = sum(any(overlap.verbatim for overlap in group) for group in groups)
    return {
        "data": data,
        "field": field,
        "texts": len(groups),
        "shorter": sum(not any(overlap.ngrams for overlap in group) for group in groups),
        "shared": shared,
        "shared_share": shared / len(groups),
        "verbatim": verbatim,
        "verbatim_share": verbatim / len(groups),
    }


def explanation(contamination: Contamination) -> str:
    """What the figures of the summary are."""
    return (
        f"{contamination.corpus_words:,} words of training text searched for n-grams of {contamination.n} words and"
        f" for whole texts\n"
        f"texts: distinct ones; {ANY_FIELD}: questions, by any of their texts\n"
        f"shorter: texts of fewer than {contamination.n} words, which can only stand there as a whole\n"
        "shared: at least one n-gram stands in the training text; verbatim: all words do, one after another"
    )


def worst(contamination: Contamination) -> Iterator[dict[str, Any]]:
    """Contaminated texts, where they first stand in the data: whole ones, then by the share of their n-grams."""
    first = {text.text: text for text in reversed(contamination.found.texts)}
    pairs = ((text, contamination.overlaps[text.text]) for text in first.values())
    affected = [(text, overlap) for text, overlap in pairs if overlap.contaminated]
    affected.sort(key=lambda pair: (*_severity(pair[1]), pair[0].where))
    return (_listed(text, overlap) for text, overlap in affected)


def _severity(overlap: Overlap) -> tuple[bool, float, int]:
    """The worst sorts first."""
    return not overlap.verbatim, -overlap.shared / max(overlap.ngrams, 1), -overlap.words


def _listed(text: TaskText, overlap: Overlap) -> dict[str, Any]:
    return {
        "data": text.data,
        "where": text.where,
        "field": text.field,
        "text": text.text,
        "words": overlap.words,
        "ngrams": overlap.ngrams,
        "shared": overlap.shared,
        "example": overlap.example,
        "verbatim": overlap.verbatim,
    }


def write_worst(contamination: Contamination, path: Path) -> None:
    """Write the contaminated texts as JSON lines, complete or not at all.  Raises UserError if that is not possible."""
    try:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in worst(contamination)))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def text_table(records: Sequence[Mapping[str, Cell]]) -> Table:
    """Records with the same keys, for reading: shares and accuracies in per cent."""
    table = Table(*(name.replace("_", " ") for name in records[0]), box=None, pad_edge=False)
    for record in records:
        table.add_row(*(escape(_cell(value)) for value in record.values()))
    return table


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if isinstance(value, float) else str(value)
