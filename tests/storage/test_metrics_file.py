"""Damaged, odd and long metrics files."""

import json
import math
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltg_mdlm.reporting.curves import run_line
from ltg_mdlm.storage import metrics_file
from ltg_mdlm.storage.metrics_file import MetricsFile, missing_at_end, read_validations, result_text, truncate_metrics
from ltg_mdlm.storage.run_folder import RunFolder, Status

SOUND = [b'{"step": %d, "loss": 2.5, "lr": 1e-05}' % step for step in (1, 2, 3)]
VALIDATION = b'{"step": 3, "valid/loss": 2.0, "valid/bound": 2.25, "valid/bound_standard_error": 0.5}'

DAMAGED = {
    "a number beyond float": b'{"step": 2, "valid/loss": 1.0, "loss": 1e999}',
    "an integer beyond float": b'{"step": 2, "valid/loss": 1.0, "loss": %s}' % (b"9" * 400),
    "an integer of 5,000 digits": b'{"step": 2, "valid/loss": 1.0, "loss": %s}' % (b"9" * 5000),
    "nested deeply": b'{"step": 2, "loss": %s' % (b"[" * 100_000),
    "no row": b"[1, 2]",
    "a step beyond any": b'{"step": %d, "valid/loss": 1.0}' % 10**30,
    "a negative step": b'{"step": -1, "valid/loss": 1.0}',
    "a step that is no number": b'{"step": true, "valid/loss": 1.0}',
    "torn": b'{"step": 2, "lo',
    "torn, then continued": b'{"step": 2, "lo{"step": 2, "loss": 2.5}',
    "zeros, as after a power failure": b"\0" * 4096,
    "not UTF-8": b'{"step": 2, "valid/loss": 1.0, "\xff": 1}',
    "longer than a block": b'{"step": 2, "text": "%s"}' % (b"x" * 3_000_000),
    "blank": b"",
}


def written(path, *lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_line_is_skipped_and_counted_by_every_reader(tmp_path, kind):
    path = written(tmp_path / "metrics.jsonl", SOUND[0], DAMAGED[kind], SOUND[1], VALIDATION)
    metrics = MetricsFile(path).refresh()
    assert (metrics.unreadable, metrics.curves["loss"].steps) == (1, [1, 2])
    found = read_validations(path)
    assert (found.damaged, found.last["valid/bound"]) == (1, 2.25)
    assert result_text(tmp_path).endswith("note: 1 damaged line of metrics.jsonl ignored")
    assert truncate_metrics(path, 2) == 1
    assert path.read_bytes().splitlines() == SOUND[:2]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2),
)
ROWS = st.fixed_dictionaries({"step": VALUES | st.integers(0, 9), "valid/loss": VALUES, "valid/bound": VALUES})


@settings(max_examples=50)
@given(lines=st.lists(st.binary(max_size=20) | ROWS.map(lambda row: json.dumps(row).encode()), max_size=5))
def test_no_metrics_file_ends_a_reader(lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    path = written(folder / "metrics.jsonl", *lines)
    metrics = MetricsFile(path).refresh()
    for curve in metrics.curves.values():
        run_line(curve, 100)
    assert read_validations(path).damaged <= metrics.unreadable
    result_text(folder)
    truncate_metrics(path, 5)
    assert MetricsFile(path).refresh().unreadable == 0


def test_what_is_no_file_has_no_metrics(tmp_path):
    for name, make in {"folder": os.mkdir, "pipe": os.mkfifo, "loop": lambda path: os.symlink(path, path)}.items():
        make(tmp_path / name)
        assert MetricsFile(tmp_path / name).refresh().curves == {}
        assert read_validations(tmp_path / name).last == {}


def test_a_long_curve_keeps_its_means_and_extremes_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_file, "_MERGED", 64)
    monkeypatch.setattr(metrics_file, "_BLOCK", 4096)
    values = [random.Random(step).gauss(0, 1) for step in range(4096)]
    values[3000] = 50.0
    rows = [{"step": step, "loss": None if step == 1000 else value} for step, value in enumerate(values)]
    path = written(tmp_path / "metrics.jsonl", *(json.dumps(row).encode() for row in rows))
    curve = MetricsFile(path).refresh().curves["loss"]
    assert curve.columns().shape[1] < 4 * 64
    assert (len(curve), curve.first_not_finite, curve.last) == (4096, 1000, values[-1])
    line = run_line(curve, 4096, bins=8)
    known = np.array(values)
    known[1000] = math.nan
    assert line.value_P == pytest.approx(np.nanmean(known.reshape(8, -1), axis=1))
    assert line.low_P == pytest.approx(np.nanmin(known.reshape(8, -1), axis=1))
    assert line.high_P == pytest.approx(np.nanmax(known.reshape(8, -1), axis=1))


ODD = [*DAMAGED.values(), b'{"step": 5, "loss": null, "lr": 1e-05}', b'{"step": 5, "loss": 2.5, "more": 1}', VALIDATION]


@settings(max_examples=50)
@given(odd=st.lists(st.tuples(st.integers(0, 20), st.sampled_from(ODD)), max_size=3))
def test_wanted_curves_are_those_of_a_reader_that_parses_every_line(odd, tmp_path_factory):
    lines = [b'{"step": %d, "loss": %d.5, "lr": 1e-05}' % (step, 20 - step) for step in range(20)]
    for place, line in odd:
        lines.insert(place, line)
    path = written(tmp_path_factory.mktemp("run") / "metrics.jsonl", *lines)
    wanted = {"loss", "valid/bound"}
    every, some = MetricsFile(path).refresh(), MetricsFile(path, wanted).refresh()
    assert {key: repr(curve) for key, curve in every.curves.items() if key in wanted} == {
        key: repr(some.curves[key]) for key in every.curves if key in wanted
    }
    assert (some.unreadable, set(some.names)) == (every.unreadable, set(every.names))


def test_only_the_wanted_metrics_have_curves_but_all_have_last_values(tmp_path):
    path = written(tmp_path / "metrics.jsonl", *SOUND, VALIDATION)
    every, one = MetricsFile(path).refresh(), MetricsFile(path, {"valid/bound"}).refresh()
    assert list(one.curves) == ["valid/bound"]
    assert one.curves["valid/bound"] == every.curves["valid/bound"]
    assert (one.last, set(one.names)) == (every.last, set(every.names))


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"status": "asleep", "step": 3}',
        '{"status": ["running"], "step": 3}',
        '{"status": "running", "step": "3"}',
        f'{{"status": "running", "step": {10**400}}}',
        '{"status": "running", "step": 3, "reason": 7}',
        '{"status": "running", "step": 3, "more": 7}',
        "\0" * 50,
    ],
)
def test_a_damaged_status_is_no_status(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.status_file.write_text(content)
    assert folder.read_status() is None
    folder.write_status(Status("running", 3))
    assert folder.read_status() == Status("running", 3)


@pytest.mark.parametrize(
    ("kept", "step", "every", "lost"),
    [
        (10, 10, 1, ""),
        (7, 10, 1, "steps 8 to 10"),
        (9, 10, 1, "step 10"),
        (0, 10, 1, "steps 1 to 10"),
        (None, 10, 4, "steps 1 to 8"),
        (8, 10, 4, ""),
        (4, 10, 4, "step 8"),
        (1, 10, 10**15, ""),
        (0, 10, 10**15, "step 1"),
    ],
)
def test_rows_that_are_missing_at_the_end_are_named(kept, step, every, lost, tmp_path):
    """A row of training precedes the validation of its step.  None is a file that was deleted."""
    rows = [{"step": s, "loss": None} for s in range(1, step + 1) if (s == 1 or s % every == 0) and s <= (kept or 0)]
    if kept is not None:
        text = "".join(json.dumps(row) + "\n" for row in [*rows, {"step": step, "valid/loss": 3.0}])
        (tmp_path / "metrics.jsonl").write_text(text)
    note = missing_at_end(tmp_path / "metrics.jsonl", step, every)
    assert note.startswith(f"metrics.jsonl has lost the rows of {lost}: ") if lost else note == ""


def test_a_process_that_has_written_no_row_has_lost_none(tmp_path):
    """It continued the run of another folder after step 100."""
    assert missing_at_end(tmp_path / "metrics.jsonl", 104, every=50, since=100) == ""
    assert missing_at_end(tmp_path / "metrics.jsonl", 150, every=50, since=100)
