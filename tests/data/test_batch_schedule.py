"""The rows of every step."""

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.corpora import split_of_lengths

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.packing import RowPlan

SPLIT = split_of_lengths([37, 5, 80, 12] * 25)
LENGTHS = (8, 16, 32)
PLANS = {n: RowPlan(SPLIT, n, packing="documents_packed", end_of_document=False) for n in LENGTHS}
STAGES = [(0, 8), (0.7, 16), (0.9, 32)]


def exact_steps(max_steps, stages, batch_rows, ramp=None):
    """(row length, rows) of each step, in exact arithmetic."""
    steps = []
    for s in range(max_steps):
        progress = Fraction(s, max_steps)
        length = [n for start, n in stages if Fraction(str(start)) <= progress][-1]
        share = Fraction(1)
        if ramp and progress < Fraction(str(ramp[1])):
            start, until = (Fraction(str(value)) for value in ramp)
            share = start + (1 - start) * progress / until
        steps.append((length, batch_rows * share * stages[0][1] / length))
    return steps


@given(st.integers(1, 300), st.integers(1, 100), st.sampled_from([None, (0.25, 1.0), (0.5, 0.3)]))
def test_every_step_has_its_length_and_as_many_tokens_as_the_ramp_allows(max_steps, batch_rows, ramp):
    schedule = BatchSchedule(PLANS, stages=STAGES, global_batch_rows=batch_rows, max_steps=max_steps, ramp=ramp)
    expected = exact_steps(max_steps, STAGES, batch_rows, ramp)
    assert [schedule.seq_len(s) for s in range(max_steps)] == [length for length, _ in expected]
    for step, (_, rows) in enumerate(expected):
        assert abs(schedule.rows(step) - max(rows, 1)) <= 0.5 + 1e-9
    assert schedule.smallest_batch == min(map(schedule.rows, range(max_steps)))


def test_the_gpt_bert_recipe_has_the_published_numbers():
    """15,625 steps; 32,768 rows of 128 from a quarter up, then half and a quarter as many: about 41e9 tokens."""
    stages = [(0, 8), (0.7, 16), (0.9, 32)]  # 128, 256 and 512 in sixteenths: only their ratios matter here
    schedule = BatchSchedule(PLANS, stages=stages, global_batch_rows=32_768, max_steps=15_625, ramp=(0.25, 1.0))
    assert (schedule.rows(0), schedule.rows(15_624)) == (8192, 8192)
    assert [stage.first_step for stage in schedule.stages] == [0, 10_938, 14_063]
    tokens = 16 * sum(schedule.rows(s) * schedule.seq_len(s) for s in range(15_625))
    assert tokens == pytest.approx(41e9, rel=0.01)


@given(st.integers(1, 200), st.sampled_from([1, 7, 64]))
def test_the_steps_of_a_stage_take_consecutive_rows_from_the_first_on(max_steps, batch_rows):
    schedule = BatchSchedule(PLANS, stages=STAGES, global_batch_rows=batch_rows, max_steps=max_steps)
    in_stage = in_all = 0
    for step in range(max_steps):
        if step and schedule.seq_len(step) != schedule.seq_len(step - 1):
            in_stage = 0
        assert (schedule.first_row_in_stage(step), schedule.first_row(step)) == (in_stage, in_all)
        in_stage += schedule.rows(step)
        in_all += schedule.rows(step)
    assert sum(stage.steps for stage in schedule.stages) == max_steps
    assert sum(stage.rows for stage in schedule.stages) == schedule.totals().rows == in_all


@given(st.floats(0.05, 30), st.sampled_from([1, 5, 40]), st.sampled_from([None, (0.25, 1.0)]))
def test_whole_steps_come_as_close_to_the_epochs_as_possible_from_below(epochs, batch_rows, ramp):
    def planned(**length):
        return BatchSchedule(PLANS, stages=STAGES, global_batch_rows=batch_rows, ramp=ramp, **length)

    first = planned(max_steps=1)
    assume(first.epoch(1) <= epochs)
    schedule = planned(epochs=epochs)
    steps = schedule.max_steps
    assert schedule.epoch(steps) == pytest.approx(sum(s.rows / PLANS[s.seq_len].rows for s in schedule.stages))
    assert schedule.epoch(steps) <= epochs
    assert planned(max_steps=steps + 1).epoch(steps + 1) > epochs


def test_fewer_epochs_than_a_batch_are_refused():
    with pytest.raises(UserError, match=r"training.epochs: 0.5 epochs are less than one step: an epoch has \d+ rows"):
        BatchSchedule(PLANS, stages=[(0, 8)], global_batch_rows=PLANS[8].rows, epochs=0.5)


def test_epochs_grow_from_zero_to_the_total():
    schedule = BatchSchedule(PLANS, stages=STAGES, global_batch_rows=16, max_steps=100)
    passed = [schedule.epoch(step) for step in range(101)]
    assert passed[0] == 0
    assert passed == sorted(passed)
    assert passed[-1] == schedule.totals().epochs
    assert passed[50] == pytest.approx(50 * 16 / PLANS[8].rows)


def test_totals_of_whole_epochs_are_the_corpus():
    plan = PLANS[16]
    schedule = BatchSchedule(PLANS, stages=[(0, 16)], global_batch_rows=plan.rows, max_steps=3)
    totals = schedule.totals()
    assert (totals.epochs, totals.rows) == (3, 3 * plan.rows)
    assert (totals.tokens, totals.words) == (3 * plan.tokens, 3 * SPLIT.num_words)
    assert totals.tokens_by_length == ((16, 3 * plan.tokens),)


def test_a_stage_without_a_step_is_left_out():
    schedule = BatchSchedule(PLANS, stages=STAGES, global_batch_rows=4, max_steps=2)
    assert [(stage.seq_len, stage.steps) for stage in schedule.stages] == [(8, 2)]


def test_the_arithmetic_is_shown():
    schedule = BatchSchedule.plan(SPLIT, stages=STAGES, global_batch_rows=16, max_steps=1000, ramp=(0.25, 1.0))
    lines = schedule.describe()
    assert len(lines) == 4
    assert lines[0].startswith(f"stage 1: 700 steps of 4 to 12 rows of 8; an epoch: {PLANS[8].rows} rows (")
    totals = schedule.totals()
    assert lines[-1] == (
        f"in total 1,000 steps, {totals.epochs:.2f} epochs, {totals.rows:,} rows,"
        f" about {totals.tokens:,} tokens, about {totals.words:,} words"
    )
    whole = BatchSchedule.plan(SPLIT, stages=[(0.0, 8)], global_batch_rows=PLANS[8].rows, epochs=3)
    assert whole.describe()[-1].endswith(f", {3 * PLANS[8].tokens:,} tokens, {3 * PLANS[8].words:,} words")


@given(st.integers(1, 60), st.integers(1, 100), st.integers(1, 40), st.integers(1, 5), st.floats(0, 20))
def test_equal_micro_batches_take_the_least_time_of_all_even_divisions(steps, batch, most, world_size, overhead):
    schedule = BatchSchedule(PLANS, stages=[(0, 8)], global_batch_rows=batch, max_steps=steps, ramp=(0.25, 1.0))
    shares = [math.ceil(schedule.rows(step) / world_size) for step in range(steps)]

    def time(rows):
        return sum(math.ceil(share / rows) * (rows + overhead) for share in shares)

    rows = schedule.equal_micro_batches(0, most, world_size=world_size, overhead=overhead)
    assert 1 <= rows <= most
    fewest = math.ceil(max(shares) / most)
    assert time(rows) <= time(math.ceil(max(shares) / fewest)) + 1e-9


def test_a_constant_batch_is_divided_evenly_and_a_growing_one_into_smaller_parts():
    constant = BatchSchedule(PLANS, stages=[(0, 8)], global_batch_rows=96, max_steps=20)
    growing = BatchSchedule(PLANS, stages=[(0, 8)], global_batch_rows=96, max_steps=20, ramp=(0.25, 1.0))
    assert constant.equal_micro_batches(0, 40, world_size=1, overhead=1) == 32
    assert growing.equal_micro_batches(0, 96, world_size=1, overhead=1) < 40
