"""A contamination check for reading: counts by data set, and a list of the texts, worst first.

Whether a model is better on the questions that share something with its training text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from ltg_mdlm.evaluation.task_texts import TaskText, TaskTexts

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


class Effect(NamedTuple):
    """How right a model is on questions that share nothing with the corpus, and on the others."""

    model: str
    revision: str
    score: str
    data: str
    clean: int
    contaminated: int
    clean_accuracy: float | None
    """of all such questions alike; None if there are none"""
    contaminated_accuracy: float | None
    difference: float | None
    """on contaminated questions, to the clean ones of the same uid, which are about as hard"""


def results_on(found: TaskTexts, paths: Iterable[Path]) -> list[tuple[str, Answers]]:
    """(data set, answers to its questions): the results below some paths that are of the data found.

    Answers are in the order of the data's rows.  Raises UserError if there are not as many of them.
    """
    by_name = {data.split("/")[-1]: data for data in found.questions}
    every = [answers for path in paths for answers in find_results(path).answers]
    some = [(by_name[answers.name.data], answers) for answers in every if answers.name.data in by_name]
    for data, answers in some:
        if len(answers.ids) != found.questions[data]:
            raise UserError(
                f"{answers.folder}: {len(answers.ids)} questions, but {found.questions[data]} in the data {data};"
                " give the data that the model was evaluated on"
            )
    return some


def effect_on(data: str, answers: Answers, contamination: Contamination) -> Effect:
    """Accuracy on the clean and on the contaminated questions of a data set."""
    contaminated_I = np.zeros(len(answers.ids), bool)
    contaminated_I[list(contamination.contaminated(data))] = True
    return Effect(
        answers.model,
        answers.revision,
        str(answers.settings.get("score", "")),
        data,
        int(np.count_nonzero(~contaminated_I)),
        int(np.count_nonzero(contaminated_I)),
        _mean(answers.correct_I[~contaminated_I]),
        _mean(answers.correct_I[contaminated_I]),
        _difference_within_uids(answers, contaminated_I),
    )


def _difference_within_uids(answers: Answers, contaminated_I: NDArray[np.bool_]) -> float | None:
    """Mean over the contaminated questions whose uid has clean ones, too."""
    _, uid_I = np.unique(np.array(answers.uids), return_inverse=True)
    clean_U = np.bincount(uid_I[~contaminated_I], minlength=uid_I.max() + 1)
    right_U = np.bincount(uid_I[~contaminated_I], answers.correct_I[~contaminated_I], minlength=uid_I.max() + 1)
    chosen_I = contaminated_I & (clean_U > 0)[uid_I]
    return _mean(answers.correct_I[chosen_I] - (right_U / np.maximum(clean_U, 1))[uid_I[chosen_I]])


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
