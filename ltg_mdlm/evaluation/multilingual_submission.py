"""The two files that a submission to the multilingual track consists of, collated from a folder of results.

`<model>_submission.json` holds a score for every task or language, `<model>_predictions.json` what the scores were made
of. Keys and places are those of the collator of the BabyLM pipeline of July 2026. Parts may be missing.

    results/<model>/<revision>/harness/<backend>/<task>/    tasks of lm-eval: results.json, samples.jsonl of Hanzi
    results/<model>/<revision>/harness/<backend>/<part>/    words of MECO: predictions.json
    results/<model>/main/finetune/<task>/                   fine-tuning
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import read_object, read_text
from ltg_mdlm.data.records import read_records
from ltg_mdlm.evaluation.finetune_tasks import TaskFiles, find_tasks
from ltg_mdlm.evaluation.submission import NO_CHECKPOINT, NOT_EVALUATED, Missing, revisions_of
from ltg_mdlm.inference.exported_folder import MAIN

Language = Literal["eng", "nld", "zho"]

LANGUAGES: Mapping[Language, str] = {"eng": "en", "nld": "nl", "zho": "zh"}
"""The languages of the track, as zero-shot tasks and as fine-tuning tasks call them."""

PIPELINE = "https://github.com/babylm-org/babylm-eval"


@dataclass(frozen=True)
class ZeroShotTask:
    """A task of lm-eval.

    Attributes:
        key: key in the submission.
        name: name in the task folder of the official pipeline.
        dataset: the dataset of the Hugging Face Hub that it loads.
        metric: the metric that counts.
        hidden: whether the leaderboard computes the score from the predictions.
    """

    key: str
    name: str
    dataset: str
    metric: str = "acc,none"
    hidden: bool = False


def _zero_shot(language: Language) -> Iterator[ZeroShotTask]:
    short = LANGUAGES[language]
    if language == "eng":
        # The collator expects the key `blimp`, although the task has been renamed.
        yield ZeroShotTask("blimp", "blimp_babylm_filtered", "BabyLM-community/BabyLM-BLIMP-Filtered")
    for name in ("hellaswag", "winogrande", "xstorycloze"):
        yield ZeroShotTask(f"{name}_{short}_mubench", f"{name}_{short}_mubench", "aialt/MuBench")
    if language != "zho":
        yield ZeroShotTask(f"multiblimp_{language}", f"multiblimp_{language}", "jumelet/multiblimp")
    if language == "nld":
        yield ZeroShotTask("blimp_nl", "blimp_nl", "juletxara/blimp-nl")
    if language != "eng":
        yield ZeroShotTask(f"xcomps_{short}", f"xcomps_{short}", "fpadovani/xcomps-dataset")
    if language == "zho":
        yield ZeroShotTask("zhoblimp", "zhoblimp", "Junrui1202/zhoblimp")
        for name in ("structure", "pinyin"):
            yield ZeroShotTask(f"hanzi_{name}", f"hanzi_{name}", f"chinese-babylm-org/hanzi-{name}", hidden=True)
    for split in ("parallel", "nonparallel"):
        name = f"global_piqa_{split}_{short}"
        yield ZeroShotTask(name, name, f"mrlbenchmarks/global-piqa-{split}", "acc_norm,none")


ZERO_SHOT: Mapping[Language, tuple[ZeroShotTask, ...]] = {
    language: tuple(_zero_shot(language)) for language in LANGUAGES
}
"""The zero-shot tasks of every language."""

FINETUNING: Mapping[str, tuple[str, ...]] = {
    "en": ("arc", "belebele", "bmlama", "mnli", "pos", "sib200", "truthfulqa", "xnli"),
    "nl": ("arc", "belebele", "bmlama", "include", "mnli", "pos", "sib200", "truthfulqa"),
    "zh": ("arc", "belebele", "bmlama", "include", "mnli", "pos", "sib200", "truthfulqa", "xnli"),
}
"""The fine-tuning tasks of every language."""


def meco_parts(languages: Sequence[Language]) -> dict[str, Language | None]:
    """The parts of MECO: reading in every language, and with None in English as a second language."""
    parts: dict[str, Language | None] = {f"meco_l1_{language}": language for language in languages}
    if "eng" in languages and len(languages) > 1:
        parts["meco_l2"] = None
    return parts


@dataclass(frozen=True)
class MultilingualData:
    """The folder `multilingual` of the official pipeline, or the folder above; treebanks in its subfolder `pos`.

    Raises UserError if it is neither, and has no fine-tuning task.
    """

    root: Path

    def __post_init__(self) -> None:
        if not (self.tasks or self.finetuning(list(LANGUAGES))):
            raise UserError(
                f"--data {self.root}: no folder tasks and no files of fine-tuning tasks here"
                f"\n  git clone {PIPELINE}, and give --data babylm-eval/multilingual"
            )

    @property
    def top(self) -> Path:
        """The folder that holds `tasks`, `finetune` and `meco`."""
        below = self.root / "multilingual"
        return below if below.is_dir() and not (self.root / "tasks").is_dir() else self.root

    @property
    def tasks(self) -> Path | None:
        """The task files of lm-eval."""
        folder = self.top / "tasks"
        return folder if folder.is_dir() else None

    def stimuli(self, part: str) -> Path | None:
        """The words of a part of MECO."""
        file = self.top / "meco" / "data" / f"{part[:7]}_stims.tsv"
        return file if file.is_file() else None

    def finetuning(self, languages: Sequence[Language]) -> list[TaskFiles]:
        """The fine-tuning tasks that have data. Raises UserError for a task with only some of its files."""
        short = [LANGUAGES[language] for language in languages]
        wanted = {"pos", *(f"{task}_{language}" for language in short for task in FINETUNING[language])}
        found = []
        for files in find_tasks(self.top, required=False):
            kept = {s: f for s, f in files.files.items() if not files.task.tags_words or s[:2] in short}
            if files.task.name in wanted and kept:
                found.append(TaskFiles(files.task, kept))
        return found


@dataclass(frozen=True)
class CollatedTrack:
    """The contents of both files, and what they lack."""

    submission: dict[str, dict[str, float]]
    predictions: dict[str, Any]
    missing: list[Missing]


def collate_multilingual(
    results: Path,
    backend: str,
    data: MultilingualData,
    languages: Sequence[Language],
    *,
    checkpoints: Sequence[str] | None = None,
) -> CollatedTrack:
    """Collate the results of a model.

    Args:
        results: folder of the results of the model, which holds `main` and `chck_*`.
        backend: name of the score in the official pipeline.
        data: the evaluation data, which say why a part is missing.
        languages: the languages that the model is evaluated in.
        checkpoints: names of the checkpoints of the model; None if they are not known.

    Raises UserError for a file that is not what the evaluation writes.
    """
    missing: list[Missing] = []
    revisions = revisions_of("multilingual")
    if checkpoints is not None:
        missing += [Missing(NO_CHECKPOINT, "", name) for name in revisions if name not in checkpoints]

    def zero_shot(revision: str) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
        """Scores by key, lm-eval's results by task, and the predictions of hidden tasks."""
        scores: dict[str, float] = {}
        raw: dict[str, Any] = {}
        hidden: dict[str, Any] = {}
        place, shown = results / revision / "harness" / backend, "" if revision == MAIN else revision
        has_model = not shown or checkpoints is None or revision in checkpoints
        for task in (task for language in languages for task in ZERO_SHOT[language]):
            file = place / task.name / "results.json"
            if file.is_file():
                of_tasks = read_object(file)
                raw |= of_tasks
                scores[task.key] = _number(of_tasks.get(task.name, {}).get(task.metric), file, task.metric)
                if task.hidden:
                    hidden[task.key] = _hanzi(place / task.name / "samples.jsonl")
            elif has_model:
                reason = _needs_hub(task) if data.tasks else _needs_clone(data)
                missing.append(Missing(reason, task.key, shown))
        for part, language in meco_parts(languages).items():
            file = place / part / "predictions.json"
            if file.is_file():
                for reader in [language] if language else [other for other in languages if other != "eng"]:
                    hidden.setdefault(part[:7], {})[reader] = read_object(file)
            elif has_model:
                missing.append(Missing(NOT_EVALUATED if data.stimuli(part) else _needs_clone(data), part, shown))
        return scores, raw, hidden

    scores, raw, hidden = zero_shot(MAIN)
    hidden_keys = {task.key for language in languages for task in ZERO_SHOT[language] if task.hidden}
    submission = {key: {key: score} for key, score in scores.items() if key not in hidden_keys}
    finetuned: dict[str, list[dict[str, Any]]] = {}
    files_of = {files.task.name: files for files in data.finetuning(languages)}
    for language in (LANGUAGES[language] for language in languages):
        for task in FINETUNING[language]:
            name = task if task == "pos" else f"{task}_{language}"
            folder = results / MAIN / "finetune" / name / (language if task == "pos" else "")
            file = folder / "eval_results.json"
            if file.is_file():
                submission.setdefault(task, {})[language] = _number(
                    read_object(file).get("eval_accuracy"), file, "eval_accuracy"
                )
                finetuned[f"{task}_{language}"] = _read_predictions(folder / "predictions.txt")
            elif name in files_of and (task != "pos" or f"{language}-train" in files_of[name].files):
                missing.append(Missing(NOT_EVALUATED, f"{task} of {language}"))
            else:
                reason = _NEEDS_TREEBANKS.format(data.top / "pos") if task == "pos" else _needs_clone(data)
                missing.append(Missing(reason, f"{task} of {language}"))
    of_checkpoints = {revision: zero_shot(revision) for revision in revisions}
    if any(data.stimuli(part) for part in meco_parts(languages)):
        missing.append(Missing(_NEEDS_MECO, "scores of MECO of the checkpoints"))
    predictions = {
        "zeroshot": raw,
        "finetune": finetuned,
        "hidden": hidden,
        "fast_eval_results": [scores for scores, _, _ in of_checkpoints.values()],
        "fast_eval_hidden": [
            {"revision": revision, "hidden": found} for revision, (_, _, found) in of_checkpoints.items()
        ],
    }
    return CollatedTrack(submission, predictions, missing)


_NEEDS_TREEBANKS = (
    "no files such as en_ewt-ud-train.conllu in {}; put UD_English-EWT, UD_Dutch-Alpino and UD_Chinese-GSDSimp of"
    " https://github.com/UniversalDependencies there"
)

_NEEDS_MECO = (
    "need the mixed models of the official pipeline; multilingual/scripts/meco_model_fast_all.sh computes them"
)


def _needs_hub(task: ZeroShotTask) -> str:
    return (
        f"not evaluated; the data are {task.dataset} of the Hugging Face Hub: run the command with a connection, or"
        " copy the folder of HF_HOME from a machine where it has run"
    )


def _needs_clone(data: MultilingualData) -> str:
    return f"no data in {data.top}; git clone {PIPELINE}, and give --data babylm-eval/multilingual"


def _number(value: Any, file: Path, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{file}: {what} must be a number, not {value!r}; delete the folder to evaluate again")
    return float(value)


def _hanzi(file: Path) -> dict[str, Any]:
    """The scores of both candidates of every question, and whether one of them has an unknown token.

    A question with an unknown token counts as wrong. As in the official collator, a question is taken for one if it
    counts as wrong although the right candidate has the higher score.
    """
    found = {}
    for record in read_records(file):
        scores = [choice[0] for choice in record.values["filtered_resps"]]
        right = max(range(len(scores)), key=scores.__getitem__) == record.values["target"]
        has_unk = right and record.values["acc"] == 0
        found[f"{record.values['doc_id']}:{record.values['doc_hash']}"] = {"scores": scores, "has_unk": has_unk}
    return found


def _read_predictions(file: Path) -> list[dict[str, Any]]:
    """The rows of a `predictions.txt`."""
    rows = []
    for number, line in enumerate(read_text(file).splitlines()[1:], 2):
        index, tab, prediction = line.partition("\t")
        if not (tab and index.isdecimal()):
            raise UserError(f"{file}:{number}: expected an index, a tab and a prediction")
        rows.append({"index": int(index), "prediction": prediction})
    return rows


def to_text(content: Mapping[str, Any]) -> str:
    """The text of one of the files."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
