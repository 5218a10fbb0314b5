"""Tasks in which the right one among several texts should be the most likely: BLiMP, EWoK, entity tracking, COMPS.

Inflecting words that do not exist: does the model hesitate where people do?

Adjectives made nouns (Hofmann et al. 2024, arXiv 2411.07990) and past tenses (Weissweiler et al. 2023,
arXiv 2310.15113): candidates that differ in the made-up form, with the share of people who chose the first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ltg_mdlm.data.records import Record, read_minimal_pairs, read_records
from ltg_mdlm.evaluation.statistics import spearman
from ltg_mdlm.evaluation.tasks import Task, TaskResult, ask, data_name
from ltg_mdlm.inference.choices import Answer, accuracy_by_group, answer, pair_questions
from ltg_mdlm.inference.texts import Question, Scorer, Text, TextScore


class MultipleChoice(Task):
    """Accuracy, in each group of questions and on average over the groups."""

    validated: ClassVar[bool] = True

    @abstractmethod
    def read(self, path: Path) -> list[Question]:
        """The questions of a folder or file, in order.  Raises UserError for data that cannot be read."""

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Ask all questions; ties count what guessing among them would, and their share is reported."""
        questions = self.read(path)
        scores = ask(scorer, [question.candidates for question in questions])
        return self.grade(data_name(path), questions, scores)

    def grade(self, data: str, questions: Sequence[Question], scores: Sequence[Sequence[TextScore]]) -> TaskResult:
        """The result of questions whose candidates have these scores."""
        answers = [answer(question, scored) for question, scored in zip(questions, scores, strict=True)]
        breakdown = accuracy_by_group(questions, answers)
        ids = numbered(question.uid for question in questions)
        return TaskResult(
            task=self.name,
            data=data,
            metric="accuracy",
            figures={"accuracy": self.macro(breakdown["UID"]), **rates(answers)},
            questions=len(questions),
            breakdown=breakdown,
            items=[item(*parts) for parts in zip(ids, questions, scores, answers, strict=True)],
            predictions=official_predictions(
                (question.uid, {"id": id_, "pred": self.said(question.candidates[found.chosen])})
                for id_, question, found in zip(ids, questions, answers, strict=True)
            ),
            place=f"{self.name}/{data}",
            validated=self.validated,
        )

    def macro(self, accuracy_by_uid: Mapping[str, float]) -> float:
        """The mean over groups, each counting the same."""
        return fmean(accuracy_by_uid.values())

    def said(self, text: Text) -> str:
        """How the official predictions show a chosen candidate."""
        return text.completion


def rates(answers: Sequence[Answer]) -> dict[str, float]:
    """`tie_rate`; for estimated scores also `undecided_rate`: the share of margins within two standard errors of 0."""
    found = {"tie_rate": fmean(answer.tied for answer in answers)}
    if any(answer.margin_error for answer in answers):
        found["undecided_rate"] = fmean(not abs(answer.margin) > 2 * answer.margin_error for answer in answers)
    return found


def numbered(uids: Iterable[str]) -> list[str]:
    """Ids of questions: each group's name and the number within the group, from 0."""
    seen: dict[str, int] = defaultdict(int)
    ids = []
    for uid in uids:
        ids.append(f"{uid}_{seen[uid]}")
        seen[uid] += 1
    return ids


def item(id_: str, question: Question, scores: Sequence[TextScore], found: Answer) -> dict[str, Any]:
    """One question's row of `items.jsonl`."""
    row = {
        "id": id_,
        "uid": question.uid,
        "correct": found.correct,
        "log_likelihoods": [score.log_likelihood for score in scores],
        "tokens": [score.tokens for score in scores],
    }
    errors = [score.standard_error for score in scores]
    return row | {"standard_errors": errors, "margin_error": found.margin_error} if any(errors) else row


def official_predictions(rows: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """{group: {"predictions": [row, ...]}} from (group, row)"""
    predictions: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for uid, row in rows:
        predictions.setdefault(uid, {"predictions": []})["predictions"].append(row)
    return predictions


class Blimp(MultipleChoice):
    """Minimal pairs of sentences, in the format of BLiMP, and the supplement of the BabyLM evaluation."""

    name = "blimp"
    prefixes = ("blimp", "supplement")
    fields = frozenset({"sentence_good", "sentence_bad"})

    def read(self, path: Path) -> list[Question]:
        """The two sentences, whole."""
        return pair_questions(read_minimal_pairs(path))


class _Rows(MultipleChoice):
    """Questions that are one row each."""

    validated = False

    def read(self, path: Path) -> list[Question]:
        """One question per row."""
        return [self.question(record) for record in read_records(path)]

    @staticmethod
    @abstractmethod
    def question(record: Record) -> Question:
        """The question of a row.  Raises UserError for a malformed one."""


class Ewok(_Rows):
    """Elements of World Knowledge (Ivanova et al. 2024, arXiv 2405.09605): the plausible target after a context."""

    name = "ewok"
    prefixes = ("ewok",)
    fields = frozenset({"Context1", "Target1", "Target2"})

    @staticmethod
    def question(record: Record) -> Question:
        """Both targets after the first context."""
        context = record.text("Context1")
        uid = record.label("Domain", record.file.stem)
        divisions = {"context_type": "ContextType", "context_contrast": "ContextDiff", "target_contrast": "TargetDiff"}
        return Question(
            (Text(context, f" {record.text('Target1')}"), Text(context, f" {record.text('Target2')}")),
            uid,
            groups=(("UID", uid), *((name, str(record.values.get(key))) for name, key in divisions.items())),
        )


class EntityTracking(_Rows):
    """Where things are after some operations (Kim and Schuster 2023, arXiv 2305.02363): the true state comes first."""

    name = "entity_tracking"
    prefixes = ("entity_tracking",)
    fields = frozenset({"input_prefix", "options", "numops"})
    splits = ("regular", "ambiref", "move_contents")

    @staticmethod
    def question(record: Record) -> Question:
        """All options after the story."""
        story = record.text("input_prefix")
        uid = f"{record.file.stem}_{record.count('numops')}_ops"
        return Question(tuple(Text(story, option) for option in record.texts("options", at_least=2)), uid)

    def macro(self, accuracy_by_uid: Mapping[str, float]) -> float:
        """The mean over the splits that are there, of the mean over the numbers of operations within each."""
        splits: dict[str, list[float]] = defaultdict(list)
        for uid, accuracy in accuracy_by_uid.items():
            splits[next((split for split in self.splits if uid.startswith(split)), uid)].append(accuracy)
        return fmean(map(fmean, splits.values()))


class Comps(_Rows):
    """Conceptual minimal pairs (Misra et al. 2023, arXiv 2210.01963): one property after two subjects."""

    name = "comps"
    prefixes = ("comps",)
    fields = frozenset({"prefix_acceptable", "prefix_unacceptable", "property_phrase"})

    @staticmethod
    def question(record: Record) -> Question:
        """The same phrase after either subject."""
        phrase = record.text("property_phrase")
        subjects = (record.text("prefix_acceptable"), record.text("prefix_unacceptable"))
        uid = record.file.stem.removeprefix("comps_").replace("-", "_")
        return Question(tuple(Text(f"{subject} ", phrase) for subject in subjects), uid)

    def said(self, text: Text) -> str:
        """The whole sentence, since the completions do not differ."""
        return text.prefix + text.completion


TASKS: tuple[MultipleChoice, ...] = (Blimp(), Ewok(), EntityTracking(), Comps())
"""Minimal pairs, and other questions with one right answer."""


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
