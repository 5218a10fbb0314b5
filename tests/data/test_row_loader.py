"""Batches of packed rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import split_of_lengths

from ltg_mdlm.api import Batch
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.row_loader import RowLoader, micro_batch_bounds, validation_batches
from ltg_mdlm.data.tokenizer import BOS, EOS, PAD

SPLIT = split_of_lengths([37, 5, 80, 12, 1, 64] * 10)
FIELDS = ("ids_BT", "document_BT", "position_BT", "maskable_BT", "row_B")


def planned(**options) -> BatchSchedule:
    defaults = {"stages": [(0, 16), (0.5, 32)], "global_batch_rows": 24, "max_steps": 40, "ramp": (0.5, 1.0)}
    return BatchSchedule.plan(SPLIT, **{**defaults, **options})


def loader(schedule: BatchSchedule, **options) -> RowLoader:
    return RowLoader(SPLIT, schedule, **{"seed": 3, "micro_batch_rows": 5, **options})


def global_batch(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in FIELDS}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 39))
def test_a_global_batch_is_the_same_for_any_ranks_and_micro_batches(world_size, micro_batch_rows, step):
    schedule = planned()
    expected = global_batch(loader(schedule).micro_batches(step))
    ranks = [
        loader(schedule, rank=rank, world_size=world_size, micro_batch_rows=micro_batch_rows).micro_batches(step)
        for rank in range(world_size)
    ]
    found = global_batch([batch for batches in ranks for batch in batches])
    assert all(torch.equal(found[name], expected[name]) for name in FIELDS)
    assert found["row_B"].tolist() == list(range(schedule.rows(step)))
    assert max(len(batch.row_B) for batches in ranks for batch in batches) <= micro_batch_rows
    shares = [sum(len(batch.row_B) for batch in batches) for batches in ranks]
    assert max(shares) - min(shares) <= 1


def test_a_batch_has_the_types_that_plugins_rely_on():
    batch = loader(planned()).micro_batches(0)[0]
    types = [getattr(batch, name).dtype for name in FIELDS]
    assert types == [torch.int64, torch.int32, torch.int64, torch.bool, torch.int64]
    assert batch.ids_BT.shape == batch.document_BT.shape == batch.position_BT.shape == batch.maskable_BT.shape
    assert ((batch.ids_BT == PAD) == (batch.document_BT == -1)).all()
    assert (batch.position_BT[(batch.ids_BT == BOS) | (batch.ids_BT == PAD)] == -1).all()


def test_steps_are_the_same_in_any_order():
    """The loader has no state between steps, so a resumed run restores none."""
    schedule = planned()
    reader = loader(schedule)
    in_order = [global_batch(reader.micro_batches(step)) for step in range(40)]
    reader = loader(schedule)
    for step in np.random.default_rng(0).permutation(40).tolist():
        again = global_batch(reader.micro_batches(step))
        assert all(torch.equal(again[name], in_order[step][name]) for name in FIELDS)


@pytest.mark.parametrize("packing", ["documents_packed", "one_document"])
def test_each_epoch_of_a_stage_trains_on_every_token_once(packing):
    schedule = planned(packing=packing, max_steps=60)
    reader = loader(schedule)
    for stage in schedule.stages:
        steps = range(stage.first_step, stage.first_step + stage.steps)
        batches = [global_batch(reader.micro_batches(step)) for step in steps]
        position_RT = torch.cat([batch["position_BT"] for batch in batches])
        assert stage.epochs > 1
        for epoch in range(int(stage.epochs)):
            places = position_RT[epoch * stage.plan.rows : (epoch + 1) * stage.plan.rows]
            assert sorted(places[places >= 0].tolist()) == list(range(SPLIT.num_tokens))


def test_words_and_tokens_seen_are_those_of_the_batches():
    schedule = planned()
    reader = loader(schedule, rank=1, world_size=3)  # counts are global for every rank
    whole = loader(schedule)
    marks = torch.from_numpy(np.append(SPLIT.word_start(0, SPLIT.num_tokens), False))
    words = tokens = 0
    assert (reader.words_seen(-1), reader.tokens_seen(-1)) == (0, 0)
    for step in range(40):
        batch = global_batch(whole.micro_batches(step))
        words += int(marks[batch["position_BT"]].sum())
        tokens += int((batch["document_BT"] >= 0).sum())
        assert (reader.words_seen(step), reader.tokens_seen(step)) == (words, tokens)
        assert reader.epoch(step + 1) == schedule.epoch(step + 1)


def test_the_order_depends_on_the_seed():
    schedule = planned()
    first, again, other = (global_batch(loader(schedule, seed=seed).micro_batches(4)) for seed in (1, 1, 2))
    assert torch.equal(first["ids_BT"], again["ids_BT"])
    assert not torch.equal(first["ids_BT"], other["ids_BT"])


def test_an_end_of_document_is_maskable_but_has_no_position_in_the_corpus():
    schedule = planned(end_of_document=True, stages=[(0, 16)], max_steps=30, ramp=None)
    reader = loader(schedule)
    rows = global_batch([batch for step in range(30) for batch in reader.micro_batches(step)])
    epoch = slice(0, schedule.stages[0].plan.rows)
    ends = rows["ids_BT"][epoch] == EOS
    assert ends.sum() == SPLIT.num_documents
    assert rows["maskable_BT"][epoch][ends].all()
    assert (rows["position_BT"][epoch][ends] == -1).all()


def test_more_ranks_than_rows_are_refused():
    with pytest.raises(UserError, match="smallest global batch has 9 rows for 10 processes"):
        loader(planned(), world_size=10)


def test_an_error_in_the_background_thread_is_raised_at_its_step(monkeypatch):
    reader = loader(planned())
    build = reader._build
    monkeypatch.setattr(reader, "_build", lambda step: build(step) if step != 1 else 1 / 0)
    reader.micro_batches(0)
    with pytest.raises(ZeroDivisionError):
        reader.micro_batches(1)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 20))
def test_micro_batches_are_few_and_of_nearly_equal_size(start, rows, most):
    bounds = list(micro_batch_bounds(start, start + rows, most))
    sizes = [end - begin for begin, end in bounds]
    assert [place for begin, end in bounds for place in range(begin, end)] == list(range(start, start + rows))
    assert len(sizes) == -(-rows // most)
    assert not sizes or (max(sizes) <= most and max(sizes) - min(sizes) <= 1)


@settings(deadline=None)
@given(st.integers(1, 9), st.sampled_from([None, 1, 7, 10_000]))
def test_validation_rows_are_the_same_for_any_number_of_ranks(world_size, rows):
    def held_out(rank: int = 0, world_size: int = 1):
        return validation_batches(SPLIT, seq_len=16, micro_batch_rows=6, rows=rows, rank=rank, world_size=world_size)

    whole = held_out()
    expected = global_batch(whole.batches)
    found = global_batch([batch for rank in range(world_size) for batch in held_out(rank, world_size).batches])
    assert all(torch.equal(found[name], expected[name]) for name in FIELDS)
    assert whole.rows == len(expected["row_B"])
    places = expected["position_BT"][expected["position_BT"] >= 0]
    assert len(set(places.tolist())) == len(places)
    if rows in (None, 10_000):
        assert len(places) == SPLIT.num_tokens
    else:
        assert whole.rows == rows


@pytest.mark.gpu
def test_batches_reach_the_gpu_unchanged():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    schedule = planned()
    on_cpu, on_gpu = loader(schedule), loader(schedule, device="cuda")
    for step in range(10):
        expected, found = global_batch(on_cpu.micro_batches(step)), global_batch(on_gpu.micro_batches(step))
        assert all(found[name].is_cuda and torch.equal(found[name].cpu(), expected[name]) for name in FIELDS)
