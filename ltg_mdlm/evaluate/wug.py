"""Inflecting words that do not exist: does the model hesitate where people do?

Adjectives made nouns (Hofmann et al. 2024, arXiv 2411.07990) and past tenses (Weissweiler et al. 2023,
arXiv 2310.15113): candidates that differ in the made-up form, with the share of people who chose the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ltg_mdlm.evaluate.correlation import spearman
from ltg_mdlm.evaluate.multiple_choice import answer, item, numbered, official_predictions
from ltg_mdlm.evaluate.records import Record, read_records
from ltg_mdlm.evaluate.tasks import Task, TaskResult, ask, data_name
from ltg_mdlm.evaluate.texts import Question, Scorer, Text, TextScore


class Judged(NamedTuple):
    """Candidates, and what people say."""

    question: Question
    ratio: float
    """Share of people who chose the first candidate."""


class Wug(Task):
    """Rank correlation of the first candidate's probability, among the candidates, with its share among people."""

    fields = frozenset({"sentences", "ratio"})

    def read(self, path: Path) -> list[Judged]:
        """Candidates are separated by tabs.  Raises UserError for data that cannot be read."""
        return [self._judged(record) for record in read_records(path)]

    def _judged(self, record: Record) -> Judged:
        sentences = record.text("sentences").split("\t")
        if len(sentences) < 2 or not all(sentence.strip() for sentence in sentences):
            raise record.error("sentences", "at least two candidates with a tab between them")
        ratio = record.number("ratio")
        if not 0 <= ratio <= 1:
            raise record.error("ratio", "a share in 0..1")
        return Judged(Question(tuple(Text("", sentence) for sentence in sentences), self.name), ratio)

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Score all candidates as whole sentences."""
        judged = self.read(path)
        questions = [entry.question for entry in judged]
        scores = ask(scorer, [question.candidates for question in questions])
        answers = [answer(question, scored) for question, scored in zip(questions, scores, strict=True)]
        shares = [share_of_first(scored) for scored in scores]
        ids = numbered(question.uid for question in questions)
        rho = spearman(shares, [entry.ratio for entry in judged])
        data = data_name(path)
        rows = zip(ids, judged, scores, answers, shares, strict=True)
        return TaskResult(
            task=self.name,
            data=data,
            metric="spearman",
            figures={"spearman": rho, "tie_rate": sum(found.tied for found in answers) / len(answers)},
            questions=len(questions),
            breakdown={"UID": {"avg": rho}},
            items=[
                item(id_, entry.question, scored, found) | {"share": share, "human_share": entry.ratio}
                for id_, entry, scored, found, share in rows
            ],
            predictions=official_predictions(
                (self.name, {"id": id_, "pred": question.candidates[found.chosen].completion, "prob": share})
                for id_, question, found, share in zip(ids, questions, answers, shares, strict=True)
            ),
            place=f"{self.name}/{data}",
        )


class WugAdjectives(Wug):
    """Which noun a made-up adjective becomes: -ability or -ableness, -ivity or -iveness."""

    name = "wug_adj"
    prefixes = ("wug_adj",)


class WugPastTenses(Wug):
    """Which past tense a made-up verb has."""

    name = "wug_past"
    prefixes = ("wug_past",)


def share_of_first(scores: Sequence[TextScore]) -> float:
    """Probability of the first text among the texts (softmax of the log-likelihoods)."""
    values = np.array([score.log_likelihood for score in scores])
    likelihood = np.exp(values - values.max())
    return float(likelihood[0] / likelihood.sum())
