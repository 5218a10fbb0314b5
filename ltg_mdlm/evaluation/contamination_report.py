"""Report of a contamination check: counts by data set, the contaminated texts, and the effect on accuracy."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_text
from ltg_mdlm.evaluation.answers import Answers, find_results
from ltg_mdlm.evaluation.contamination import Contamination, Overlap
from ltg_mdlm.evaluation.multiple_choice import ENTITY_TRACKING
from ltg_mdlm.evaluation.task_texts import TaskText, TaskTexts

ANY_FIELD = "(any)"
"""In place of a field: questions, counted by any of their texts."""

Cell = str | int | float | None


def summary(contamination: Contamination) -> list[dict[str, Cell]]:
    """For each data set, one record per field with counts of distinct texts, and one with counts of questions."""
    records = []
    for data in contamination.found.questions:
        fields: dict[str, dict[str, Overlap]] = {}
        for text in contamination.found.texts:
            if text.data == data:
                fields.setdefault(text.field, {})[text.text] = contamination.overlaps[text.text]
        records += [_counts(data, field, [[overlap] for overlap in texts.values()]) for field, texts in fields.items()]
        records.append(_counts(data, ANY_FIELD, contamination.by_question(data).values()))
    return records


def _counts(data: str, field: str, groups: Collection[Sequence[Overlap]]) -> dict[str, Cell]:
    """Counts of groups of texts; a property holds for a group if it holds for any of its texts."""
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
    """The meaning of the figures of the summary."""
    n = contamination.n
    return (
        f"{contamination.corpus_words:,} words of training text searched for n-grams of {n} terms and for whole texts\n"
        "terms: runs of letters and digits, and single letters of scripts without blanks\n"
        f"texts: distinct texts; {ANY_FIELD}: questions, counted by any of their texts\n"
        f"shorter: texts of fewer than {n} terms, which can only occur as a whole\n"
        "shared: at least one n-gram occurs in the training text; verbatim: the whole text occurs"
    )


def worst(contamination: Contamination) -> Iterator[dict[str, Any]]:
    """Contaminated texts at their first place in the data: verbatim ones first, then by the share of their n-grams."""
    first = {text.text: text for text in reversed(contamination.found.texts)}
    pairs = ((text, contamination.overlaps[text.text]) for text in first.values())
    affected = [(text, overlap) for text, overlap in pairs if overlap.contaminated]

    def severity(pair: tuple[TaskText, Overlap]) -> tuple[bool, float, int, str]:
        text, overlap = pair
        return not overlap.verbatim, -overlap.shared / max(overlap.ngrams, 1), -overlap.words, text.where

    for text, overlap in sorted(affected, key=severity):
        yield {
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
    """Write the contaminated texts as JSON lines, complete or not at all. Raises UserError if it cannot be written."""
    try:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in worst(contamination)))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def text_table(records: Sequence[Mapping[str, Cell]]) -> Table:
    """A table of records with the same keys; shares and accuracies in per cent."""
    table = Table(*(name.replace("_", " ") for name in records[0]), box=None, pad_edge=False)
    for record in records:
        shown = (f"{value:.2%}" if isinstance(value, float) else value for value in record.values())
        table.add_row(*("-" if value is None else escape(str(value)) for value in shown))
    return table


class Effect(NamedTuple):
    """Accuracy of a model on clean and on contaminated questions."""

    model: str
    revision: str
    score: str
    data: str
    clean: int
    contaminated: int
    clean_accuracy: float | None
    """Over all clean questions, weighted equally; None if there are none"""
    contaminated_accuracy: float | None
    difference: float | None
    """Contaminated questions minus clean questions of the same uid, which are about equally hard"""


def results_on(found: TaskTexts, paths: Iterable[Path]) -> list[tuple[str, Answers]]:
    """(data set, answers to its questions): the scored results below some paths on the data that were searched.

    Fine-tuning is left out: its questions are the validation examples of one task, and not all of its data set.

    Answers are in the order of the questions in the data. Raises UserError if their number differs.
    """
    by_name = {data.split("/")[-1]: data for data in found.questions}
    every = [answers for path in paths for answers in find_results(path).answers]
    some = [
        (by_name[answers.name.data], answers) for answers in every if answers.is_scored and answers.name.data in by_name
    ]
    for data, answers in some:
        if len(answers.ids) != (expected := len(questions_asked(found, data, answers))):
            raise UserError(
                f"{answers.folder}: {len(answers.ids)} questions, but {expected} in the data {data};"
                " give the data that the model was evaluated on"
            )
    return some


def questions_asked(found: TaskTexts, data: str, answers: Answers) -> list[int]:
    """Numbers of the questions of a data set that the protocol of the answers asks, in order."""
    leaves_out = answers.name.task == ENTITY_TRACKING.name and answers.protocol == "2026"
    questions = range(found.questions[data])
    return [number for number in questions if not (leaves_out and (data, number) in found.nothing_options)]


def effect_on(data: str, answers: Answers, contamination: Contamination) -> Effect:
    """Accuracy on the clean and on the contaminated questions of a data set."""
    contaminated = set(contamination.contaminated(data))
    contaminated_I = np.array([q in contaminated for q in questions_asked(contamination.found, data, answers)])
    clean_I, correct_I = ~contaminated_I, answers.correct_I
    # The difference is the mean over the contaminated questions whose uid also has clean questions.
    _, uid_I = np.unique(np.array(answers.uids), return_inverse=True)
    clean_U = np.bincount(uid_I[clean_I], minlength=uid_I.max() + 1)
    right_U = np.bincount(uid_I[clean_I], correct_I[clean_I], minlength=uid_I.max() + 1)
    compared_I = contaminated_I & (clean_U > 0)[uid_I]
    difference_I = correct_I[compared_I] - (right_U / np.maximum(clean_U, 1))[uid_I[compared_I]]
    return Effect(
        model=answers.model,
        revision=answers.revision,
        score=str(answers.settings.get("score", "")),
        data=data,
        clean=int(np.count_nonzero(clean_I)),
        contaminated=int(np.count_nonzero(contaminated_I)),
        clean_accuracy=_mean(correct_I[clean_I]),
        contaminated_accuracy=_mean(correct_I[contaminated_I]),
        difference=_mean(difference_I),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
