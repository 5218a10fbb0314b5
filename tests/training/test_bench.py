"""What `ltg-mdlm bench` counts, and which parts of a step it times; durations are not tested."""

from contextlib import suppress
from dataclasses import replace

import pytest
from rich.console import Console
from support.runs import TINY

from ltg_mdlm.core.config import CurriculumConfig
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.training.bench import BenchReport, Spread, bench, print_report, replaced, steady

PHASES = {"data", "masking", "forward", "backward", "optimizer", "EMA", "other"}


@pytest.fixture(scope="module")
def report() -> BenchReport:
    found = bench(load_settings((), TINY, ["freq_mdlm"]), rows=10, steps=3)
    assert found is not None
    return found


def test_every_part_of_the_step_is_timed_once(report):
    assert set(report.phase_seconds) == PHASES
    assert all(seconds > 0 for seconds in report.phase_seconds.values())


def test_rows_and_tokens_are_those_of_the_batch(report):
    assert (report.global_batch_rows, report.seq_len, report.micro_batch_rows) == (10, 32, 10)
    assert 0 < report.supervised_share < report.non_pad_share <= 1
    assert report.waiting_for_gradients is None


def test_rates_follow_from_the_median_step():
    made = BenchReport(
        machine="m", versions="v", precision="fp32", processes=2, threads=1, parameters=1, seq_len=100,
        global_batch_rows=10, micro_batch_rows=5, steps=3, non_pad_share=0.9, supervised_share=0.3,
        step_seconds=Spread(2.0, 1.0, 3.0), phase_seconds={"data": 1.0}, waiting_for_gradients=0.05,
        peak_memory_bytes=1, peak_flops=1e6, flops_per_token=1000.0,
    )  # fmt: skip
    assert made.padded_tokens_per_second == 500
    assert made.tokens_per_second == pytest.approx(450)
    assert made.share_of_peak == pytest.approx(500 * 1000 / 2e6)
    assert made.to_json()["share_of_peak"] == made.share_of_peak


def test_everything_is_printed_with_its_unit(report):
    console = Console(width=200, record=True)
    print_report(replace(report, waiting_for_gradients=0.25, processes=2), console)
    text = console.export_text()
    for words in ("tokens/s", "GiB per process", "M forward and backward", "25.0% of the step", *PHASES):
        assert words in text


def test_ramps_and_stages_are_replaced_by_equal_steps():
    sets = ["training.batch_ramp={start: 0.25}", "training.seq_len_schedule=[[0, 16], [0.5, 32]]", "training.epochs=2"]
    config = load_settings((), [*sets, "training.max_steps=null"]).config
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"curriculum": CurriculumConfig(by="words", over="training")})}
    )
    assert steady(config, None, max_steps=11).data.curriculum is None
    training = steady(config, None, max_steps=11).training
    assert (training.seq_len, training.max_steps, training.epochs) == (16, 11, None)
    assert training.batch_ramp is None
    assert training.stages == [(0.0, 16)]
    assert training.global_batch_rows == config.training.global_batch_rows


def test_slow_steps_are_timed_fewer_times_but_at_least_three():
    found = bench(load_settings((), TINY), steps=8, seconds=1e-6)
    assert found is not None
    assert found.steps == 3


class Owner:
    def method(self) -> str:
        return "own"


def test_a_replaced_method_is_restored_even_after_an_error():
    owner = Owner()
    with suppress(ZeroDivisionError), replaced(owner, "method", lambda: "other"):
        assert owner.method() == "other"
        raise ZeroDivisionError
    assert owner.method() == "own"
