"""Fine-tuning as one task of the suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ltg_mdlm.evaluate.tasks import Skip, Task, TaskResult, data_name
from ltg_mdlm.evaluate.texts import Scorer

Finetune = Callable[[Path], Sequence[Mapping[str, Any]]]
"""Trains a copy of the model on every classification task in a folder, and returns their summaries."""


class FineTuning(Task):
    """Accuracy on classification tasks of (Super)GLUE, each counting the same, after training a copy of the model."""

    name = "glue"
    prefixes = ("glue",)
    fields = frozenset({"label"})

    def __init__(self, finetune: Finetune | None) -> None:
        self.finetune = finetune

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Fine-tune, which writes its own results; `scorer` is not asked."""
        if self.finetune is None:
            raise Skip("takes training; add --finetune")
        summaries = self.finetune(path)
        accuracies = {summary["task"]: summary["mean"]["accuracy"] for summary in summaries}
        return TaskResult(
            task=self.name,
            data=data_name(path),
            metric="accuracy",
            figures={"accuracy": fmean(accuracies.values())},
            breakdown={"UID": accuracies},
            questions=sum(summary["valid"]["rows"] for summary in summaries),
        )
