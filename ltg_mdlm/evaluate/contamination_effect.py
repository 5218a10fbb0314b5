"""Whether a model is better on the questions that share something with its training text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.answers import Answers, find_results
from ltg_mdlm.evaluate.contamination import Contamination
from ltg_mdlm.evaluate.task_texts import TaskTexts


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
