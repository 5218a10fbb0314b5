"""Choices between texts: which candidate a model finds the most likely, and how often it is the right one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from ltg_mdlm.data.records import MinimalPair
from ltg_mdlm.inference.texts import Question, Text, TextScore, standard_error


class Answer(NamedTuple):
    """The candidate that a model finds the most likely."""

    best: tuple[int, ...]
    """Indices of the candidates with the highest score; several in a tie."""
    correct: float
    """1 or 0; in a tie of n candidates that includes the right one, 1 / n."""
    margin: float
    """Log-likelihood of the right candidate minus that of the most likely wrong one, in nats."""
    margin_error: float
    """Standard error of the margin; 0 for exact scores.  It is smaller than the errors of the two scores suggest,
    because these use the same random numbers."""

    @property
    def tied(self) -> bool:
        """Whether several candidates have the highest score."""
        return len(self.best) > 1


def answer(question: Question, scores: Sequence[TextScore]) -> Answer:
    """The candidate with the highest score; NaN (from broken weights) is lower than all other scores."""
    values = [-math.inf if math.isnan(score.log_likelihood) else score.log_likelihood for score in scores]
    best = tuple(i for i, value in enumerate(values) if value == max(values))
    right = scores[question.right]
    wrong = scores[max((i for i in range(len(scores)) if i != question.right), key=values.__getitem__)]
    if len(right.samples) == len(wrong.samples):
        differences = [x - y for x, y in zip(right.samples, wrong.samples, strict=True)]
        margin_error = standard_error(differences)
    else:  # one of them has a single token, so its score is exact
        margin_error = math.hypot(right.standard_error, wrong.standard_error)
    return Answer(
        best=best,
        correct=(question.right in best) / len(best),
        margin=right.log_likelihood - wrong.log_likelihood,
        margin_error=margin_error,
    )


def accuracy_by_group(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """{division: {group: accuracy}}."""
    correct: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for question, found in zip(questions, answers, strict=True):
        for division, group in question.groups or (("UID", question.uid),):
            correct[division][group].append(found.correct)
    return {
        division: {group: fmean(values) for group, values in groups.items()} for division, groups in correct.items()
    }


def pair_questions(pairs: Iterable[MinimalPair]) -> list[Question]:
    """One question per minimal pair: which of the two whole sentences is more likely?"""
    return [
        Question(
            (Text("", pair.good), Text("", pair.bad)),
            pair.uid,
            groups=(
                ("field", pair.field.replace("syntax_semantics", "syntax/semantics") or "supplement"),
                ("UID", pair.uid),
                ("linguistics_term", pair.term or "supplement"),
            ),
        )
        for pair in pairs
    ]
