"""The texts in evaluation files of any task, for the search in a training corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import files_below
from ltg_mdlm.core.json_files import parse_object, read_text
from ltg_mdlm.data.records import Record, read_records, read_table
from ltg_mdlm.evaluation.tasks import data_name

FIELDS = (
    *("sentence_good", "sentence_bad"),  # BLiMP and its supplement
    *("Context1", "Context2", "Target1", "Target2"),  # EWoK
    *("input_prefix", "options"),  # entity tracking
    *("prefix_acceptable+property_phrase", "prefix_unacceptable+property_phrase"),  # COMPS
    *("prompt", "solution0", "solution1", "solution2", "solution3"),  # GlobalPIQA
    *("sentences", "sentence", "context"),  # WUG, reading, age of acquisition
    *("question", "passage", "paragraph", "answer", "premise", "hypothesis"),  # GLUE
    *("sentence1", "sentence2", "question1", "question2", "text"),  # GLUE
)
"""Fields with text in the official formats; fields joined by "+" form one sentence."""

SUFFIXES = (".jsonl", ".json", ".csv")


@dataclass(frozen=True, slots=True)
class TaskText:
    """One text of one question.

    Attributes:
        data: folder of the data set, relative to the searched folder.
        question: number of the question in its data set.
        where: file and line, or entry.
        field: field that holds the text.
    """

    data: str
    question: int
    where: str
    field: str
    text: str


class TaskTexts(NamedTuple):
    """The texts found in evaluation files."""

    texts: list[TaskText]
    questions: dict[str, int]
    """Number of questions of each data set."""
    skipped: list[Path]
    """Files without a known text field."""
    nothing_options: set[tuple[str, int]]
    """Data set and number of questions with the option "nothing", which entity tracking of 2026 leaves out."""


def read_task_texts(path: Path, fields: Sequence[str] = ()) -> TaskTexts:
    """Texts of one file, or of all JSONL, JSON and CSV files below a folder. The files of a folder are one data set.

    Each row is a question. Its text fields are those of `fields`, by default `FIELDS`, in the first row of the file.
    A field may hold a list of texts, or several texts separated by tabs.

    Raises UserError if there is nothing to read, or a row cannot be read or lacks a text.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder of evaluation data")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in files_below(path) if file.suffix in SUFFIXES and file.name[0] != ".")
    found = TaskTexts([], {}, [], set())
    for file in files:
        rows = list(_rows(file))
        first = rows[0][1].values if rows else {}
        chosen = [field for field in fields or FIELDS if all(part in first for part in field.split("+"))]
        if not chosen:
            found.skipped.append(file)
            continue
        folder = file.parent.relative_to(path) if file != path else Path()
        data = folder.as_posix() if folder.name else data_name(path)
        for where, record in rows:
            question = found.questions.setdefault(data, 0)
            found.questions[data] += 1
            if "nothing" in str(record.values.get("options")):
                found.nothing_options.add((data, question))
            for field in chosen:
                found.texts.extend(TaskText(data, question, where, field, text) for text in _texts(record, field))
    if not found.texts:
        known = ", ".join(fields or FIELDS)
        raise UserError(f"{path}: no text of evaluation tasks in {', '.join(SUFFIXES)} files; looked for {known}")
    return found


def _rows(file: Path) -> Iterator[tuple[str, Record]]:
    """(where, record). Of JSON files, only the contexts of age of acquisition: {word: [{"context": text}, ...]}."""
    if file.suffix != ".json":
        records = read_table(file) if file.suffix == ".csv" else read_records(file)
        yield from ((record.where, record) for record in records)
        return
    for word, entries in parse_object(read_text(file), file).items():
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                yield f"{file}: {word}", Record(entry, file, 1)


def _texts(record: Record, field: str) -> list[str]:
    """Raises UserError unless every part of the field holds text, or a list of texts."""
    parts = []
    for key in field.split("+"):
        value = record.values.get(key)
        strings: list[Any] = value if isinstance(value, list) else [value]
        if not all(isinstance(string, str) for string in strings):
            raise record.error(key, "text, as in the file's first row")
        parts.append(strings)
    return [text for strings in zip(*parts, strict=True) for text in " ".join(strings).split("\t")]
