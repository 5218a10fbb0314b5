"""The file that a submission to the strict tracks consists of, collated from a folder of results without the model.

The layout of the folder, the keys and the numbers of predictions are those of the BabyLM pipeline of July 2026. It
holds the predictions of the last checkpoint on all tasks, and figures of every `chck_*` checkpoint on the fast tasks.
A part that is missing or has another number of predictions is null, as in the official file.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_errors, write_text
from ltg_mdlm.core.json_files import read_object
from ltg_mdlm.data.records import read_records
from ltg_mdlm.evaluation import submission_sizes as published
from ltg_mdlm.evaluation.age_of_acquisition import MILLIONS, AgeOfAcquisition, read_contexts
from ltg_mdlm.evaluation.download import DATASETS, FAST, FULL
from ltg_mdlm.evaluation.finetune_tasks import TaskFiles, find_tasks
from ltg_mdlm.evaluation.multiple_choice import (
    BLIMP,
    COMPS,
    ENTITY_TRACKING,
    EWOK,
    GLOBAL_PIQA_NONPARALLEL,
    GLOBAL_PIQA_PARALLEL,
    SUPPLEMENT,
    ChoiceTask,
    official_uid,
)
from ltg_mdlm.evaluation.reading import EYE_TRACKING, SELF_PACED, Reading, gains_percent
from ltg_mdlm.evaluation.result_folders import BACKENDS
from ltg_mdlm.inference.exported_folder import MAIN

Track = Literal["strict", "strict-small", "multilingual"]

AOA = "AoA_word"
"""Name of the result folder of age of acquisition."""

OFFICIAL_BACKENDS = {"mlm", "mntp", "causal"}
"""Names of the scores in the pipeline of the strict tracks."""

GLUE = ("boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc")
"""The fine-tuning tasks of a submission."""


@dataclass(frozen=True)
class Part:
    """A zero-shot task of a submission.

    Attributes:
        key: key in the collated file.
        task: how the data are read and scored.
        data: name of the data folder in `full_eval` or `fast_eval`.
    """

    key: str
    task: ChoiceTask | Reading
    data: str

    @property
    def place(self) -> str:
        """The result folder below `<revision>/zero_shot/<backend>`."""
        return self.data if isinstance(self.task, Reading) else f"{self.task.name}/{self.data}"

    def counts(self, data: Path) -> dict[str, int]:
        """Number of questions of every uid in a data folder. Raises UserError for data that cannot be read."""
        if isinstance(self.task, Reading):
            return {self.key: len(self.task.read(data))}
        return Counter(map(official_uid, self.task.read(data)))

    def figures(self, data: Path, predictions: Mapping[str, Any]) -> dict[str, float]:
        """The figures of the fast evaluation: the share of right predictions of every uid, or the gains of reading.

        Raises UserError if the predictions are not those of the questions in the data folder.
        """
        rows = {uid: entry["predictions"] for uid, entry in predictions.items()}
        if {uid: len(of_uid) for uid, of_uid in rows.items()} != self.counts(data):
            raise UserError(f"the rows of {data} are not those that were predicted")
        if isinstance(self.task, Reading):
            words = self.task.read(data)
            surprisals = [row["pred"] for row in rows[self.key]]
            previous = [float("nan") if row["prev_pred"] is None else row["prev_pred"] for row in rows[self.key]]
            gains = gains_percent(words, surprisals, previous, data)
            return {"spr": gains[SELF_PACED] / 100, "rt": fmean(gains[measure] for measure in EYE_TRACKING) / 100}
        right: dict[str, list[bool]] = defaultdict(list)
        for question in self.task.read(data):
            uid = official_uid(question)
            prediction = rows[uid][len(right[uid])]["pred"]
            right[uid].append(prediction.strip() == self.task.written(question.candidates[question.right]).strip())
        if self.task.per_token:  # GlobalPIQA, in which every row has a uid of its own
            return {self.key: fmean(fmean(of_uid) for of_uid in right.values())}
        return {uid: fmean(of_uid) for uid, of_uid in right.items()}


_SAME_IN_BOTH = (
    Part("global_piqa_parallel", GLOBAL_PIQA_PARALLEL, "global_piqa_parallel"),
    Part("global_piqa_nonparallel", GLOBAL_PIQA_NONPARALLEL, "global_piqa_nonparallel"),
    Part("reading", Reading(), "reading"),
)

FULL_PARTS = (
    Part("blimp", BLIMP, "blimp_filtered"),
    Part("blimp_supplement", SUPPLEMENT, "supplement_filtered"),
    Part("ewok", EWOK, "ewok_filtered"),
    Part("entity_tracking_filtered", ENTITY_TRACKING, "entity_tracking"),
    Part("comps", COMPS, "comps"),
    *_SAME_IN_BOTH,
)
"""Evaluated with the last checkpoint."""

FAST_PARTS = (
    Part("blimp", BLIMP, "blimp_fast"),
    Part("blimp_supplement", SUPPLEMENT, "supplement_fast"),
    Part("ewok", EWOK, "ewok_fast"),
    Part("entity_tracking_filtered", ENTITY_TRACKING, "entity_tracking_fast"),
    *_SAME_IN_BOTH,
)
"""Evaluated with every `chck_*` checkpoint."""


def revisions_of(track: Track) -> list[str]:
    """The checkpoints that a submission to a track has: 19 or 28, in the order of training."""
    return [f"chck_{million}M" for million in MILLIONS if track != "strict-small" or million <= 100]


@dataclass(frozen=True)
class EvaluationData:
    """A folder with `full_eval` and `fast_eval`, or with `evaluation_data`, which holds them.

    Raises UserError if it is neither.
    """

    root: Path

    def __post_init__(self) -> None:
        if not any(folder.is_dir() for top in self._tops for folder in (top / FULL.name, top / FAST.name)):
            raise UserError(
                f"--data {self.root}: no folder {FULL.name} or {FAST.name} here"
                f"\n  ltg-mdlm eval download --out {self.root}"
            )

    @property
    def _tops(self) -> tuple[Path, Path]:
        return self.root, self.root / FULL.parent

    def folder(self, part: Part) -> Path | None:
        """The data of a part; None if they are missing. Data that are the same in both folders may be in one only."""
        own, other = (FULL, FAST) if part in FULL_PARTS else (FAST, FULL)
        return self._find(*(f"{where.name}/{part.data}" for where in (own, other)))

    @property
    def glue(self) -> Path | None:
        """The folder of the fine-tuning tasks."""
        return self._find(f"{FULL.name}/glue_filtered", "glue_filtered")

    @property
    def age_of_acquisition(self) -> Path | None:
        """The folder with `cdi_childes.json`."""
        return self._find(*(f"{FULL.name}/{prefix}" for prefix in AgeOfAcquisition.prefixes))

    def glue_files(self) -> list[TaskFiles]:
        """The fine-tuning tasks that have data. Raises UserError for a task with only one of its files."""
        folder = self.glue
        present = [name for name in GLUE if folder and any(folder.glob(f"{name}.*.jsonl"))]
        return find_tasks(folder, present) if folder and present else []

    def _find(self, *places: str) -> Path | None:
        found = (top / place for place in places for top in self._tops)
        return next((folder for folder in found if folder.is_dir()), None)


@dataclass(frozen=True)
class Size:
    """The number of predictions that a file must hold: by uid, in every uid, or as the number of uids with one each."""

    by_uid: Mapping[str, int] = field(default_factory=dict)
    each: int | None = None
    uids: int | None = None

    def problem(self, counts: Mapping[str, int]) -> str:
        """What is wrong with these numbers of predictions by uid; empty if nothing is. Case does not matter in uids."""
        found = {uid.lower(): count for uid, count in counts.items()}
        if self.uids is not None:
            if len(found) != self.uids:
                return f"{len(found)} examples instead of {self.uids}"
            wanted = dict.fromkeys(found, 1)
        elif self.each is not None:
            wanted = dict.fromkeys(found, self.each)
        else:
            wanted = {uid.lower(): count for uid, count in self.by_uid.items()}
        wrong = [uid for uid in (*wanted, *(found.keys() - wanted.keys())) if found.get(uid) != wanted.get(uid)]
        if not wrong:
            return "" if found else "no predictions"
        uid, more = wrong[0], f" (and {len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
        if uid not in wanted:
            return f"unknown uid {uid}{more}"
        return f"{found.get(uid, 0)} predictions of {uid} instead of {wanted[uid]}{more}"


@dataclass(frozen=True)
class Sizes:
    """The sizes of all parts, by key; those of age of acquisition are the contexts of one checkpoint."""

    full: Mapping[str, Size]
    fast: Mapping[str, Size]
    glue: Mapping[str, int]
    contexts: int


def published_sizes() -> Sizes:
    """The sizes that the official collator requires."""
    both = {
        "global_piqa_parallel": Size(uids=published.GLOBAL_PIQA_PARALLEL),
        "global_piqa_nonparallel": Size(uids=published.GLOBAL_PIQA_NONPARALLEL),
        "reading": Size(published.READING),
    }
    full = {
        "blimp": Size(published.BLIMP),
        "blimp_supplement": Size(published.SUPPLEMENT),
        "ewok": Size(published.EWOK),
        "entity_tracking_filtered": Size(published.ENTITY_TRACKING),
        "comps": Size(published.COMPS),
    }
    fast = {
        "blimp": Size(each=published.BLIMP_FAST),
        "blimp_supplement": Size(each=published.SUPPLEMENT_FAST),
        "ewok": Size(each=published.EWOK_FAST),
        "entity_tracking_filtered": Size(published.ENTITY_TRACKING_FAST),
    }
    return Sizes(full | both, fast | both, published.GLUE, published.CONTEXTS)


def sizes_of(data: EvaluationData) -> Sizes:
    """The sizes of data that are only a part of the published ones; data that cannot be read have none."""
    full: dict[str, Size] = {}
    fast: dict[str, Size] = {}
    for sizes, parts in ((full, FULL_PARTS), (fast, FAST_PARTS)):
        for part in parts:
            with suppress(UserError):
                if folder := data.folder(part):
                    sizes[part.key] = Size(part.counts(folder))
    glue: dict[str, int] = {}
    for files in data.glue_files():
        with suppress(UserError):
            glue[files.task.name] = len(read_records(files.valid))
    contexts = 0
    with suppress(UserError):
        if words := data.age_of_acquisition:
            contexts = len(read_contexts(words / "cdi_childes.json"))
    return Sizes(full, fast, glue, contexts)


@dataclass(frozen=True)
class Missing:
    """Something that the collated file lacks.

    Attributes:
        reason: why it is missing, and what to do about it; everything with one reason is reported in one line.
        what: the part that is missing.
        revision: the checkpoint whose part it is; empty for the last one.
    """

    reason: str
    what: str
    revision: str = ""


@dataclass(frozen=True)
class Collated:
    """The content of the collated file, and what it lacks."""

    content: dict[str, Any]
    missing: list[Missing]

    def write(self, file: Path) -> None:
        """Write the JSON file. Raises UserError if it cannot be written."""
        with write_errors(file, "; choose another --out"):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(self.content, ensure_ascii=False, allow_nan=False) + "\n")


def lines_of(missing: Sequence[Missing]) -> list[str]:
    """What is missing and how to get it: one line for every reason."""
    reasons: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for each in missing:
        reasons[each.reason][each.what].append(each.revision)
    lines = []
    for reason, parts in reasons.items():
        by_revisions: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for what, revisions in parts.items():
            by_revisions[tuple(revisions)].append(what)
        shown = []
        for of_parts, names in by_revisions.items():
            named = [revision for revision in of_parts if revision]
            if len(named) > 3:
                named = [f"{len(named)} checkpoints from {named[0]} to {named[-1]}"]
            if "" in of_parts and named:
                named.insert(0, "main")
            what = ", ".join(names)
            shown.append(f"{what} of {', '.join(named)}" if named and what else what or ", ".join(named))
        lines.append(f"{'; '.join(shown)}: {reason}")
    return lines


def checkpoint_folder(run: Path) -> Path:
    """The folder of the `chck_*` checkpoints of a run, of a checkpoint in it, or of an export with revisions."""
    candidates = (run / "checkpoints", run, run.absolute().parent)
    return next((folder for folder in candidates if any(folder.glob("chck_*"))), run)


def backend_of(results: Path, track: Track) -> str:
    """The backend of the results of a model. Raises UserError if there are results of none, or of several."""
    kind, backends = ("harness", {*BACKENDS.values()}) if track == "multilingual" else ("zero_shot", OFFICIAL_BACKENDS)
    found = sorted({path.name for path in results.glob(f"*/{kind}/*/")} & backends)
    if not found:
        raise UserError(f"{results}: no results of this model; run the command without --collate-only")
    if len(found) > 1:
        raise UserError(f"{results}: results of several scores ({', '.join(found)}); choose one with --score")
    return found[0]


def collate(
    results: Path,
    backend: str,
    track: Track,
    data: EvaluationData,
    sizes: Sizes,
    *,
    checkpoints: Sequence[str] | None = None,
) -> Collated:
    """Collate the results of a model.

    Args:
        results: folder of the results of the model, which holds `main` and `chck_*`.
        backend: name of the score in the official pipeline.
        data: the evaluation data; those of the fast tasks are needed for the figures of checkpoints.
        sizes: the numbers of predictions that every file must hold.
        checkpoints: names of the checkpoints of the model; None if they are not known.

    Raises UserError for a file that is not a JSON object.
    """
    missing: list[Missing] = []
    revisions = revisions_of(track)

    def load(file: Path, what: str, has_data: bool, problem: Callable[[Any], str], revision: str = "") -> Any:
        """The content of a file; None if it is missing or wrong, with the reason in `missing`."""
        if not file.is_file():
            missing.append(Missing(NOT_EVALUATED if has_data else _no_data(what, data), what, revision))
            return None
        content = read_object(file)
        try:
            found = problem(content)
        except (AttributeError, KeyError, TypeError):
            found = "not a file of predictions"
        if found:
            missing.append(Missing(_WRONG_SIZE, f"{what} ({found})", revision))
            return None
        return content

    def load_part(part: Part, sizes: Mapping[str, Size], revision: str = "") -> Any:
        def problem(content: Any) -> str:
            # There is none if sizes are those of the data, which are missing.
            size = sizes.get(part.key)
            return size.problem(_counts(content)) if size else "its size is not known without its data"

        file = results / (revision or MAIN) / "zero_shot" / backend / part.place / "predictions.json"
        return load(file, part.data, data.folder(part) is not None, problem, revision)

    content: dict[str, Any] = {part.key: load_part(part, sizes.full) for part in FULL_PARTS}

    aoa, has_words = results / MAIN / "zero_shot" / backend / AOA, data.age_of_acquisition is not None

    def surprisals_problem(content: Any) -> str:
        counts = Counter(row["step"] for row in content["results"])
        if absent := [name for name in revisions if name not in counts]:
            return f"without {len(absent)} of the {len(revisions)} checkpoints of the track"
        return Size(dict.fromkeys(revisions, sizes.contexts)).problem(counts)

    content["aoa_surprisals"] = load(
        aoa / "surprisal.json",
        "surprisals of age of acquisition",
        has_words,
        surprisals_problem,
    )
    content["aoa"] = load(
        aoa / "aoa_score.json",
        "score of age of acquisition",
        has_words,
        lambda found: "" if "aoa" in found else "no score",
    )

    content["glue"] = {}
    with_data = {files.task.name for files in data.glue_files()}
    for name in GLUE:
        size = Size({name: sizes.glue.get(name, 0)})
        found = load(
            results / MAIN / "finetune" / name / "predictions.json",
            name,
            name in with_data,
            partial(lambda size, found: size.problem(_counts(found)), size),
        )
        content["glue"] |= found or {}  # the official file leaves missing tasks out

    if checkpoints is not None and (absent := [name for name in revisions if name not in checkpoints]):
        missing += [Missing(NO_CHECKPOINT, "", name) for name in absent]
    fast: dict[str, list[dict[str, float] | None]] = {part.key: [] for part in FAST_PARTS}
    for part in FAST_PARTS:
        gold = data.folder(part)
        for revision in revisions:
            if checkpoints is not None and revision not in checkpoints:
                fast[part.key].append(None)
                continue
            found = load_part(part, sizes.fast, revision)
            figures = None
            if found is not None and gold is None:
                missing.append(Missing(_no_data(part.data, data), f"right answers of {part.data}", revision))
            elif found is not None and gold is not None:
                try:
                    figures = part.figures(gold, found)
                except UserError as error:
                    missing.append(Missing(str(error), part.data, revision))
            fast[part.key].append(figures)
    content["fast_eval_results"] = fast
    return Collated(content, missing)


NOT_EVALUATED = "not evaluated yet; run the command without --collate-only"

NO_CHECKPOINT = "not in the run, which has not seen so many words, or was trained with checkpoint.by_words=false"

_WRONG_SIZE = (
    "wrong number of predictions, null in the file; evaluate on the published data, or add --partial to compare with"
    " the data in --data"
)


def _no_data(name: str, data: EvaluationData) -> str:
    """The reason for missing results without data, with the command that downloads them."""
    holds = (d.name for d in DATASETS.values() if any(folder.name == name for folder in d.folders))
    dataset = next(holds, "strict")  # which also has GLUE and age of acquisition
    needs = " --ewok-vocabulary FILE" if dataset == "ewok" else ""
    return f"no data in {data.root}; get them with `ltg-mdlm eval download {dataset} --out {data.root}{needs}`"


def _counts(predictions: Mapping[str, Any]) -> dict[str, int]:
    return {uid: len(entry["predictions"]) for uid, entry in predictions.items()}
