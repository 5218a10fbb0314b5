"""Mixtures and curricula: how often each source is seen, and when."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from support.corpora import split_of_lengths

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.corpus import Split
from ltg_mdlm.data.epoch_sampling import EpochSampling, Mixture, quantiles, read_scores
from ltg_mdlm.data.packing import EpochOrder, RowPlan

NAMES = ("talk", "wiki", "news")


def split_with_sources(documents: int = 1500, seed: int = 0) -> Split:
    """Documents of three sources: short ones, long ones of many pieces, and both."""
    rng = np.random.default_rng(seed)
    source_D = rng.integers(0, 3, documents).astype(np.int16)
    longest = np.array([12, 150, 60])[source_D]
    split = split_of_lengths(rng.integers(1, longest + 1).tolist(), seed)
    return dataclasses.replace(split, source_D=source_D, source_names=NAMES)


SPLIT = split_with_sources()


def schedule_of(epochs: float, **options) -> BatchSchedule:
    settings = {"stages": [(0, 32)], "global_batch_rows": 8, "epochs": epochs, **options}
    return BatchSchedule.plan(SPLIT, **settings)


def mixed(start: list[float], end: list[float] | None = None, epochs: float = 3.0, **options) -> EpochSampling:
    mixture = Mixture(start_G=np.array(start), end_G=np.array(end or start))
    return EpochSampling(split=SPLIT, schedule=schedule_of(epochs, **options), seed=3, mixture=mixture)


def tokens_by_source(plan: RowPlan, order: EpochOrder, rows: slice = slice(None)) -> np.ndarray:
    start, stop, _ = rows.indices(len(order.bound_R1) - 1)
    piece_I = order.piece_C[order.bound_R1[start] : order.bound_R1[stop]]
    return np.bincount(plan.source_P[piece_I], plan.pieces.length_P[piece_I], minlength=3)


NATURAL = tokens_by_source(schedule_of(3).stages[0].plan, schedule_of(3).stages[0].plan.order(0))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 3.0]), min_size=3, max_size=3).filter(any),
    st.sampled_from(["documents_packed", "one_document"]),
)
def test_sources_are_seen_in_proportion_to_their_weights(weights, packing):
    sampling = mixed(weights, packing=packing)
    plan = sampling.schedule.stages[0].plan
    seen = sum(tokens_by_source(plan, sampling.order(0, epoch)) for epoch in range(3))
    times = seen / NATURAL
    assert times / times.max() == pytest.approx(np.array(weights) / max(weights), abs=0.03)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(0.1, 4), min_size=3, max_size=3),
    st.lists(st.floats(0.1, 4), min_size=3, max_size=3),
    st.integers(0, 4),
)
def test_every_epoch_has_its_rows_and_counts_their_tokens_and_words(start, end, epoch):
    sampling = mixed(start, end, epochs=5)
    plan = sampling.schedule.stages[0].plan
    order = sampling.order(0, epoch)
    assert len(order.bound_R1) - 1 == plan.rows
    size_R = np.array([plan.size_P[order.rows(r, r + 1)[0]].sum() for r in range(plan.rows)])
    words_R = np.array([plan.words_P[order.rows(r, r + 1)[0]].sum() for r in range(plan.rows)])
    assert 0 < size_R.min() <= size_R.max() <= plan.seq_len
    assert order.tokens_R1.tolist() == [0, *np.cumsum(size_R)]
    assert order.words_R1.tolist() == [0, *np.cumsum(words_R)]


def test_equal_weights_take_every_piece_once():
    order = mixed([0.3] * 3).order(0, 1)
    assert sorted(order.piece_C) == list(range(len(order.piece_C)))


def test_the_times_that_a_piece_is_seen_are_rounded_over_all_epochs():
    """At half the rate a piece is seen once in every two epochs, but for the rows in excess, which are left out."""
    sampling = mixed([1, 1, 1], epochs=4)
    plan = sampling.schedule.stages[0].plan
    weights = np.array([0.5, 1, 0.5])
    sampling = mixed(weights.tolist(), epochs=4)
    count_EP = np.array([np.bincount(sampling.order(0, e).piece_C, minlength=len(plan.size_P)) for e in range(4)])
    rate_G = weights * plan.tokens / sum(weights * np.bincount(plan.source_P, plan.size_P, minlength=3))
    apart = np.abs(count_EP.cumsum(0) - np.arange(1, 5)[:, None] * rate_G[plan.source_P])
    assert np.mean(apart < 1.05) > 0.98


def test_an_epoch_is_a_function_of_seed_stage_and_number():
    """Also where the counts of earlier epochs are not known yet, as after a resume."""
    sampling, resumed = mixed([1, 2, 3], epochs=4), mixed([1, 2, 3], epochs=4)
    orders = [sampling.order(0, epoch) for epoch in range(4)]
    assert np.array_equal(resumed.order(0, 3).piece_C, orders[3].piece_C)
    assert np.array_equal(sampling.order(0, 1).piece_C, orders[1].piece_C)
    assert not np.array_equal(orders[0].piece_C[:50], orders[1].piece_C[:50])


@pytest.mark.parametrize("epochs", [1.0, 4.0])
def test_weights_change_linearly_over_training_also_within_an_epoch(epochs):
    start, end = np.array([4.0, 1.0, 0.0]), np.array([0.0, 1.0, 2.0])
    sampling = mixed(start.tolist(), end.tolist(), epochs=epochs)
    plan = sampling.schedule.stages[0].plan
    parts = round(8 / epochs)
    total = sampling.schedule.epoch(sampling.schedule.max_steps)
    for epoch in range(int(epochs)):
        order = sampling.order(0, epoch)
        for part in range(parts):
            rows = slice(part * plan.rows // parts, (part + 1) * plan.rows // parts)
            share_G = tokens_by_source(plan, order, rows)
            done = (epoch + (part + 0.5) / parts) / total
            expected_G = (start + (end - start) * done) * NATURAL
            assert share_G / share_G.sum() == pytest.approx(expected_G / expected_G.sum(), abs=0.05)


def difficulty(order: EpochOrder, plan: RowPlan, difficulty_D: np.ndarray) -> np.ndarray:
    """Mean quantile of the difficulty of the tokens of every row."""
    quantile_P = quantiles(difficulty_D[plan.pieces.document_P], plan.size_P, 0)[order.piece_C]
    weight_P = plan.size_P[order.piece_C]
    return np.add.reduceat(quantile_P * weight_P, order.bound_R1[:-1]) / np.add.reduceat(weight_P, order.bound_R1[:-1])


@pytest.mark.parametrize("by", ["random scores", "words"])
def test_a_curriculum_orders_the_documents_of_each_epoch_from_easy_to_hard(by):
    score_D = SPLIT.words.astype(float) if by == "words" else np.random.default_rng(5).random(SPLIT.num_documents)
    sampling = EpochSampling(split=SPLIT, schedule=schedule_of(2), seed=0, difficulty_D=score_D)
    plan = sampling.schedule.stages[0].plan
    order = sampling.order(0, 1)
    assert sorted(order.piece_C) == list(range(len(order.piece_C)))
    assert spearmanr(difficulty(order, plan, score_D), np.arange(plan.rows)).statistic > 0.99
    document_I = plan.pieces.document_P[order.piece_C]
    assert spearmanr(score_D[document_I], np.arange(len(document_I))).statistic > 0.9
    assert not np.array_equal(order.piece_C, sampling.order(0, 0).piece_C)


def test_a_curriculum_over_training_repeats_easy_documents_before_hard_ones():
    score_D = np.random.default_rng(5).random(SPLIT.num_documents)
    sampling = EpochSampling(split=SPLIT, schedule=schedule_of(5), seed=0, difficulty_D=score_D, over_training=True)
    plan = sampling.schedule.stages[0].plan
    orders = [sampling.order(0, epoch) for epoch in range(5)]
    assert all(len(order.bound_R1) - 1 == plan.rows for order in orders)
    hardest = [score_D[plan.pieces.document_P[order.piece_C]].max() for order in orders]
    easiest = [score_D[plan.pieces.document_P[order.piece_C]].min() for order in orders]
    assert all(hard <= easy for hard, easy in zip(hardest, easiest[1:], strict=False))
    times_P = sum(np.bincount(order.piece_C, minlength=len(plan.size_P)) for order in orders)
    assert times_P.min() >= 3
    assert np.average(times_P, weights=plan.size_P) == pytest.approx(5, abs=0.3)


def test_a_curriculum_over_training_sees_documents_of_one_difficulty_equally_often_in_all_row_lengths():
    schedule = schedule_of(5, stages=[(0, 16), (0.5, 32)])
    sampling = EpochSampling(
        split=SPLIT, schedule=schedule, seed=0, difficulty_D=np.zeros(SPLIT.num_documents), over_training=True
    )
    tokens_D = np.zeros(SPLIT.num_documents)
    for number, stage in enumerate(schedule.stages):
        for epoch in range(-(-stage.rows // stage.plan.rows)):
            order, count = sampling.order(number, epoch), min(stage.rows - epoch * stage.plan.rows, stage.plan.rows)
            piece_I = order.piece_C[: order.bound_R1[count]]
            np.add.at(tokens_D, stage.plan.pieces.document_P[piece_I], stage.plan.size_P[piece_I])
    length_D = np.bincount(schedule.stages[0].plan.pieces.document_P, schedule.stages[0].plan.size_P)
    times_D = tokens_D / length_D
    assert (np.abs(times_D - 5) < 2).mean() > 0.9
    assert (times_D == 0).mean() < 0.03


def test_a_curriculum_of_more_epochs_than_documents_still_fills_its_rows():
    split = split_of_lengths([40, 30])
    schedule = BatchSchedule.plan(split, stages=[(0, 16)], global_batch_rows=1, epochs=9)
    sampling = EpochSampling(
        split=split, schedule=schedule, seed=0, difficulty_D=np.array([0.0, 1.0]), over_training=True
    )
    for epoch in range(9):
        assert len(sampling.order(0, epoch).bound_R1) - 1 == schedule.stages[0].plan.rows


def test_words_seen_by_source_are_those_of_the_rows_that_are_trained_on():
    sampling = mixed([1, 2, 3], epochs=2.4, stages=[(0, 16), (0.5, 32)])
    expected = np.zeros(3)
    for number, stage in enumerate(sampling.schedule.stages):
        orders = [sampling.order(number, epoch) for epoch in range(int(stage.epochs) + 1)]
        for row in range(stage.rows):
            order = orders[row // stage.plan.rows]
            piece_I = order.rows(row % stage.plan.rows, row % stage.plan.rows + 1)[0]
            np.add.at(expected, stage.plan.source_P[piece_I], stage.plan.words_P[piece_I])
    assert sampling.words_seen() == dict(zip(NAMES, expected.astype(int).tolist(), strict=True))


def test_scores_are_one_number_per_document(tmp_path):
    text, array = tmp_path / "scores.txt", tmp_path / "scores.npy"
    text.write_text("1\n-2.5\n3e2\n")
    np.save(array, np.array([1, -2.5, 300], np.float32))
    assert read_scores(text, 3).tolist() == read_scores(array, 3).tolist() == [1, -2.5, 300]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\nhard\n3\n", r"scores.txt, line 2: 'hard' is not a number"),
        ("1\n2\n", r"scores.txt: 2 numbers for 3 training documents"),
        ("1\nnan\n3\n", r"scores.txt: the number of document 2 is nan, not finite"),
        (None, r"scores.txt: cannot be read: No such file"),
    ],
)
def test_unusable_scores_are_a_clear_error(content, message, tmp_path):
    if content is not None:
        (tmp_path / "scores.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        read_scores(tmp_path / "scores.txt", 3)


def test_an_array_of_another_shape_is_a_clear_error(tmp_path):
    np.save(tmp_path / "scores.npy", np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"an array float64\[3, 2\], not one number for each document"):
        read_scores(tmp_path / "scores.npy", 3)
    (tmp_path / "scores.npy").write_bytes(b"text")
    with pytest.raises(UserError, match=r"scores.npy: cannot be read"):
        read_scores(tmp_path / "scores.npy", 3)
