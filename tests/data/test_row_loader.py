"""Batches of packed rows."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import split_of_lengths

from ltg_mdlm.api import Batch
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.epoch_sampling import EpochSampling, Mixture
from ltg_mdlm.data.row_loader import RowLoader, micro_batch_bounds, validation_batches
from ltg_mdlm.data.tokenizer import BOS, EOS, PAD

SPLIT = split_of_lengths([37, 5, 80, 12, 1, 64] * 10)
SOURCES = dataclasses.replace(
    SPLIT, source_D=(np.arange(SPLIT.num_documents) % 3).astype(np.int16), source_names=("a", "b", "c")
)
FIELDS = ("ids_BT", "document_BT", "position_BT", "maskable_BT", "row_B")


def planned(**options) -> BatchSchedule:
    defaults = {"stages": [(0, 16), (0.5, 32)], "global_batch_rows": 24, "max_steps": 40, "ramp": (0.5, 1.0)}
    return BatchSchedule.plan(SPLIT, **{**defaults, **options})


def loader(schedule: BatchSchedule, **options) -> RowLoader:
    return RowLoader(SPLIT, schedule, **{"seed": 3, "micro_batch_rows": 5, **options})


def global_batch(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in FIELDS}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 39), st.booleans())
def test_a_global_batch_is_the_same_for_any_ranks_and_micro_batches(world_size, micro_batch_rows, step, full):
    schedule = planned()
    expected = global_batch(loader(schedule).micro_batches(step))
    options = {"world_size": world_size, "micro_batch_rows": micro_batch_rows, "full_micro_batches": full}
    ranks = [loader(schedule, rank=rank, **options).micro_batches(step) for rank in range(world_size)]
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


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 20))
def test_all_full_micro_batches_but_the_last_have_the_same_size(start, rows, most):
    bounds = list(micro_batch_bounds(start, start + rows, most, full=True))
    assert [place for begin, end in bounds for place in range(begin, end)] == list(range(start, start + rows))
    assert len(bounds) == -(-rows // most)
    assert all(end - begin == most for begin, end in bounds[:-1])


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


def test_a_batch_knows_the_source_of_every_token():
    schedule = BatchSchedule.plan(SOURCES, stages=[(0, 32)], global_batch_rows=24, max_steps=5, end_of_document=True)
    document_N = np.repeat(np.arange(SOURCES.num_documents), np.diff(SOURCES.offsets))
    for step in range(5):
        for batch in RowLoader(SOURCES, schedule, seed=0, micro_batch_rows=7).micro_batches(step):
            assert batch.source_BT.dtype == torch.int16
            assert ((batch.source_BT == -1) == (batch.document_BT == -1)).all()
            has_place = batch.position_BT >= 0
            expected = document_N[batch.position_BT[has_place]] % 3
            assert batch.source_BT[has_place].tolist() == expected.tolist()
            # `<s>` and `</s>` have the source of their document.
            within = batch.document_BT[:, 1:] == batch.document_BT[:, :-1]
            assert (batch.source_BT[:, 1:] == batch.source_BT[:, :-1])[within].all()
    held_out = validation_batches(SOURCES, seq_len=32, micro_batch_rows=9)
    assert all(((batch.source_BT >= 0) == (batch.document_BT >= 0)).all() for batch in held_out.batches)
    assert loader(planned()).micro_batches(0)[0].source_BT is None


TWO_STAGES = {"stages": [(0, 16), (0.5, 32)], "global_batch_rows": 50, "max_steps": 30, "ramp": (0.3, 1.0)}


class ChosenRows:
    """An order that depends on what was asked before, and notes when it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.step = 0

    def __call__(self, stage, number, rows, key):
        self.asked.append((self.step, stage, number))
        return np.random.default_rng((*key, self.step)).integers(0, rows.count, rows.count)


def not_uniform(kind: str, **options) -> tuple[RowLoader, ChosenRows]:
    schedule = BatchSchedule.plan(SOURCES, **TWO_STAGES)
    chosen = ChosenRows()
    if "mixture" in kind:
        mixture = Mixture(start_G=np.array([2.0, 1, 0]), end_G=np.array([0, 1.0, 2]))
        options["sampling"] = EpochSampling(split=SOURCES, schedule=schedule, seed=3, mixture=mixture)
    if "order" in kind:
        options["choose_rows"] = chosen
    return RowLoader(SOURCES, schedule, **{"seed": 3, "micro_batch_rows": 20, **options}), chosen


def test_rows_are_chosen_at_the_start_of_the_step_before_the_first_that_needs_them():
    reader, chosen = not_uniform("order")
    schedule, needed = BatchSchedule.plan(SOURCES, **TWO_STAGES), {}
    for step in range(30):
        stage = schedule.stage(step)
        first, rows = schedule.first_row_in_stage(step), schedule.rows(step)
        for row in range(first, first + rows):
            needed.setdefault((stage, row // schedule.stages[stage].plan.rows), max(step - 1, 0))
        chosen.step = step
        reader.micro_batches(step)
    assert chosen.asked == [(step, *epoch) for epoch, step in needed.items()]
    assert len(chosen.asked) > 6


@pytest.mark.parametrize("kind", ["mixture", "order", "mixture and order"])
def test_counts_are_exact_and_a_resume_at_any_step_has_the_same_rows(kind):
    reader, chosen = not_uniform(kind, rank=0, world_size=1)
    marks = torch.from_numpy(np.append(SPLIT.word_start(0, SPLIT.num_tokens), False))
    batches, states, counts, words, tokens = [], [], [], 0, 0
    for step in range(30):
        chosen.step = step
        states.append({key: value.clone() for key, value in reader.state_dict(step).items()})
        batch = global_batch(reader.micro_batches(step))
        words += int(marks[batch["position_BT"]].sum())
        tokens += int((batch["document_BT"] >= 0).sum())
        assert (reader.words_seen(step), reader.tokens_seen(step)) == (words, tokens)
        batches.append(batch)
        counts.append((words, tokens))
    for start in range(1, 30):
        resumed, chosen = not_uniform(kind)
        resumed.load_state_dict(states[start])
        assert (resumed.words_seen(start - 1), resumed.tokens_seen(start - 1)) == counts[start - 1]
        for step in range(start, min(start + 6, 30)):
            chosen.step = step
            again = global_batch(resumed.micro_batches(step))
            assert all(torch.equal(again[name], batches[step][name]) for name in FIELDS)
            assert (resumed.words_seen(step), resumed.tokens_seen(step)) == counts[step]
        now = resumed.state_dict(step + 1)
        if step + 1 < 30:
            assert now.keys() == states[step + 1].keys()
            assert all(torch.equal(now[key], states[step + 1][key]) for key in now)


def test_every_rank_takes_its_share_of_the_chosen_rows():
    whole = global_batch(not_uniform("mixture and order")[0].micro_batches(0))
    shares = [not_uniform("mixture and order", rank=r, world_size=3)[0].micro_batches(0) for r in range(3)]
    found = global_batch([batch for share in shares for batch in share])
    assert all(torch.equal(found[name], whole[name]) for name in FIELDS)


def test_the_default_order_is_the_order_of_the_table():
    plain = RowLoader(SOURCES, BatchSchedule.plan(SOURCES, **TWO_STAGES), seed=3, micro_batch_rows=20)
    reader = not_uniform("", choose_rows=lambda stage, number, rows, key: np.arange(rows.count))[0]
    for step in range(30):
        expected, found = global_batch(plain.micro_batches(step)), global_batch(reader.micro_batches(step))
        assert all(torch.equal(found[name], expected[name]) for name in FIELDS)
        assert reader.words_seen(step) == plain.words_seen(step)
    assert plain.state_dict(5) == {}


def test_the_table_describes_the_pieces_of_every_row():
    tables = []
    reader = not_uniform("mixture", choose_rows=lambda *a: tables.append(a[2]) or np.arange(a[2].count))[0]
    batches = [global_batch(reader.micro_batches(step)) for step in (0, 1)]
    rows, table = torch.cat([batch["position_BT"] for batch in batches]), tables[0]
    marks = np.append(SPLIT.word_start(0, SPLIT.num_tokens), False)
    for row in range(min(len(rows), table.count)):
        pieces = range(table.bound_R1[row], table.bound_R1[row + 1])
        places = [p for i in pieces for p in range(table.start_P[i], table.start_P[i] + table.length_P[i])]
        assert rows[row][rows[row] >= 0].tolist() == places
        assert table.words_P[pieces.start : pieces.stop].sum() == marks[places].sum()
        documents = np.searchsorted(SOURCES.offsets, table.start_P[pieces.start : pieces.stop], side="right") - 1
        assert table.source_P[pieces.start : pieces.stop].tolist() == SOURCES.source_D[documents].tolist()
    assert table.sum_by_row(table.length_P).sum() == table.length_P.sum()


def test_scores_that_changed_since_the_checkpoint_are_refused():
    schedule = BatchSchedule.plan(SOURCES, **TWO_STAGES)
    first, second = (
        RowLoader(
            SOURCES,
            schedule,
            seed=0,
            micro_batch_rows=20,
            sampling=EpochSampling(split=SOURCES, schedule=schedule, seed=0, difficulty_D=difficulty_D),
        )
        for difficulty_D in (SOURCES.words.astype(float), -SOURCES.words.astype(float))
    )
    with pytest.raises(UserError, match=r"data.curriculum: the scores of the documents are not those with which"):
        second.load_state_dict(first.state_dict(3))


@pytest.mark.gpu
def test_batches_reach_the_gpu_unchanged():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    schedule = planned()
    on_cpu, on_gpu = loader(schedule), loader(schedule, device="cuda")
    for step in range(10):
        expected, found = global_batch(on_cpu.micro_batches(step)), global_batch(on_gpu.micro_batches(step))
        assert all(found[name].is_cuda and torch.equal(found[name].cpu(), expected[name]) for name in FIELDS)
