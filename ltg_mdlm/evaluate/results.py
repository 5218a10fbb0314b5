"""Result folders: the predictions that the official pipelines collect, and beside them every score.

results/<model>/<revision>/zero_shot/<backend>/<task>/<data>/
    predictions.json              official
    best_temperature_report.txt   official
    items.jsonl                   one question per line: what every candidate scored
    summary.json                  figures, and how they were made
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ltg_mdlm.durable import publish_folder, temporary_name, write_file
from ltg_mdlm.evaluate.scoring import ScoringRule
from ltg_mdlm.evaluate.tasks import TaskResult
from ltg_mdlm.trained_model import TrainedModel

BACKENDS = {"pll": "mlm", "mntp": "mntp", "causal": "causal", "bound": "bound"}
"""What official pipelines call a score; they know no bound."""


def describe(trained: TrainedModel, rule: ScoringRule) -> dict[str, Any]:
    """Which model was measured, and how."""
    settings = asdict(rule)
    del settings["tokens_per_batch"]  # changes nothing but speed
    return {
        "model": trained.name,
        "revision": trained.revision,
        "weights": trained.weights,
        "step": trained.about.get("step"),
        "words_seen": trained.about.get("words_seen"),
        **settings,
    }


def result_folder(out: Path, trained: TrainedModel, rule: ScoringRule, place: str) -> Path:
    """Where the results of a task with this `TaskResult.place` belong."""
    return out / trained.name / trained.revision / "zero_shot" / BACKENDS[rule.score] / place


def write_result(folder: Path, result: TaskResult, about: Mapping[str, Any], seconds: float) -> None:
    """Write a result folder, in place of an older one, complete or not at all.  Raises OSError."""
    aside = temporary_name(folder)
    aside.mkdir()
    summary = {
        **about,
        "task": result.task,
        "data": result.data,
        "metric": result.metric,
        **result.figures,
        "accuracy_by_uid": result.breakdown.get("UID", {}),
        "questions": result.questions,
        "validated": result.validated,
        "seconds": round(seconds, 3),
    }
    write_file(aside / result.predictions_file, as_json(result.predictions))
    write_file(aside / "best_temperature_report.txt", temperature_report(result))
    write_file(aside / "items.jsonl", "".join(as_json(item) for item in result.items))
    write_file(aside / "summary.json", as_json(summary, indent=2))
    publish_folder(aside, folder)


def temperature_report(result: TaskResult) -> str:
    """Figures as the official report lists them, in per cent; this program scores at temperature 1 only."""
    lines = ["TEMPERATURE: 1.00", ""]
    for divides, groups in result.breakdown.items():
        shown = [f"{group}: {100 * value:.2f}" for group, value in groups.items()]
        lines += [f"### {divides.upper()} {result.metric.upper()}", *shown, ""]
    value = result.value if result.metric.endswith("_percent") else 100 * result.value
    lines += [f"### AVERAGE {result.metric.upper()}", f"{value:.2f}", ""]
    return "\n".join(lines)


def as_json(value: Any, indent: int | None = None) -> str:
    """One JSON document and a line break; what is not a number becomes null."""
    return json.dumps(_defined(value), ensure_ascii=False, indent=indent, allow_nan=False) + "\n"


def _defined(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _defined(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(inner) for inner in value]
    return value
