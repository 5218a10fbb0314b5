"""The classification tasks of the BabyLM evaluation suite, and their files: JSON, one object per line.

Tasks are those of GLUE (Wang et al. 2019, arXiv 1804.07461) and SuperGLUE (arXiv 1905.00537) that the suite of 2025
kept; every one of them is put to a model as a pair of texts.

Accuracy, F1 and Matthews correlation of predicted classes.

How a model is fine-tuned: the settings of the BabyLM evaluation suite of 2025, each of which can be changed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from pydantic import Field

from ltg_mdlm.core.config import Fraction, Section
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import Layer, did_you_mean, merge, parse_set, validate
from ltg_mdlm.data.records import Record, read_records

MetricName = Literal["accuracy", "f1", "mcc"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked, and what is right about it in the official suite.

    Attributes:
        first, second: the two texts, with the names of a row's fields in braces.
        labels: number of classes; labels are 0 .. labels - 1.
        selects: the validation metric that the best epoch is chosen by.
        published: settings in which the task departs from the others.
    """

    name: str
    first: str
    second: str
    labels: int = 2
    selects: MetricName = "accuracy"
    published: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[MetricName, ...]:
        """What is reported; F1 and MCC are those of label 1, so they need two classes."""
        return ("accuracy", "f1", "mcc") if self.labels == 2 else ("accuracy",)


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(name="boolq", first="{question}", second="{passage}", published={"batch_rows": 16}),
        Task(
            name="multirc",
            first="Question: {question} Answer: {answer}",
            second="{paragraph}",
            published={"batch_rows": 16},
        ),
        Task(name="mnli", first="{premise}", second="{hypothesis}", labels=3),
        Task(name="rte", first="{sentence1}", second="{sentence2}"),
        Task(name="mrpc", first="{sentence1}", second="{sentence2}", selects="f1"),
        Task(name="qqp", first="{question1}", second="{question2}", selects="f1"),
        Task(
            name="wsc",
            first='Does "{span2_text}" refer to "{span1_text}" in this passage?',
            second="{text}",
            published={"epochs": 30},
        ),
    )
}
"""By name, in the order in which they are run and shown."""


_FOLDERS = ("", "glue_filtered", "full_eval/glue_filtered")
"""Where a folder may hold the files: itself, or as the evaluation data are unpacked."""


@dataclass(frozen=True, slots=True)
class Example:
    """A pair of texts and its class."""

    first: str
    second: str
    label: int


@dataclass(frozen=True)
class TaskFiles:
    """The two splits of a task."""

    task: Task
    train: Path
    valid: Path

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of either file, by split."""
        files = {"train": self.train, "valid": self.valid}
        return {split: hashlib.sha256(file.read_bytes()).hexdigest() for split, file in files.items()}


def find_tasks(data: Path, names: Sequence[str] = ()) -> list[TaskFiles]:
    """The files `<task>.train.jsonl` and `<task>.valid.jsonl` of the tasks of these names; without names, of all there.

    `data` is a folder with the files, an evaluation data folder that has them below, or one of the files.

    Raises UserError for an unknown task, one that is not there, and one without its other file.
    """
    for name in names:
        if name not in TASKS:
            raise UserError(
                f"--task {name}: no such task{did_you_mean(name, TASKS)}\n  tasks: {', '.join(TASKS)}",
            )
    folder = _folder_of(data)
    there = [name for name in TASKS if _files(folder, name)]
    if data.is_file():
        there = [name for name in there if data in _files(folder, name)]
    wanted = [name for name in TASKS if name in names] or there
    if not wanted:
        raise UserError(f"{data}: no task here; expected files named like rte.train.jsonl and rte.valid.jsonl")
    return [_complete(folder, name) for name in wanted]


def _folder_of(data: Path) -> Path:
    if not data.exists():
        raise UserError(f"{data}: no such file or folder of fine-tuning tasks")
    if data.is_file():
        return data.parent
    folders = (data / below for below in _FOLDERS)
    return next((folder for folder in folders if any(_files(folder, name) for name in TASKS)), data)


def _files(folder: Path, name: str) -> list[Path]:
    return [file for split in ("train", "valid") if (file := folder / f"{name}.{split}.jsonl").is_file()]


def _complete(folder: Path, name: str) -> TaskFiles:
    files = TaskFiles(TASKS[name], folder / f"{name}.train.jsonl", folder / f"{name}.valid.jsonl")
    for file in (files.train, files.valid):
        if not file.is_file():
            raise UserError(f"{file}: no such file; the task {name} needs {files.train.name} and {files.valid.name}")
    return files


def read_examples(file: Path, task: Task) -> list[Example]:
    """The rows of one file, in order.

    Raises UserError, naming the line, for a row that lacks a text or has a label that the task does not know.
    """
    return [_example(record, task) for record in read_records(file)]


def _example(record: Record, task: Task) -> Example:
    label = record.values.get("label")
    if not isinstance(label, int) or not 0 <= label < task.labels:
        raise record.error("label", f"{' or '.join(map(str, range(task.labels)))}, as {task.name} has them")
    return Example(_fill(task.first, record), _fill(task.second, record), int(label))


def _fill(template: str, record: Record) -> str:
    keys = [key for _, key, _, _ in Formatter().parse(template) if key]
    return template.format_map({key: _text(record, key) for key in keys})


def _text(record: Record, key: str) -> str:
    """A text, which may be blank, as some questions of QQP are."""
    value = record.values.get(key)
    return value if isinstance(value, str) and not value.strip() else record.text(key)


def scores(task: Task, labels: Sequence[int], predictions: Sequence[int]) -> dict[MetricName, float]:
    """The metrics of a task, each at most 1."""
    return {name: _METRICS[name](labels, predictions) for name in task.metrics}


def accuracy(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Share of the predictions that are right."""
    return sum(label == prediction for label, prediction in zip(labels, predictions, strict=True)) / len(labels)


def f1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Harmonic mean of precision and recall of label 1; 0 where label 1 is neither there nor predicted."""
    both, predicted, there = _of_label_1(labels, predictions)
    return 2 * both / (predicted + there) if predicted + there else 0.0


def mcc(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Matthews correlation of two classes: Pearson's, of labels and predictions; 0 where either is constant."""
    both, predicted, there = _of_label_1(labels, predictions)
    rows = len(labels)
    variance = predicted * (rows - predicted) * there * (rows - there)
    return (rows * both - predicted * there) / math.sqrt(variance) if variance else 0.0


def _of_label_1(labels: Sequence[int], predictions: Sequence[int]) -> tuple[int, int, int]:
    """How often it is both predicted and right, how often it is predicted, how often it is right."""
    both = sum(label * prediction for label, prediction in zip(labels, predictions, strict=True))
    return both, sum(predictions), sum(labels)


_METRICS: Mapping[MetricName, Callable[[Sequence[int], Sequence[int]], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "mcc": mcc,
}


class FinetuneSettings(Section):
    """Settings of one fine-tuning; the defaults are the published ones, but for what a task has its own value of."""

    lr: float = Field(3e-5, gt=0, description="highest learning rate")
    batch_rows: int = Field(32, ge=1, description="rows per step; 16 for boolq and multirc")
    epochs: int = Field(10, ge=1, description="passes over the training file; 30 for wsc")
    seq_len: int = Field(512, ge=8, description="tokens per row; longer pairs of texts are cut")
    warmup: Fraction = Field(0.06, description="share of the steps in which the learning rate grows")
    final_factor: Fraction = Field(0.1, description="learning-rate factor that the cosine ends in")
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="of all parameters")
    clip: float | None = Field(None, gt=0, description="largest global gradient norm; null: no clipping, as published")
    dropout: float | None = Field(None, ge=0, lt=1, description="in the model; null: as it was trained")
    head_dropout: float = Field(0.1, ge=0, lt=1, description="before the last layer of the classifier")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the device computes it natively"
    )


def settings_of(task: Task, sets: Sequence[str] = ()) -> FinetuneSettings:
    """The published settings of a task, changed by `key=value` texts.

    Raises UserError for a key that is unknown or a value that does not fit.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in (Layer(f"the published settings of {task.name}", task.published), *map(parse_set, sets)):
        merge(values, layer.values, layer.source, sources, "finetune.")
    settings: FinetuneSettings = validate(FinetuneSettings, values, sources, "finetune.")
    return settings
