"""Tasks in which the right one among several texts should be the most likely: BLiMP, EWoK, entity tracking, COMPS."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from ltg_mdlm.data.records import MinimalPair
from ltg_mdlm.inference.texts import Question, Text, TextScore, standard_error


class Answer(NamedTuple):
    """Which candidate a model finds the most likely."""

    chosen: int
    """The first of the best, as the official pipelines choose."""
    correct: float
    """1 or 0; of n candidates that are equally likely, with the right one among them, 1 / n."""
    tied: bool
    """Whether several are the best."""
    margin: float
    """Of the right candidate over the likeliest wrong one, in nats."""
    margin_error: float
    """Standard error of the margin: smaller than those of the two scores suggest, since their random numbers are the
    same.  0 for scores that are computed exactly."""


def answer(question: Question, scores: Sequence[TextScore]) -> Answer:
    """The candidate with the highest score; a score that is not a number (broken weights) is lower than all others."""
    values = [-math.inf if math.isnan(score.log_likelihood) else score.log_likelihood for score in scores]
    best = [i for i, value in enumerate(values) if value == max(values)]
    right = scores[question.right]
    wrong = max((score for i, score in enumerate(scores) if i != question.right), key=lambda s: s.log_likelihood)
    return Answer(
        chosen=best[0],
        correct=(question.right in best) / len(best),
        tied=len(best) > 1,
        margin=right.log_likelihood - wrong.log_likelihood,
        margin_error=difference_error(right, wrong),
    )


def difference_error(a: TextScore, b: TextScore) -> float:
    """Standard error of the difference of two scores with common random numbers."""
    if len(a.samples) != len(b.samples):  # one of them has a single token, and is exact
        return math.hypot(a.standard_error, b.standard_error)
    return standard_error([x - y for x, y in zip(a.samples, b.samples, strict=True)])


def accuracy_by_group(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """{what divides: {group: accuracy}}"""
    correct: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for question, found in zip(questions, answers, strict=True):
        for divides, group in question.groups or (("UID", question.uid),):
            correct[divides][group].append(found.correct)
    return {divides: {group: fmean(values) for group, values in groups.items()} for divides, groups in correct.items()}


def accuracy_of(questions: Sequence[Question], scores: Sequence[Sequence[TextScore]]) -> float:
    """The mean over uids, each counting the same; ties count what guessing among them would."""
    answers = [answer(question, scored) for question, scored in zip(questions, scores, strict=True)]
    return fmean(accuracy_by_group(questions, answers)["UID"].values())


def pair_questions(pairs: Iterable[MinimalPair]) -> list[Question]:
    """Which of the two sentences, whole, is the likelier one."""
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
