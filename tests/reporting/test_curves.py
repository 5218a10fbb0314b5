"""Reading of metrics, and reduction of curves to lines."""

import json
import math
import os

import numpy as np
import pytest

from ltg_mdlm.reporting.curves import run_line
from ltg_mdlm.storage.metrics_file import Curve, MetricsFile


def append(path, *lines):
    with path.open("a") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)


def test_a_curve_with_few_points_is_unchanged():
    line = run_line(Curve([0, 10, 20], [3.0, 1.0, 2.0]), 20)
    assert line.step_P.tolist() == [0, 10, 20]
    assert line.value_P.tolist() == line.low_P.tolist() == line.high_P.tolist() == [3, 1, 2]


def test_means_and_extremes_of_a_long_curve_are_those_of_its_bins():
    values = np.random.default_rng(0).normal(size=10_000)
    values[7777] = 50.0
    line = run_line(Curve(list(range(10_000)), values.tolist()), 10_000, bins=100)
    assert line.value_P == pytest.approx(values.reshape(100, 100).mean(axis=1))
    assert line.low_P == pytest.approx(values.reshape(100, 100).min(axis=1))
    assert line.high_P.max() == 50


def test_values_that_are_not_finite_interrupt_the_line():
    line = run_line(Curve([0, 10, 20], [3.0, math.nan, math.inf]), 20)
    assert np.isfinite(line.value_P).tolist() == [True, False, False]


def test_metrics_are_read_as_they_grow(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    assert metrics.refresh().curves == {}
    append(path, {"step": 1, "loss": 3.0}, '{"step": 2, "lo')
    assert metrics.refresh().curves == {"loss": Curve([1], [3.0])}
    append(path, 'ss": 2.0}\n', {"step": 3, "loss": None})
    assert metrics.refresh().curves["loss"].steps == [1, 2, 3]
    assert math.isnan(metrics.curves["loss"].last)
    assert metrics.unreadable == 0


def test_a_file_that_a_resumed_run_replaced_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0})
    metrics = MetricsFile(path).refresh()
    append(tmp_path / "kept", {"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.5}, {"step": 3, "loss": 1.0})
    os.replace(tmp_path / "kept", path)
    assert metrics.refresh().curves["loss"] == Curve([1, 2, 3], [3.0, 1.5, 1.0])


def test_refused_updates_and_damaged_lines_are_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, {"step": 1, "event": "refused_update", "first_row": 0}, "rubbish\n", "[1]\n", '{"loss": 1}\n')
    metrics = MetricsFile(path).refresh()
    assert (metrics.refused, metrics.unreadable, metrics.curves) == (1, 3, {})
