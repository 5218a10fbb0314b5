"""Multiple choice: BLiMP, EWoK, entity tracking, COMPS; and WUG, where people disagree about the right answer.

A model chooses the candidate with the highest score.
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
        """The questions of a folder or file, in order. Raises UserError for data that cannot be read."""

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Score all candidates. Ties count as a random guess among the best; the tie rate is reported."""
        questions = self.read(path)
        scores = ask(scorer, [question.candidates for question in questions])
        answers = [answer(question, scored) for question, scored in zip(questions, scores, strict=True)]
        breakdown = accuracy_by_group(questions, answers)
        figures = {"accuracy": self.macro(breakdown["UID"]), "tie_rate": fmean(found.tied for found in answers)}
        if any(found.margin_error for found in answers):  # estimated scores: margins within two standard errors of 0
            figures["undecided_rate"] = fmean(not abs(found.margin) > 2 * found.margin_error for found in answers)
        ids = number_within_uid(questions)
        data = data_name(path)
        return TaskResult(
            task=self.name,
            data=data,
            metric="accuracy",
            figures=figures,
            questions=len(questions),
            breakdown=breakdown,
            items=[item(*parts) for parts in zip(ids, questions, scores, answers, strict=True)],
            predictions=official_predictions(
                (question.uid, {"id": id_, "pred": self.prediction(question.candidates[found.chosen])})
                for id_, question, found in zip(ids, questions, answers, strict=True)
            ),
            place=f"{self.name}/{data}",
            validated=self.validated,
        )

    def macro(self, accuracy_by_uid: Mapping[str, float]) -> float:
        """The unweighted mean over the uids."""
        return fmean(accuracy_by_uid.values())

    def prediction(self, chosen: Text) -> str:
        """The chosen candidate in the official predictions."""
        return chosen.completion


class Blimp(MultipleChoice):
    """Minimal pairs of sentences in the format of BLiMP, and the supplement of the BabyLM evaluation."""

    name = "blimp"
    prefixes = ("blimp", "supplement")
    fields = frozenset({"sentence_good", "sentence_bad"})

    def read(self, path: Path) -> list[Question]:
        """The two whole sentences."""
        return pair_questions(read_minimal_pairs(path))


class _OneQuestionPerRow(MultipleChoice):
    validated = False

    def read(self, path: Path) -> list[Question]:
        return [self.question(record) for record in read_records(path)]

    @staticmethod
    @abstractmethod
    def question(record: Record) -> Question:
        """The question of a row. Raises UserError if it is malformed."""


class Ewok(_OneQuestionPerRow):
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


class EntityTracking(_OneQuestionPerRow):
    """States of entities after operations (Kim and Schuster 2023, arXiv 2305.02363); the true state is the first."""

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
        """The mean over the splits in the data of the mean over the numbers of operations within each split."""
        splits: dict[str, list[float]] = defaultdict(list)
        for uid, accuracy in accuracy_by_uid.items():
            splits[next((split for split in self.splits if uid.startswith(split)), uid)].append(accuracy)
        return fmean(map(fmean, splits.values()))


class Comps(_OneQuestionPerRow):
    """Conceptual minimal pairs (Misra et al. 2023, arXiv 2210.01963): one property after two subjects."""

    name = "comps"
    prefixes = ("comps",)
    fields = frozenset({"prefix_acceptable", "prefix_unacceptable", "property_phrase"})

    @staticmethod
    def question(record: Record) -> Question:
        """The same phrase after each subject."""
        phrase = record.text("property_phrase")
        subjects = (record.text("prefix_acceptable"), record.text("prefix_unacceptable"))
        uid = record.file.stem.removeprefix("comps_").replace("-", "_")
        return Question(tuple(Text(f"{subject} ", phrase) for subject in subjects), uid)

    def prediction(self, chosen: Text) -> str:
        """The whole sentence, because the completions are equal."""
        return chosen.prefix + chosen.completion


TASKS: tuple[MultipleChoice, ...] = (Blimp(), Ewok(), EntityTracking(), Comps())
"""The tasks in which every question has one right answer."""


class RatedQuestion(NamedTuple):
    """Candidates, and how people chose among them."""

    question: Question
    ratio: float
    """Share of people who chose the first candidate."""


class Wug(Task):
    """Inflection of made-up words: rank correlation between the preference of the model and the preference of people.

    The preference is the probability of the first candidate among the candidates.
    """

    fields = frozenset({"sentences", "ratio"})

    def read(self, path: Path) -> list[RatedQuestion]:
        """Candidates are separated by tabs. Raises UserError for data that cannot be read."""
        rated = []
        for record in read_records(path):
            sentences = record.text("sentences").split("\t")
            if len(sentences) < 2 or not all(sentence.strip() for sentence in sentences):
                raise record.error("sentences", "at least two candidates with a tab between them")
            ratio = record.number("ratio")
            if not 0 <= ratio <= 1:
                raise record.error("ratio", "a share in 0..1")
            candidates = tuple(Text("", sentence) for sentence in sentences)
            rated.append(RatedQuestion(Question(candidates, self.name), ratio))
        return rated

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Score all candidates as whole sentences."""
        rated = self.read(path)
        questions = [entry.question for entry in rated]
        scores = ask(scorer, [question.candidates for question in questions])
        answers = [answer(question, scored) for question, scored in zip(questions, scores, strict=True)]
        shares = [share_of_first(scored) for scored in scores]
        ids = number_within_uid(questions)
        rho = spearman(shares, [entry.ratio for entry in rated])
        data = data_name(path)
        return TaskResult(
            task=self.name,
            data=data,
            metric="spearman",
            figures={"spearman": rho, "tie_rate": fmean(found.tied for found in answers)},
            questions=len(questions),
            breakdown={"UID": {"avg": rho}},
            items=[
                item(id_, entry.question, scored, found) | {"share": share, "human_share": entry.ratio}
                for id_, entry, scored, found, share in zip(ids, rated, scores, answers, shares, strict=True)
            ],
            predictions=official_predictions(
                (self.name, {"id": id_, "pred": question.candidates[found.chosen].completion, "prob": share})
                for id_, question, found, share in zip(ids, questions, answers, shares, strict=True)
            ),
            place=f"{self.name}/{data}",
        )


class WugAdjectives(Wug):
    """Nouns of made-up adjectives: -ability or -ableness, -ivity or -iveness (Hofmann et al., arXiv 2411.07990)."""

    name = "wug_adj"
    prefixes = ("wug_adj",)


class WugPastTenses(Wug):
    """Past tenses of made-up verbs (Weissweiler et al. 2023, arXiv 2310.15113)."""

    name = "wug_past"
    prefixes = ("wug_past",)


def share_of_first(scores: Sequence[TextScore]) -> float:
    """Probability of the first text among the texts (softmax of the log-likelihoods)."""
    values = np.array([score.log_likelihood for score in scores])
    likelihood = np.exp(values - values.max())
    return float(likelihood[0] / likelihood.sum())


def number_within_uid(questions: Iterable[Question]) -> list[str]:
    """Ids of the questions: the uid, and the number within the uid, from 0."""
    seen: dict[str, int] = defaultdict(int)
    ids = []
    for question in questions:
        ids.append(f"{question.uid}_{seen[question.uid]}")
        seen[question.uid] += 1
    return ids


def item(id_: str, question: Question, scores: Sequence[TextScore], found: Answer) -> dict[str, Any]:
    """The row of a question in `items.jsonl`."""
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
    """{uid: {"predictions": [row, ...]}} from (uid, row)."""
    predictions: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for uid, row in rows:
        predictions.setdefault(uid, {"predictions": []})["predictions"].append(row)
    return predictions
