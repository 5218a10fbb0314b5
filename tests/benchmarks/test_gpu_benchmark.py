"""benchmarks/gpu.py without a GPU: the time that it keeps to, what it writes, and cells that fail."""

import importlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = ("--device", "cpu", "--sizes", "tiny", "--lengths", "16", "--tokens", "64", "--compiled", "no")


@pytest.fixture
def gpu(monkeypatch):
    """The module; its neighbour `markdown` has the name of a package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "markdown", raising=False)
    monkeypatch.delitem(sys.modules, "gpu", raising=False)
    module = importlib.import_module("gpu")
    yield module
    del sys.modules["markdown"], sys.modules["gpu"]


@pytest.fixture
def command(gpu, monkeypatch, tmp_path):
    """Run the command line; returns what it wrote as JSON."""
    monkeypatch.setattr(gpu.Worker, "__call__", lambda _, seconds, *call: gpu.attempt(*call))  # in this process
    monkeypatch.setitem(sys.modules, "flashdeberta", None)  # as if it was not installed
    monkeypatch.setattr(gpu, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(gpu, "matrix_peak", lambda *_, **__: 1e12)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu.py", *TINY, "--json", str(tmp_path / "gpu.json"), *arguments])
        gpu.main()

    run.json = lambda: json.loads((tmp_path / "gpu.json").read_text())
    return run


def test_the_command_checks_and_measures_and_writes_a_page_and_a_file(command, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- gpu -->\n<!-- /gpu -->\n")
    command("--kernels", "library", "published", "flashdeberta", "--write", str(page))
    report = command.json()
    assert report["complete"]
    checks = {(check["kernel"], check["precision"]): check for check in report["correctness"]}
    assert checks["library", "fp32"]["largest_error"] < 1e-5
    assert 1e-4 < checks["library", "bf16"]["largest_error"] < 0.1
    cells = {cell["kernel"]: cell for cell in report["cells"]}
    for kernel in ("library", "published"):
        assert cells[kernel]["rows"] == 4
        median = cells[kernel]["step_seconds"]["median"]
        assert cells[kernel]["tokens_per_second"] == pytest.approx(64 / median)
        assert cells[kernel]["launches"] > 100
        assert {"name", "count", "seconds"} == cells[kernel]["operations"][0].keys()
    missing = "the package flashdeberta is not installed"
    assert cells["flashdeberta"]["error"] == checks["flashdeberta", "fp32"]["error"] == missing
    assert f"| tiny | 16 | flashdeberta | no | {missing} |" in page.read_text()
    assert "What a step of tiny, T 16, library consists of:" in page.read_text()


def test_a_command_that_is_stopped_has_written_the_cells_before(command, gpu, monkeypatch):
    calls = itertools.count()

    def measure_or_stop(worker, conditions, cell, seconds):
        if next(calls):
            raise KeyboardInterrupt
        return worker(seconds, gpu.measure_cell, cell, conditions)

    monkeypatch.setattr(gpu, "measure_by", measure_or_stop)
    with pytest.raises(KeyboardInterrupt):
        command("--kernels", "library", "published")
    report = command.json()
    assert not report["complete"]
    assert len(report["cells"]) == 1
    assert report["cells"][0]["tokens_per_second"] > 0


def measured(gpu, minutes, seconds_of):
    """Results under a clock that only cells advance."""
    now = [0.0]

    def measure(cell, left):
        now[0] += seconds_of(cell)
        return {"tokens_per_second": 1.0}

    cells = [
        gpu.Cell(*choice)
        for choice in itertools.product(("base", "small"), (128, 512, 1024), ("fused", "published"), (True, False))
    ]
    return list(gpu.measure_in_time(cells, measure, 60 * minutes, lambda: now[0])), now[0]


def test_with_enough_time_every_cell_is_measured_the_most_important_first(gpu):
    results, _ = measured(gpu, 60, lambda cell: 1.0)
    assert not any("left_out" in result for result in results)
    assert len(results) == 24
    first = results[0]
    assert (first["size"], first["length"], first["kernel"], first["compiled"]) == ("base", 128, "fused", True)
    last = results[-1]
    assert (last["size"], last["length"], last["kernel"], last["compiled"]) == ("small", 1024, "published", True)


def test_cells_that_would_take_too_long_are_left_out_and_the_others_measured(gpu):
    """Compiled ones take a minute here, others a second: after the first few, only the latter fit."""
    results, used = measured(gpu, 5, lambda cell: 60.0 if cell.compiled else 1.0)
    assert used <= 300
    left_out = [result for result in results if "left_out" in result]
    assert left_out
    assert all(result["compiled"] for result in left_out)
    assert all("expected to take" in result["left_out"] for result in left_out)
    assert sum("left_out" not in result for result in results if not result["compiled"]) == 12


def test_the_time_of_a_cell_is_expected_from_cells_of_the_same_kernel(gpu):
    cell = gpu.Cell("base", 128, "published", True)
    results = [
        {"kernel": "fused", "compiled": True, "seconds": 50.0},
        {"kernel": "published", "compiled": False, "seconds": 900.0},
        {"kernel": "flashdeberta", "compiled": True, "seconds": 1000.0, "error": "stopped"},
    ]
    assert gpu.expected_seconds(cell, []) == gpu.EXPECTED_SECONDS[True]
    assert gpu.expected_seconds(cell, results) == 50.0
    results.append({"kernel": "published", "compiled": True, "seconds": 80.0})
    assert gpu.expected_seconds(cell, results) == 80.0


def test_rows_are_halved_until_memory_is_enough(gpu, monkeypatch):
    tried = []

    def measure_rows(cell, conditions, rows):
        tried.append(rows)
        if rows > enough:
            raise torch.OutOfMemoryError
        return {"rows": rows}

    monkeypatch.setattr(gpu, "measure_rows", measure_rows)
    cell, conditions = gpu.Cell("tiny", 16, "library", False), gpu.Conditions("cpu", False, 256)
    enough = 5
    assert gpu.measure_cell(cell, conditions) == {"rows": 4}
    enough = 0
    tried.clear()
    with pytest.raises(torch.OutOfMemoryError):
        gpu.measure_cell(cell, conditions)
    assert tried == [16, 8, 4, 2]


def test_a_call_that_dies_hangs_or_raises_does_not_keep_the_next_one_from_succeeding(gpu):
    worker = gpu.Worker()
    assert worker(300, os._exit, 3) == {"error": "its process died with exit code 3"}
    assert worker(300, int, "x")["error"].startswith("ValueError: invalid literal")
    assert worker(0.2, time.sleep, 60) == {"error": "stopped after 0 s"}
    assert worker(300, dict, [("answer", 1)]) == {"answer": 1}
    worker.stop()


def test_a_kernel_whose_error_is_more_than_twice_that_of_the_library_is_called_wrong(gpu):
    def check(kernel, error):
        return {
            "kernel": kernel, "precision": "bf16", "error": "", "largest_error": error, "where": "x", "loss_error": 0.0,
        }  # fmt: skip

    text = gpu.correctness_text([check("library", 0.01), check("fused", 0.019), check("flashdeberta", 0.021)])
    assert [line.split(" | ")[-1].strip(" |") for line in text.splitlines()[2:]] == ["right", "right", "WRONG"]
