"""Zero-shot tasks in which a model chooses among texts: how files are read, how candidates are scored, and how answers
are counted and written.

A task is data: a `ChoiceTask` says how a row becomes a question, and everything else is the same for all of them. The
protocol of 2026 is that of the BabyLM pipeline since July 2026; the protocol of 2025 differs in EWoK, in entity
tracking, in ties, and has WUG instead of GlobalPIQA. A new task is a function from a row to a question, and
an entry of `CHOICE_TASKS`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.random import stream_key
from ltg_mdlm.data.records import Record, read_minimal_pairs, read_records
from ltg_mdlm.evaluation.statistics import Floats, PairedDifferences, spearman
from ltg_mdlm.evaluation.tasks import Task, TaskResult, ask, data_name
from ltg_mdlm.inference.choices import Answer, accuracy_by_group, answer, pair_questions
from ltg_mdlm.inference.texts import Question, Scorer, Text, TextScore

Protocol = Literal["2026", "2025"]
"""The year of the rules of the BabyLM evaluation."""

Ties = Literal["random", "first"]


@dataclass(frozen=True, kw_only=True)
class ChoiceTask(Task):
    """A task in which the candidate with the highest log-likelihood is the model's answer.

    Attributes:
        key: key of the predictions in the collated file of a submission.
        read: the questions of a folder or file, in order.
        per_token: whether log-likelihoods are divided by the number of scored tokens before they are compared.
        predicts: what is written as the prediction: the completion of the chosen candidate, or its whole text.
        subtotals: the accuracies that are averaged, from the accuracies of the uids.
        ties: which of several equally likely candidates is written as the prediction. A random candidate is a function
            of the question, so that a repeated evaluation writes the same file.
        validated: whether the task was checked on the published files.
    """

    key: str
    read: Callable[[Path], list[Question]]
    per_token: bool = False
    predicts: Literal["completion", "text"] = "completion"
    subtotals: Callable[[Mapping[str, float]], dict[str, float]] = dict
    ties: Ties = "random"
    validated: bool = False

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Score all candidates.

        In the accuracy, a tie counts as a random guess among the best; the tie rate is reported. A likelihood that is
        not a number is lower than all others, as in the official pipeline, and the rate of these is reported.

        Raises UserError for data that cannot be read, and if no likelihood is a number.
        """
        questions = self.read(path)
        if not questions:
            raise UserError(f"{path}: no row is a question of {self.name}")
        scores = scorer([question.candidates for question in questions], per_token=self.per_token)
        broken_rate = fmean(math.isnan(score.log_likelihood) for scored in scores for score in scored)
        if broken_rate == 1:
            raise UserError(f"{path}: no likelihood is a number; the weights of the model may be broken")
        answers = [answer(question, scored) for question, scored in zip(questions, scores, strict=True)]
        data, breakdown = data_name(path), accuracy_by_group(questions, answers)
        figures = {
            "accuracy": self.macro(breakdown["UID"]),
            "standard_error": self._standard_error(questions, answers),
            "chance": self.macro(_mean_by_uid(questions, [1 / len(question.candidates) for question in questions])),
            "tie_rate": fmean(found.tied for found in answers),
        }
        if broken_rate:
            figures["nan_rate"] = broken_rate
        if any(found.margin_error for found in answers):  # estimated scores: margins within two standard errors of 0
            figures["undecided_rate"] = fmean(not abs(found.margin) > 2 * found.margin_error for found in answers)
        ids = number_within_uid(questions)
        breakdown["UID"] |= self.subtotals(breakdown["UID"])  # the official report lists both
        return TaskResult(
            task=self.name,
            data=data,
            metric="accuracy",
            figures=figures,
            questions=len(questions),
            breakdown=breakdown,
            items=[item(*parts) for parts in zip(ids, questions, scores, answers, strict=True)],
            predictions=official_predictions(
                (official_uid(question), {"id": id_, "pred": self._prediction(question, found, id_)})
                for id_, question, found in zip(ids, questions, answers, strict=True)
            ),
            place=f"{self.name}/{data}",
            validated=self.validated,
        )

    def macro(self, accuracy_by_uid: Mapping[str, float]) -> float:
        """The accuracy of the task: the unweighted mean of the subtotals."""
        return fmean(self.subtotals(accuracy_by_uid).values())

    def weights(self, uids: Sequence[str]) -> Floats:
        """float64[U]: the weight of the accuracy of each uid in the macro average, which is linear in them."""
        return np.array([self.macro({name: float(name == one) for name in uids}) for one in uids])

    def _standard_error(self, questions: Sequence[Question], answers: Sequence[Answer]) -> float:
        """Over new questions of each uid; NaN if a uid has only one question."""
        uids = list(dict.fromkeys(question.uid for question in questions))
        number = {uid: i for i, uid in enumerate(uids)}
        uid_I = np.array([number[question.uid] for question in questions])
        correct_I = np.array([found.correct for found in answers])
        return math.sqrt(PairedDifferences(correct_I, uid_I, self.weights(uids)).variance)

    def _prediction(self, question: Question, found: Answer, id_: str) -> str:
        drawn = stream_key("tie", self.name, id_)[0] % len(found.best) if self.ties == "random" else 0
        return self.written(question.candidates[found.best[drawn]])

    def written(self, candidate: Text) -> str:
        """What is written as the prediction if this candidate is chosen."""
        return candidate.completion if self.predicts == "completion" else candidate.prefix + candidate.completion


def each_row(question: Callable[[Record], Question | None]) -> Callable[[Path], list[Question]]:
    """A reader of JSONL files with one question per row; None leaves a row out."""

    def read(path: Path) -> list[Question]:
        found = (question(record) for record in read_records(path))
        return [one for one in found if one is not None]

    return read


def _mean_by_uid(questions: Sequence[Question], values: Sequence[float]) -> dict[str, float]:
    grouped: dict[str, list[float]] = defaultdict(list)
    for question, value in zip(questions, values, strict=True):
        grouped[official_uid(question)].append(value)
    return {uid: fmean(group) for uid, group in grouped.items()}


def official_uid(question: Question) -> str:
    """The uid in the official predictions and reports."""
    return dict(question.groups).get("UID", question.uid)


def number_within_uid(questions: Iterable[Question]) -> list[str]:
    """Ids of the questions: the official uid, and the number within the uid, from 0."""
    seen: dict[str, int] = defaultdict(int)
    ids = []
    for uid in map(official_uid, questions):
        ids.append(f"{uid}_{seen[uid]}")
        seen[uid] += 1
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


# The tasks.

BLIMP = ChoiceTask(
    name="blimp",
    key="blimp",
    prefixes=("blimp",),
    fields=frozenset({"sentence_good", "sentence_bad"}),
    read=lambda path: pair_questions(read_minimal_pairs(path)),
    validated=True,
)
"""Minimal pairs of whole sentences (Warstadt et al. 2020, arXiv 1912.00582)."""

SUPPLEMENT = replace(BLIMP, key="blimp_supplement", prefixes=("supplement",), fields=None)
"""The minimal pairs that the BabyLM evaluation adds, in the format of BLiMP."""


def _ewok(record: Record, candidates: tuple[Text, Text]) -> Question:
    uid = record.label("Domain", record.file.stem)
    divisions = {"context_type": "ContextType", "context_contrast": "ContextDiff", "target_contrast": "TargetDiff"}
    groups = (("UID", uid), *((name, str(record.values.get(key))) for name, key in divisions.items()))
    return Question(candidates, uid, groups=groups)


def _ewok_by_contexts(record: Record) -> Question:
    target = f" {record.text('Target1')}"
    return _ewok(record, (Text(record.text("Context1"), target), Text(record.text("Context2"), target)))


def _ewok_by_targets(record: Record) -> Question:
    context = record.text("Context1")
    return _ewok(record, (Text(context, f" {record.text('Target1')}"), Text(context, f" {record.text('Target2')}")))


EWOK = ChoiceTask(
    name="ewok",
    key="ewok",
    prefixes=("ewok",),
    fields=frozenset({"Context1", "Context2", "Target1"}),
    read=each_row(_ewok_by_contexts),
    predicts="text",
)
"""Elements of World Knowledge (Ivanova et al. 2024, arXiv 2405.09605): one target after two contexts."""

EWOK_2025 = replace(EWOK, read=each_row(_ewok_by_targets), predicts="completion")
"""Two targets after one context."""


def _entity_tracking(record: Record) -> Question:
    story = record.text("input_prefix")
    uid = f"{record.file.stem}_{record.count('numops')}_ops"
    return Question(tuple(Text(story, option) for option in record.texts("options", at_least=2)), uid)


def _entity_tracking_filtered(record: Record) -> Question | None:
    question = _entity_tracking(record)
    return None if any("nothing" in option.completion for option in question.candidates) else question


def _by_split(accuracy_by_uid: Mapping[str, float]) -> dict[str, float]:
    """Mean accuracy over the numbers of operations of each split."""
    splits: dict[str, list[float]] = defaultdict(list)
    for uid, accuracy in accuracy_by_uid.items():
        known = ("regular", "ambiref", "move_contents")
        splits[next((split for split in known if uid.startswith(split)), uid)].append(accuracy)
    return {split: fmean(accuracies) for split, accuracies in splits.items()}


ENTITY_TRACKING = ChoiceTask(
    name="entity_tracking",
    key="entity_tracking_filtered",
    prefixes=("entity_tracking",),
    fields=frozenset({"input_prefix", "options", "numops"}),
    read=each_row(_entity_tracking_filtered),
    subtotals=_by_split,
)
"""States of entities after operations (Kim and Schuster 2023, arXiv 2305.02363); the true state is the first option.

Rows with the word "nothing" in an option are left out.
"""

ENTITY_TRACKING_2025 = replace(ENTITY_TRACKING, key="entity_tracking", read=each_row(_entity_tracking))
"""All rows."""


def _comps(record: Record) -> Question:
    phrase = record.text("property_phrase")
    subjects = (record.text("prefix_acceptable"), record.text("prefix_unacceptable"))
    uid = record.file.stem.removeprefix("comps_").replace("-", "_")
    return Question(tuple(Text(f"{subject} ", phrase) for subject in subjects), uid)


COMPS = ChoiceTask(
    name="comps",
    key="comps",
    prefixes=("comps",),
    fields=frozenset({"prefix_acceptable", "prefix_unacceptable", "property_phrase"}),
    read=each_row(_comps),
    predicts="text",
)
"""Conceptual minimal pairs (Misra et al. 2023, arXiv 2210.01963): one property after two subjects."""


def _global_piqa(name: str, solutions: int) -> ChoiceTask:
    """GlobalPIQA (Chang et al. 2025, arXiv 2510.24081): solutions of an everyday problem, per scored token.

    Official reports and predictions have one uid per row; here all rows of a language are one uid, which makes no
    difference to the accuracy.
    """
    keys = [f"solution{number}" for number in range(solutions)]

    def question(record: Record) -> Question:
        prompt, example = record.text("prompt"), record.text("example_id")
        candidates = tuple(Text(prompt, f" {record.text(key)}") for key in keys)
        right = record.count("label")
        if right >= solutions:
            raise record.error("label", f"a number from 0 to {solutions - 1}")
        return Question(candidates, record.file.stem, right, groups=(("UID", example),))

    return ChoiceTask(
        name=name,
        key=name,
        prefixes=(name,),
        fields=frozenset({"prompt", "label", "example_id", *keys}),
        read=each_row(question),
        per_token=True,
    )


GLOBAL_PIQA_PARALLEL = _global_piqa("global_piqa_parallel", 4)
GLOBAL_PIQA_NONPARALLEL = _global_piqa("global_piqa_nonparallel", 2)


@dataclass(frozen=True, kw_only=True)
class RatedTask(Task):
    """A task in which people disagree: rank correlation between their preference and that of the model.

    The preference of the model is the probability of the first candidate among the candidates.
    """

    fields: frozenset[str] | None = frozenset({"sentences", "ratio"})

    def read(self, path: Path) -> list[tuple[Question, float]]:
        """Questions, and the share of people who chose the first candidate. Raises UserError for malformed data."""
        rated = []
        for record in read_records(path):
            sentences = record.text("sentences").split("\t")
            if len(sentences) < 2 or not all(sentence.strip() for sentence in sentences):
                raise record.error("sentences", "at least two candidates with a tab between them")
            ratio = record.number("ratio")
            if not 0 <= ratio <= 1:
                raise record.error("ratio", "a share in 0..1")
            rated.append((Question(tuple(Text("", sentence) for sentence in sentences), self.name), ratio))
        return rated

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Score all candidates as whole sentences."""
        questions, human_shares = zip(*self.read(path), strict=True)
        scores = ask(scorer, [question.candidates for question in questions])
        answers = [answer(question, scored) for question, scored in zip(questions, scores, strict=True)]
        shares = [share_of_first(scored) for scored in scores]
        ids = number_within_uid(questions)
        rho = spearman(shares, human_shares)
        data = data_name(path)
        return TaskResult(
            task=self.name,
            data=data,
            metric="spearman",
            figures={"spearman": rho, "tie_rate": fmean(found.tied for found in answers)},
            questions=len(questions),
            breakdown={"UID": {"avg": rho}},
            items=[
                item(id_, question, scored, found) | {"share": share, "human_share": human_share}
                for id_, question, scored, found, share, human_share in zip(
                    ids, questions, scores, answers, shares, human_shares, strict=True
                )
            ],
            predictions=official_predictions(
                (self.name, {"id": id_, "pred": question.candidates[found.best[0]].completion, "prob": share})
                for id_, question, found, share in zip(ids, questions, answers, shares, strict=True)
            ),
            place=f"{self.name}/{data}",
        )


def share_of_first(scores: Sequence[TextScore]) -> float:
    """Probability of the first text among the texts (softmax of the log-likelihoods)."""
    values = np.array([score.log_likelihood for score in scores])
    likelihood = np.exp(values - values.max())
    return float(likelihood[0] / likelihood.sum())


WUG_ADJECTIVES = RatedTask(name="wug_adj", prefixes=("wug_adj",))
"""Nouns of made-up adjectives: -ability or -ableness, -ivity or -iveness (Hofmann et al. 2024, arXiv 2411.07990)."""

WUG_PAST_TENSES = RatedTask(name="wug_past", prefixes=("wug_past",))
"""Past tenses of made-up verbs (Weissweiler et al. 2023, arXiv 2310.15113)."""


CHOICE_TASKS: Mapping[Protocol, tuple[ChoiceTask, ...]] = {
    "2026": (BLIMP, SUPPLEMENT, EWOK, ENTITY_TRACKING, COMPS, GLOBAL_PIQA_PARALLEL, GLOBAL_PIQA_NONPARALLEL),
    "2025": tuple(replace(task, ties="first") for task in (BLIMP, SUPPLEMENT, EWOK_2025, ENTITY_TRACKING_2025, COMPS)),
}
"""The tasks with right answers of each protocol."""


def same_questions(task: str, one: Protocol, other: Protocol) -> bool:
    """Whether two protocols ask the same questions in the task with this name; true if neither has the task."""

    def readers(protocol: Protocol) -> set[object]:
        return {(found.read, found.per_token) for found in CHOICE_TASKS[protocol] if found.name == task}

    return readers(one) == readers(other)


def macro_weights(task: str, uids: Sequence[str]) -> Floats:
    """float64[U]: the weight of each uid in the accuracy of the task with this name."""
    return next((found for found in CHOICE_TASKS["2026"] if found.name == task), BLIMP).weights(uids)
