"""Metrics of fine-tuning, against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltg_mdlm.evaluation.finetune_tasks import FINETUNE_TASKS, scores

pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)


def test_a_table_worked_by_hand():
    """3 true positives, 1 false positive, 2 false negatives, 4 true negatives."""
    labels = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    predictions = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    found = scores(FINETUNE_TASKS["mrpc"], labels, predictions)
    assert found == pytest.approx(
        {"accuracy": 0.7, "f1": 2 * 0.75 * 0.6 / 1.35, "mcc": (12 - 2) / (4 * 5 * 5 * 6) ** 0.5}
    )


@given(pairs)
def test_mcc_is_pearsons_correlation_and_f1_the_harmonic_mean(pairs):
    labels, predictions = (list(column) for column in zip(*pairs, strict=True))
    found = scores(FINETUNE_TASKS["rte"], labels, predictions)
    label_N, predicted_N = np.array(labels), np.array(predictions)
    assert found["accuracy"] == np.mean(label_N == predicted_N)
    if label_N.std() and predicted_N.std():
        assert found["mcc"] == pytest.approx(np.corrcoef(label_N, predicted_N)[0, 1])
    else:
        assert found["mcc"] == 0
    hits = np.sum(label_N & predicted_N)
    if hits:
        precision, recall = hits / predicted_N.sum(), hits / label_N.sum()
        assert found["f1"] == pytest.approx(2 / (1 / precision + 1 / recall))
    else:
        assert found["f1"] == 0


def test_three_classes_have_an_accuracy_only():
    assert scores(FINETUNE_TASKS["mnli"], [0, 1, 2, 2], [0, 2, 2, 2]) == {"accuracy": 0.75}
