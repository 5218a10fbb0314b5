"""The classification tasks of the BabyLM evaluation suite of 2025: their files, metrics and published settings.

The tasks are the subset of GLUE (Wang et al. 2019, arXiv 1804.07461) and SuperGLUE (arXiv 1905.00537) in the suite.
Every example is a pair of texts with a class. Files are JSON lines.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
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
class FinetuneTask:
    """A classification task.

    Attributes:
        first, second: templates of the two texts, with field names of a row in braces.
        labels: number of classes; labels are 0 .. labels - 1.
        selects: the validation metric that selects the best epoch.
        published: published settings that differ from the defaults of `FinetuneSettings`.
    """

    name: str
    first: str
    second: str
    labels: int = 2
    selects: MetricName = "accuracy"
    published: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[MetricName, ...]:
        """The reported metrics; F1 and MCC are defined for two classes."""
        return ("accuracy", "f1", "mcc") if self.labels == 2 else ("accuracy",)


FINETUNE_TASKS: Mapping[str, FinetuneTask] = {
    task.name: task
    for task in (
        FinetuneTask(name="boolq", first="{question}", second="{passage}", published={"batch_rows": 16}),
        FinetuneTask(
            name="multirc",
            first="Question: {question} Answer: {answer}",
            second="{paragraph}",
            published={"batch_rows": 16},
        ),
        FinetuneTask(name="mnli", first="{premise}", second="{hypothesis}", labels=3),
        FinetuneTask(name="rte", first="{sentence1}", second="{sentence2}"),
        FinetuneTask(name="mrpc", first="{sentence1}", second="{sentence2}", selects="f1"),
        FinetuneTask(name="qqp", first="{question1}", second="{question2}", selects="f1"),
        FinetuneTask(
            name="wsc",
            first='Does "{span2_text}" refer to "{span1_text}" in this passage?',
            second="{text}",
            published={"epochs": 30},
        ),
    )
}
"""By name, in the order in which they are run and shown."""

_FOLDERS = ("", "glue_filtered", "full_eval/glue_filtered")
"""Places of the files below a given folder: the folder itself, or the folders of the published evaluation data."""


class FinetuneSettings(Section):
    """Settings of fine-tuning. The defaults are the published settings; tasks may have other published values."""

    lr: float = Field(3e-5, gt=0, description="highest learning rate")
    batch_rows: int = Field(32, ge=1, description="rows per step; 16 for boolq and multirc")
    epochs: int = Field(10, ge=1, description="passes over the training file; 30 for wsc")
    seq_len: int = Field(512, ge=8, description="tokens per row; longer pairs of texts are cut")
    warmup: Fraction = Field(0.06, description="share of the steps with a rising learning rate")
    final_factor: Fraction = Field(0.1, description="learning-rate factor at the end of the cosine")
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="of all parameters")
    clip: float | None = Field(None, gt=0, description="largest global gradient norm; null: no clipping, as published")
    dropout: float | None = Field(None, ge=0, lt=1, description="in the model; null: as it was trained")
    head_dropout: float = Field(0.1, ge=0, lt=1, description="before the last layer of the classifier")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the device computes it natively"
    )


def settings_of(task: FinetuneTask, sets: Sequence[str] = ()) -> FinetuneSettings:
    """The published settings of a task, changed by `key=value` texts.

    Raises UserError for an unknown key or an invalid value.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in (Layer(f"the published settings of {task.name}", task.published), *map(parse_set, sets)):
        merge(values, layer.values, layer.source, sources, "finetune.")
    settings: FinetuneSettings = validate(FinetuneSettings, values, sources, "finetune.")
    return settings


@dataclass(frozen=True)
class TaskFiles:
    """The two files of a task."""

    task: FinetuneTask
    train: Path
    valid: Path

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of both files, by split."""
        files = {"train": self.train, "valid": self.valid}
        return {split: hashlib.sha256(file.read_bytes()).hexdigest() for split, file in files.items()}


def find_tasks(data: Path, names: Sequence[str] = ()) -> list[TaskFiles]:
    """The files `<task>.train.jsonl` and `<task>.valid.jsonl` of the named tasks, by default of all tasks in `data`.

    `data` is a folder with the files, an evaluation data folder that contains them, or one of the files.

    Raises UserError for an unknown task, a missing task, and a task with only one of its files.
    """
    for name in names:
        if name not in FINETUNE_TASKS:
            raise UserError(
                f"--task {name}: no such task{did_you_mean(name, FINETUNE_TASKS)}\n  tasks: {', '.join(FINETUNE_TASKS)}"
            )
    if not data.exists():
        raise UserError(f"{data}: no such file or folder of fine-tuning tasks")

    def files_of(folder: Path, name: str) -> list[Path]:
        return [folder / f"{name}.{split}.jsonl" for split in ("train", "valid")]

    def tasks_in(folder: Path) -> list[str]:
        return [name for name in FINETUNE_TASKS if any(file.is_file() for file in files_of(folder, name))]

    if data.is_file():
        folder = data.parent
        present = [name for name in tasks_in(folder) if data in files_of(folder, name)]
    else:
        folder = next((data / below for below in _FOLDERS if tasks_in(data / below)), data)
        present = tasks_in(folder)
    wanted = [name for name in FINETUNE_TASKS if name in names] or present
    if not wanted:
        raise UserError(f"{data}: no task here; expected files named like rte.train.jsonl and rte.valid.jsonl")
    found = [TaskFiles(FINETUNE_TASKS[name], *files_of(folder, name)) for name in wanted]
    for task, train, valid in ((files.task, files.train, files.valid) for files in found):
        for file in (train, valid):
            if not file.is_file():
                raise UserError(f"{file}: no such file; the task {task.name} needs {train.name} and {valid.name}")
    return found


@dataclass(frozen=True, slots=True)
class Example:
    """A pair of texts and its class."""

    first: str
    second: str
    label: int


def read_examples(file: Path, task: FinetuneTask) -> list[Example]:
    """The rows of one file, in order.

    Raises UserError with the line number for a row without one of its texts or with an invalid label.
    """
    examples = []
    for record in read_records(file):
        label = record.values.get("label")
        if not isinstance(label, int) or not 0 <= label < task.labels:
            raise record.error("label", f"{' or '.join(map(str, range(task.labels)))}, as {task.name} has them")
        examples.append(Example(_fill(task.first, record), _fill(task.second, record), int(label)))
    return examples


def _fill(template: str, record: Record) -> str:
    """A template with the texts of a row, which may be blank, as some questions of QQP are."""
    texts = {}
    for key in (key for _, key, _, _ in Formatter().parse(template) if key):
        value = record.values.get(key)
        texts[key] = value if isinstance(value, str) and not value.strip() else record.text(key)
    return template.format_map(texts)


def scores(task: FinetuneTask, labels: Sequence[int], predictions: Sequence[int]) -> dict[MetricName, float]:
    """The metrics of a task.

    F1 is that of label 1, and 0 if label 1 neither occurs nor is predicted. MCC is the Matthews correlation of two
    classes, and 0 if labels or predictions are constant.
    """
    rows = len(labels)
    right = sum(label == prediction for label, prediction in zip(labels, predictions, strict=True))
    found: dict[MetricName, float] = {"accuracy": right / rows}
    if "f1" in task.metrics:
        both = sum(label * prediction for label, prediction in zip(labels, predictions, strict=True))
        predicted, actual = sum(predictions), sum(labels)
        found["f1"] = 2 * both / (predicted + actual) if predicted + actual else 0.0
        variance = predicted * (rows - predicted) * actual * (rows - actual)
        found["mcc"] = (rows * both - predicted * actual) / math.sqrt(variance) if variance else 0.0
    return found
