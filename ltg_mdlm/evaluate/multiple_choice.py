"""Tasks in which the right one among several texts should be the most likely: BLiMP, EWoK, entity tracking, COMPS."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

from ltg_mdlm.evaluate.pair_files import MinimalPair, read_minimal_pairs
from ltg_mdlm.evaluate.records import Record, read_records
from ltg_mdlm.evaluate.tasks import Task, TaskResult, ask, data_name
from ltg_mdlm.evaluate.texts import Question, Scorer, Text, TextScore, standard_error


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
