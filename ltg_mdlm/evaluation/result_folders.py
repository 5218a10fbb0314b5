"""Folders of results: the predictions that the official pipelines collect, with every score beside them.

    results/<model>/<revision>/zero_shot/<backend>/<task>/<data>/
        predictions.json              official
        best_temperature_report.txt   official
        items.jsonl                   one question per line: the scores of all candidates
        summary.json                  figures, and the settings that produced them

Fine-tuning writes to `finetune/<task>`, the evaluation of samples to `generation`; see there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ltg_mdlm.core.files import write_errors, written_folder
from ltg_mdlm.core.json_files import replace_non_finite
from ltg_mdlm.evaluation.tasks import TaskResult
from ltg_mdlm.inference.scoring import ScoringRule
from ltg_mdlm.inference.trained_model import TrainedModel

BACKENDS = {"pll": "mlm", "mntp": "mntp", "causal": "causal", "bound": "bound"}
"""Name of each score in the official pipelines, which have no bound."""


WEIGHTS_HASH = "weights_sha256"
"""Tells models apart that have the same name; older results do not have it."""


def model_folder(out: Path, trained: TrainedModel) -> Path:
    """The folder of all results of a model."""
    return out / trained.name / trained.revision


def model_facts(trained: TrainedModel) -> dict[str, Any]:
    """The model that was evaluated, as every summary.json names it."""
    return {
        "model": trained.name,
        "revision": trained.revision,
        "weights": trained.weights,
        WEIGHTS_HASH: trained.weights_sha256,
        "step": trained.about.get("step"),
        "words_seen": trained.about.get("words_seen"),
    }


def scoring_facts(trained: TrainedModel, rule: ScoringRule, protocol: str) -> dict[str, Any]:
    """The model that was evaluated, how it was scored, and the protocol of the tasks."""
    settings = asdict(rule)
    del settings["tokens_per_batch"]  # affects only speed
    return model_facts(trained) | settings | {"protocol": protocol}


def write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Write a result folder with these texts, in place of an older one. The folder is complete or absent.

    Names may be paths below the folder. Raises UserError if it cannot be written.
    """
    errors = write_errors(folder, "; choose another folder with --out")
    with errors, written_folder(folder, replace=True) as unfinished:
        for name, text in files.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_text(text, encoding="utf-8")


def write_task_result(folder: Path, result: TaskResult, facts: Mapping[str, Any], seconds: float) -> None:
    """Write the result folder of a task. Raises UserError if it cannot be written."""
    summary = {
        **facts,
        "task": result.task,
        "data": result.data,
        "metric": result.metric,
        **result.figures,
        "accuracy_by_uid": result.breakdown.get("UID", {}),
        "questions": result.questions,
        "validated": result.validated,
        "seconds": round(seconds, 3),
    }
    files = {
        result.predictions_file: to_json(result.predictions),
        "best_temperature_report.txt": temperature_report(result),
        "items.jsonl": "".join(map(to_json, result.items)),
        "summary.json": to_json(summary, indent=2),
        **result.other_files,
    }
    write_folder(folder, files)


def temperature_report(result: TaskResult) -> str:
    """The figures in the format of the official report, in per cent; this program scores only at temperature 1."""
    lines = ["TEMPERATURE: 1.00", ""]
    for division, groups in result.breakdown.items():
        shown = [f"{group}: {100 * value:.2f}" for group, value in groups.items()]
        lines += [f"### {division.upper()} {result.metric.upper()}", *shown, ""]
    value = result.value if result.metric.endswith("_percent") else 100 * result.value
    lines += [f"### AVERAGE {result.metric.upper()}", f"{value:.2f}", "", ""]
    return "\n".join(lines)


def to_json(value: Any, indent: int | None = None) -> str:
    """One JSON document and a line break; NaN and infinity become null."""
    finite = replace_non_finite(value, lambda _: None)
    return json.dumps(finite, ensure_ascii=False, indent=indent, allow_nan=False) + "\n"
