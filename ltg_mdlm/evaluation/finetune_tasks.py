"""The classification tasks of the BabyLM evaluation: their files, metrics and published settings.

The tasks are the subset of GLUE (Wang et al. 2019, arXiv 1804.07461) and SuperGLUE (arXiv 1905.00537) in the suite, and
the tasks of the multilingual track. An example is a text or a pair of texts with a class, in JSON lines. In `pos`, it
is a sentence with a class for every word; see `pos_tagging`.
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
from ltg_mdlm.evaluation.multiple_choice import Protocol

MetricName = Literal["accuracy", "f1", "mcc"]

Label = int | str


@dataclass(frozen=True, kw_only=True)
class FinetuneTask:
    """A classification task.

    Attributes:
        first, second: templates of the two texts, with field names of a row in braces; None if there is no second text.
        classes: the labels of the classes; None if they are the sorted labels in the training file.
        selects: the validation metric that selects the best epoch, and that counts in the official suite.
        published: published settings that differ from the defaults of `FinetuneSettings`.
        seed: published seed.
        evaluation_batch: validation rows at the end that do not fill a batch of this size are left out, as in the
            official script.
        tags_words: whether every word has a class; the files are treebanks, and there are no templates.
        places: places of the files below a given folder of evaluation data.
    """

    name: str
    first: str = ""
    second: str | None = None
    classes: tuple[Label, ...] | None = (0, 1)
    selects: MetricName = "accuracy"
    published: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 42
    evaluation_batch: int = 1
    tags_words: bool = False
    places: tuple[str, ...] = ("", "glue_filtered", "full_eval/glue_filtered")


_GLUE = (
    FinetuneTask(name="boolq", first="{question}", second="{passage}", published={"batch_rows": 16}),
    FinetuneTask(
        name="multirc",
        first="Question: {question} Answer: {answer}",
        second="{paragraph}",
        published={"batch_rows": 16},
    ),
    FinetuneTask(name="mnli", first="{premise}", second="{hypothesis}", classes=(0, 1, 2)),
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

_MULTILINGUAL_SETTINGS = {
    "lr": 5e-5,
    "batch_rows": 64,
    "seq_len": 128,
    "warmup": 0,
    "schedule": "linear",
    "weight_decay": 0,
    "clip": 1,
    "patience": 3,
    "keep": "last",
    "pooling": "first",
}

_MULTILINGUAL = tuple(
    FinetuneTask(
        name=f"{name}_{language}",
        first="{premise}" if name in ("mnli", "xnli") else "{sentence}",
        second="{hypothesis}" if name in ("mnli", "xnli") else None,
        classes=None,
        published={**_MULTILINGUAL_SETTINGS, "head_dropout": None},
        seed=12,
        evaluation_batch=8,
        places=(
            "",
            name,
            *(
                f"{above}{language}/{name}"
                for above in ("", "classification/", "multilingual/", "finetune/data/multilingual/")
            ),
        ),
    )
    for language in ("en", "nl", "zh")
    for name in ("arc", "belebele", "bmlama", "include", "mnli", "sib200", "truthfulqa", "xnli")
)

# fmt: off
UNIVERSAL_TAGS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM",
    "PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X", "_",
)
# fmt: on
"""Parts of speech in Universal Dependencies; words that stand for several others, such as "don't", have `_`."""

TREEBANKS = {"en": "en_ewt", "nl": "nl_alpino", "zh": "zh_gsdsimp"}
"""The treebank of every language of the multilingual track, as its files are named."""

_POS = FinetuneTask(
    name="pos",
    classes=UNIVERSAL_TAGS,
    published=_MULTILINGUAL_SETTINGS,
    seed=12,
    tags_words=True,
    places=("", "pos", "multilingual/pos"),
)

FINETUNE_TASKS: Mapping[str, FinetuneTask] = {task.name: task for task in (*_GLUE, *_MULTILINGUAL, _POS)}
"""By name, in the order in which they are run and shown."""


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
    head_dropout: float | None = Field(
        0.1, ge=0, lt=1, description="before the last layer of the classifier; null: that of the model's hidden states"
    )
    pooling: Literal["last", "first"] = Field(
        "last", description="the hidden state that is classified; last: with padding on the left; first: protocol 2025"
    )
    schedule: Literal["cosine", "linear"] = Field(
        "cosine", description="learning rate after the warm-up; linear falls to 0; multilingual track: linear"
    )
    keep: Literal["best", "last"] = Field(
        "best", description="the epoch that counts; multilingual track: the last, as the official script has it"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without an improvement by 0.001; null: never"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the device computes it natively"
    )


def settings_of(task: FinetuneTask, sets: Sequence[str] = (), protocol: Protocol = "2026") -> FinetuneSettings:
    """The settings of a task that a protocol prescribes, changed by `key=value` texts.

    Raises UserError for an unknown key or an invalid value.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    published = {**({"pooling": "first"} if protocol == "2025" else {}), **task.published}
    for layer in (Layer(f"the published settings of {task.name}", published), *map(parse_set, sets)):
        merge(values, layer.values, layer.source, sources, "finetune.")
    settings: FinetuneSettings = validate(FinetuneSettings, values, sources, "finetune.")
    return settings


@dataclass(frozen=True)
class TaskFiles:
    """The files of a task.

    Attributes:
        files: by split, `train` and `valid`; of treebanks `en-train`, `en-dev`, `en-test`, `nl-train` and so on.
    """

    task: FinetuneTask
    files: Mapping[str, Path]

    @property
    def train(self) -> Path:
        return self.files["train"]

    @property
    def valid(self) -> Path:
        return self.files["valid"]

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of all files, by split."""
        return {split: hashlib.sha256(file.read_bytes()).hexdigest() for split, file in self.files.items()}


def find_tasks(data: Path, names: Sequence[str] = (), *, required: bool = True) -> list[TaskFiles]:
    """The files of the named tasks, by default of all tasks in `data`.

    They are called `<task>.train.jsonl` and `<task>.valid.jsonl`, and `en_ewt-ud-train.conllu` and so on in `pos`.
    `data` is a folder with the files, an evaluation data folder that contains them, or one of the files.

    Raises UserError for an unknown task, a missing task, a task with only some of its files, and with `required` if
    there are no tasks.
    """
    for name in names:
        if name not in FINETUNE_TASKS:
            raise UserError(
                f"--task {name}: no such task{did_you_mean(name, FINETUNE_TASKS)}\n  tasks: {', '.join(FINETUNE_TASKS)}"
            )
    if not data.exists():
        raise UserError(f"{data}: no such file or folder of fine-tuning tasks")
    wanted = []
    for task in FINETUNE_TASKS.values():
        places = [data / place for place in task.places] if data.is_dir() else [data.parent]
        sets = [files for place in places for files in _sets_of_files(task, place)]
        present = [files for files in sets if any(map(Path.is_file, files.values()))]
        if not data.is_dir():
            present = [files for files in present if data in files.values()]
        if task.name in names or (not names and present):
            # A set that is found in several places is read from the first one.
            chosen = present[::-1] or sets[:1]
            wanted.append(TaskFiles(task, {split: file for files in chosen for split, file in files.items()}))
    if not wanted and required:
        raise UserError(f"{data}: no task here; expected files named like rte.train.jsonl and rte.valid.jsonl")
    for files in wanted:
        for file in files.files.values():
            if not file.is_file():
                *others, last = (file.name for file in files.files.values())
                needed = f"{', '.join(others)} and {last}"
                raise UserError(f"{file}: no such file; the task {files.task.name} needs {needed}")
    return wanted


def _sets_of_files(task: FinetuneTask, folder: Path) -> list[dict[str, Path]]:
    """The files of a task in a folder, present or not, by split; one set per treebank."""
    if not task.tags_words:
        return [{split: folder / f"{task.name}.{split}.jsonl" for split in ("train", "valid")}]
    sets = []
    for language, treebank in TREEBANKS.items():
        # As downloaded, every treebank is in a folder of its own.
        place = next((file.parent for file in sorted(folder.glob(f"UD_*/{treebank}-ud-*.conllu"))), folder)
        sets.append(
            {f"{language}-{split}": place / f"{treebank}-ud-{split}.conllu" for split in ("train", "dev", "test")}
        )
    return sets


@dataclass(frozen=True, slots=True)
class Example:
    """A text or a pair of texts, and the index of its class."""

    first: str
    second: str | None
    label: int


def classes_of(file: Path, task: FinetuneTask) -> tuple[Label, ...]:
    """The labels of the classes of a task, whose training file is `file`.

    Raises UserError with the line number for a label that is neither text nor an integer, and for a single class.
    """
    if task.classes is not None:
        return task.classes
    labels = sorted({record.label("label", "") for record in read_records(file)})
    if len(labels) < 2:
        raise UserError(f"{file}: all rows have the label {labels[0]!r}; a classifier needs two classes")
    return tuple(labels)


def read_examples(file: Path, task: FinetuneTask, classes: Sequence[Label] | None = None) -> list[Example]:
    """The rows of one file, in order; `classes` are the labels by index, by default those of the task.

    Raises UserError with the line number for a row without one of its texts or with an unknown label.
    """
    classes = classes or task.classes
    assert classes is not None, "the training file says which classes there are"
    index = {label: i for i, label in enumerate(classes)}
    examples = []
    for record in read_records(file):
        label = record.label("label", "") if task.classes is None else record.values.get("label")
        if isinstance(label, bool) or not isinstance(label, int | str) or label not in index:
            raise record.error("label", f"{' or '.join(map(str, classes))}, as {task.name} has them")
        second = None if task.second is None else _fill(task.second, record)
        examples.append(Example(_fill(task.first, record), second, index[label]))
    return examples


def _fill(template: str, record: Record) -> str:
    """A template with the texts of a row, which may be blank, as some questions of QQP are."""
    texts = {}
    for key in (key for _, key, _, _ in Formatter().parse(template) if key):
        value = record.values.get(key)
        texts[key] = value if isinstance(value, str) and not value.strip() else record.text(key)
    return template.format_map(texts)


def scores(labels: Sequence[int], predictions: Sequence[int], classes: int) -> dict[MetricName, float]:
    """Accuracy, and for two classes F1 and MCC.

    F1 is that of class 1, and 0 if class 1 neither occurs nor is predicted. MCC is the Matthews correlation of two
    classes, and 0 if labels or predictions are constant.
    """
    rows = len(labels)
    right = sum(label == prediction for label, prediction in zip(labels, predictions, strict=True))
    found: dict[MetricName, float] = {"accuracy": right / rows}
    if classes == 2:
        both = sum(label * prediction for label, prediction in zip(labels, predictions, strict=True))
        predicted, actual = sum(predictions), sum(labels)
        found["f1"] = 2 * both / (predicted + actual) if predicted + actual else 0.0
        variance = predicted * (rows - predicted) * actual * (rows - actual)
        found["mcc"] = (rows * both - predicted * actual) / math.sqrt(variance) if variance else 0.0
    return found
