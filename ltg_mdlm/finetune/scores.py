"""Accuracy, F1 and Matthews correlation of predicted classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ltg_mdlm.finetune.tasks import MetricName, Task


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
