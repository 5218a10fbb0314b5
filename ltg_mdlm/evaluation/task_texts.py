"""The sentences in files of evaluation tasks, whatever the task: what a training corpus should not hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.records import Record, parse_object, read_records, read_table, read_text
from ltg_mdlm.evaluation.tasks import data_name

FIELDS = (
    *("sentence_good", "sentence_bad"),  # BLiMP and its supplement
    *("Context1", "Context2", "Target1", "Target2"),  # EWoK
    *("input_prefix", "options"),  # entity tracking
    *("prefix_acceptable+property_phrase", "prefix_unacceptable+property_phrase"),  # COMPS
    *("sentences", "sentence", "context"),  # WUG, reading, age of acquisition
    *("question", "passage", "paragraph", "answer", "premise", "hypothesis"),  # GLUE, from here on
    *("sentence1", "sentence2", "question1", "question2", "text"),
)
"""Fields known to hold text, in the official formats; those joined by "+" make one sentence."""


SUFFIXES = (".jsonl", ".json", ".csv")


@dataclass(frozen=True, slots=True)
class TaskText:
    """One text of one question.

    Attributes:
        data: the folder of the data set, relative to where the search began.
        question: number of the question in its data set.
        where: file and line, or entry.
        field: what holds it.
    """

    data: str
    question: int
    where: str
    field: str
    text: str


class TaskTexts(NamedTuple):
    """What was found in evaluation files."""

    texts: list[TaskText]
    questions: dict[str, int]
    """Questions of each data set."""
    skipped: list[Path]
    """Files without a field that is known to hold text."""


def read_task_texts(path: Path, fields: Sequence[str] = ()) -> TaskTexts:
    """Texts of one file, or of all JSONL, JSON and CSV files below a folder; a folder's files are one data set.

    A row is a question, and its fields are those of `FIELDS` that its file begins with, or `fields` if there are any.
    A field may hold a list of texts, or several joined by tabs.

    Raises UserError if there is nothing to read, for a row that cannot be read, or that lacks a text.
    """
    found = TaskTexts([], {}, [])
    for file in _files(path):
        rows = list(_rows(file))
        chosen = _fields_of(rows[0].record, fields or FIELDS) if rows else []
        if chosen:
            _add(found, rows, chosen, _data_name(file, path))
        else:
            found.skipped.append(file)
    if not found.texts:
        known = ", ".join(fields or FIELDS)
        raise UserError(f"{path}: no text of evaluation tasks in {', '.join(SUFFIXES)} files; looked for {known}")
    return found


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder of evaluation data")
    if path.is_file():
        return [path]
    below = path.rglob("*")
    return sorted(file for file in below if file.suffix in SUFFIXES and file.is_file() and file.name[0] != ".")


def _data_name(file: Path, root: Path) -> str:
    folder = file.parent.relative_to(root) if file != root else Path()
    return folder.as_posix() if folder.name else data_name(root)


class _Row(NamedTuple):
    where: str
    record: Record


def _rows(file: Path) -> Iterator[_Row]:
    if file.suffix == ".json":
        yield from _contexts(file)
    else:
        records = read_table(file) if file.suffix == ".csv" else read_records(file)
        yield from (_Row(record.where, record) for record in records)


def _contexts(file: Path) -> Iterator[_Row]:
    """Those of age of acquisition, an object of word: list of {context, ...}; nothing of other JSON files."""
    for word, entries in parse_object(read_text(file), file).items():
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                yield _Row(f"{file}: {word}", Record(entry, file, 1))


def _fields_of(first: Record, fields: Sequence[str]) -> list[str]:
    return [field for field in fields if all(part in first.values for part in field.split("+"))]


def _add(found: TaskTexts, rows: Sequence[_Row], fields: Sequence[str], data: str) -> None:
    for where, record in rows:
        question = found.questions.setdefault(data, 0)
        found.questions[data] += 1
        for field in fields:
            found.texts.extend(TaskText(data, question, where, field, text) for text in _texts(record, field))


def _texts(record: Record, field: str) -> list[str]:
    parts = zip(*(_strings(record, key) for key in field.split("+")), strict=True)
    return [text for strings in parts for text in " ".join(strings).split("\t")]


def _strings(record: Record, key: str) -> list[str]:
    """Raises UserError unless the field holds text, or a list of texts."""
    value = record.values.get(key)
    strings: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(string, str) for string in strings):
        raise record.error(key, "text, as in the file's first row")
    return strings
