"""What components are told about the corpus."""

import pytest

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.data.tokenizer import EOS, NUM_SPECIAL
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import (
    batch_schedule,
    components_of,
    corpus_statistics,
    open_corpus,
    run_context,
    special_types,
)


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


def test_components_get_the_corpus_in_training_and_none_when_a_model_is_opened():
    host = Host(load_settings((), ["data.builtin_words=4000"]).config)
    corpus = open_corpus(host.config)
    seen = []
    host.build = lambda context, statistics: seen.append(context)
    components_of(host, corpus, batch_schedule(host.config, corpus), Ranks.alone())
    (context,) = seen
    assert context.corpus.tokens is corpus.train.tokens
    assert context.num_positions == len(context.corpus.tokens)
    assert context.corpus.source_names == ("book", "diary", "story", "talk")
    opened = run_context(host.config, corpus.tokenizer, Ranks.alone())
    assert (opened.corpus, opened.num_positions) == (None, 0)
