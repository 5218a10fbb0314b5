"""Pairs of texts as rows: the tokenizer's own template and truncation, and batches that lose nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import sentences, small_tokenizer

from ltg_mdlm.data.tokenizer import BOS, PAD, Tokenizer
from ltg_mdlm.evaluation.finetune_tasks import Example
from ltg_mdlm.evaluation.finetune_training import EncodedExamples, encode, micro_batches

CPU = torch.device("cpu")
lengths = st.integers(0, 12)


def words(count: int) -> str:
    return " ".join(["dog"] * count)


@given(st.lists(st.tuples(lengths, lengths), min_size=1, max_size=4), st.integers(8, 24))
def test_rows_are_those_of_the_tokenizers_pair_template_and_truncation(pairs, seq_len):
    """The library joins and cuts pairs itself, as the official pipeline has it do."""
    library = Tokenizer(small_tokenizer().definition).backend
    library.enable_truncation(seq_len, strategy="longest_first")
    texts = [(words(first), words(second)) for first, second in pairs]
    expected = [library.encode(*pair).ids for pair in texts]
    rows = encode([Example(*pair, 0) for pair in texts], small_tokenizer(), seq_len)
    assert rows.ids == expected


def test_rows_begin_each_text_with_bos_and_count_what_was_cut():
    tokenizer = small_tokenizer()
    first, second, long = "a dog ran", "the tree", " ".join(sentences(40))
    rows = encode([Example(first, second, 1), Example(first, long, 0)], tokenizer, 64)
    assert rows.ids[0] == [BOS, *tokenizer.encode(first), BOS, *tokenizer.encode(second)]
    assert rows.labels == [1, 0]
    assert rows.truncated == 1
    assert len(rows.ids[1]) == 64
    assert rows.ids[1][: len(tokenizer.encode(first)) + 2] == [BOS, *tokenizer.encode(first), BOS]


def rows_of(row_lengths: list[int]) -> EncodedExamples:
    ids = [[16 + row % 3] * length for row, length in enumerate(row_lengths)]
    return EncodedExamples(ids, [row % 2 for row in range(len(ids))], 0)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 60), st.data())
def test_micro_batches_hold_every_chosen_row_once_within_the_budget(row_lengths, budget, data):
    rows = rows_of(row_lengths)
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True))
    batches = list(micro_batches(rows, chosen, budget, CPU))
    seen = [int(row) for batch in batches for row in batch.row_B]
    assert sorted(seen) == sorted(chosen)
    for batch in batches:
        assert batch.ids_BT.numel() <= budget or len(batch.row_B) == 1
        for ids_T, document_T, label, row in zip(*batch, strict=True):
            length = len(rows.ids[row])
            assert ids_T.tolist() == rows.ids[row] + [PAD] * (len(ids_T) - length)
            assert document_T.tolist() == [0] * length + [-1] * (len(ids_T) - length)
            assert label == rows.labels[row]


@pytest.mark.parametrize("budget", [1, 24, 1000])
def test_a_micro_batch_is_padded_to_its_own_longest_row_only(budget):
    rows = rows_of([3, 12, 4, 11])
    for batch in micro_batches(rows, range(4), budget, CPU):
        assert (batch.document_BT >= 0).sum(1).max() == batch.ids_BT.shape[1]
