"""What components are told about the corpus."""

import pytest

from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.data.tokenizer import EOS, NUM_SPECIAL
from ltg_mdlm.host.run_context import corpus_statistics, open_corpus, special_types


@pytest.mark.parametrize("ends", [False, True])
def test_the_end_of_document_token_is_counted_and_maskable_only_if_documents_end_in_it(ends):
    config = load_settings((), ["data.builtin_words=4000", f"data.end_of_document={ends}"]).config
    corpus = open_corpus(config)
    statistics = corpus_statistics(config, corpus)
    special_V = special_types(config, corpus.vocab_size)
    assert bool(special_V[EOS]) is not ends
    assert int(statistics.token_count_V[EOS]) == (corpus.train.num_documents if ends else 0)
    assert int(special_V.sum()) == NUM_SPECIAL - ends
    assert statistics.num_tokens == corpus.train.num_tokens + (corpus.train.num_documents if ends else 0)
    assert statistics.num_words == corpus.train.num_words
