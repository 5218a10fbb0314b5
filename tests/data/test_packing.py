"""Cutting documents into pieces and packing pieces into rows."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import real_data, split_of_lengths

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.random import shuffled
from ltg_mdlm.data.packing import RowPlan, cut_documents, fill_rows, pack_sizes
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.data.tokenizer import BOS, EOS, PAD

LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=30)
SEQ_LENS = st.integers(3, 40)
PACKINGS = st.sampled_from(["documents_packed", "one_document"])


def all_rows(split, plan, *key):
    order = plan.order(*key)
    return fill_rows(split, plan.pieces, *order.rows(0, plan.rows), plan.seq_len)


@given(LENGTHS, SEQ_LENS, st.booleans())
def test_the_pieces_of_a_document_follow_each_other_and_fit_a_row(lengths, seq_len, ended):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    pieces = cut_documents(offsets, seq_len, end_of_document=ended)
    ends = pieces.start_P + pieces.length_P
    assert pieces.start_P.tolist() == [0, *ends[:-1].tolist()]
    assert set(offsets) <= {0, *ends.tolist()}  # no piece reaches across documents
    assert pieces.length_P.min() >= 1
    assert pieces.size_P.max() <= seq_len
    assert ends[pieces.closes_P].tolist() == (offsets[1:].tolist() if ended else [])
    expected = [-(-(length + ended) // (seq_len - 1)) for length in lengths]
    assert len(pieces.start_P) == sum(expected)


@settings(max_examples=150)
@given(LENGTHS, SEQ_LENS, st.booleans(), PACKINGS, st.integers(0, 5))
def test_every_token_is_in_exactly_one_row_of_an_epoch(lengths, seq_len, ended, packing, epoch):
    split = split_of_lengths(lengths)
    plan = RowPlan(split, seq_len, packing=packing, end_of_document=ended)
    rows = all_rows(split, plan, 7, 0, epoch)
    position, ids, document = rows.position_BT, rows.ids_BT, rows.document_BT
    from_corpus = position >= 0
    assert sorted(position[from_corpus]) == list(range(split.num_tokens))
    assert (ids[from_corpus] == split.tokens[position[from_corpus]]).all()
    assert ((document == -1) == (ids == PAD)).all()
    assert (rows.maskable_BT == (from_corpus | (ids == EOS))).all()
    assert (ids == EOS).sum() == (len(lengths) if ended else 0)
    assert (document >= 0).sum() == plan.tokens


@given(LENGTHS, SEQ_LENS, st.booleans(), PACKINGS)
def test_a_document_in_a_row_is_s_and_consecutive_tokens(lengths, seq_len, ended, packing):
    split = split_of_lengths(lengths)
    plan = RowPlan(split, seq_len, packing=packing, end_of_document=ended)
    rows = all_rows(split, plan, 1, 2, 3)
    source = np.repeat(np.arange(len(lengths)), lengths)
    for ids, position, document in zip(rows.ids_BT, rows.position_BT, rows.document_BT, strict=True):
        present = document[document >= 0]
        assert present.tolist() == sorted(present)
        assert (document[len(present) :] == -1).all()
        assert packing != "one_document" or present.max() == 0
        for n in range(present.max() + 1):
            inside = np.flatnonzero(document == n)
            assert ids[inside[0]] == BOS
            places = position[inside[1:]]
            if ids[inside[-1]] == EOS:
                places = places[:-1]
                assert places[-1] + 1 in split.offsets
            assert (np.diff(places) == 1).all()
            assert len(set(source[places])) == 1


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200))
def test_packing_uses_every_size_and_leaves_at_most_one_row_half_empty(sizes):
    """True for every best fit: two rows that are at most half full would share one row."""
    size_C, bound_R1 = pack_sizes(np.bincount(sizes), 30)
    assert sorted(size_C) == sorted(sizes)
    fill = np.add.reduceat(size_C, bound_R1[:-1])
    assert fill.max() <= 30
    assert (fill <= 15).sum() <= 1


def test_packing_is_best_fit_decreasing():
    """Derived by hand: 7 7 6 5 5 4 3 3 3 into rows of 10; each 3 goes where the least room is left."""
    counts = np.bincount([7, 7, 6, 4, 5, 5, 3, 3, 3])
    size_C, bound_R1 = pack_sizes(counts, 10)
    rows = sorted(tuple(size_C[a:b].tolist()) for a, b in pairwise(bound_R1))
    assert rows == [(3,), (5, 5), (6, 4), (7, 3), (7, 3)]


@given(LENGTHS, SEQ_LENS, PACKINGS)
def test_cumulative_words_and_tokens_are_those_of_the_rows(lengths, seq_len, packing):
    split = split_of_lengths(lengths)
    plan = RowPlan(split, seq_len, packing=packing, end_of_document=False)
    order = plan.order(5)
    rows = all_rows(split, plan, 5)
    marks = np.append(split.word_start(0, split.num_tokens), False)  # position -1 is not a word
    words = marks[rows.position_BT].sum(axis=1)
    assert order.words_R1.tolist() == [0, *np.cumsum(words).tolist()]
    assert order.tokens_R1.tolist() == [0, *np.cumsum((rows.document_BT >= 0).sum(axis=1)).tolist()]
    assert (order.words_R1[-1], order.tokens_R1[-1]) == (plan.words, plan.tokens) == (split.num_words, plan.tokens)


def test_epochs_and_seeds_differ_and_are_reproducible():
    split = split_of_lengths([5, 9, 14, 3] * 20)
    plan = RowPlan(split, 16, packing="documents_packed", end_of_document=False)
    first = all_rows(split, plan, 0, 0, 0).ids_BT
    assert (all_rows(split, plan, 0, 0, 0).ids_BT == first).all()
    for key in ((0, 0, 1), (0, 1, 0), (1, 0, 0)):
        other = all_rows(split, plan, *key).ids_BT
        assert other.shape == first.shape
        assert (other != first).any(axis=1).mean() > 0.8


def test_pieces_share_rows_with_other_pieces_in_every_epoch():
    """A piece of 4 tokens meets nearly all pieces of 9 tokens within 60 epochs."""
    split = split_of_lengths([4] * 20 + [9] * 20)
    plan = RowPlan(split, 15, packing="documents_packed", end_of_document=False)
    mates = {tuple(sorted(row)) for epoch in range(60) for row in plan.order(epoch).piece_C.reshape(-1, 2).tolist()}
    assert plan.rows == 20
    assert len(mates) > 300  # of 400; 60 epochs have 1200 rows


def test_rows_too_short_for_a_token_are_refused():
    with pytest.raises(UserError, match=r"training.seq_len: rows of 2 tokens are too short; must be at least 3"):
        RowPlan(split_of_lengths([3]), 2, packing="documents_packed", end_of_document=False)


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_a_permutation_holds_every_number_once(count):
    assert sorted(shuffled(count, 3, 1, 4)) == list(range(count))


def test_permutations_of_different_keys_are_unrelated():
    """Adjacent keys, and keys that differ only in the order of their parts; the number of matches is Poisson(1)."""
    keys = [(i, j) for i in range(12) for j in range(12)]
    orders = np.stack([shuffled(500, *key) for key in keys])
    matches = [(orders[a] == orders[b]).sum() for a in range(len(keys)) for b in range(a)]
    assert np.mean(matches) == pytest.approx(1, abs=0.05)
    assert max(matches) < 10


def test_a_permutation_never_changes():
    """Computed with Python integers. Runs must resume bit-exactly after an update."""
    assert shuffled(10, 0, 1, 2).tolist() == [9, 6, 5, 2, 1, 8, 4, 0, 7, 3]


def test_rows_of_the_babylm_sample_are_nearly_full(tmp_path):
    folder = real_data("babylm_2024_merged", "train_1M")
    split = prepare_corpus([folder], tmp_path / "corpus", sample_bytes=1_000_000, progress=False).train
    for seq_len in (128, 512):
        for ended in (False, True):
            plan = RowPlan(split, seq_len, packing="documents_packed", end_of_document=ended)
            assert plan.non_pad_share > 0.99
            assert plan.words == split.num_words
