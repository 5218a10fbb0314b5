"""What components are told about corpus and run."""

import pytest
import torch

from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.data.tokenizer import EOS, NUM_SPECIAL
from ltg_mdlm.host.run_context import corpus_statistics, open_corpus, special_types
from ltg_mdlm.training.assembly import micro_batch_rows

SMALL = "data.builtin_words=4000"


@pytest.mark.parametrize("ends", [False, True])
def test_the_end_of_a_document_is_an_ordinary_token_where_documents_end_in_it(ends):
    config = load_settings((), [SMALL, f"data.end_of_document={ends}"]).config
    corpus = open_corpus(config)
    statistics = corpus_statistics(config, corpus)
    special_V = special_types(config, corpus.vocab_size)
    assert bool(special_V[EOS]) is not ends
    assert int(statistics.token_count_V[EOS]) == (corpus.train.num_documents if ends else 0)
    assert int(special_V.sum()) == NUM_SPECIAL - ends
    assert statistics.num_tokens == corpus.train.num_tokens + (corpus.train.num_documents if ends else 0)
    assert statistics.num_words == corpus.train.num_words


def test_micro_batches_hold_about_as_many_tokens_at_any_row_length():
    sizes = {}
    for length in (32, 128):
        config = load_settings((), [f"training.seq_len={length}"]).config
        sizes[length] = length * micro_batch_rows(config, torch.device("cpu"))
    assert sizes[32] == sizes[128]
