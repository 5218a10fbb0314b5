"""Objects of a run that follow from its config: corpus, batch schedule, context of the components, and model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ltg_mdlm.core.components import CorpusStatistics, RunContext, TimeConditioning
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.random import stream_key
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.synthetic.builtin import builtin_corpus
from ltg_mdlm.data.tokenized_bin import open_tokenized_bin
from ltg_mdlm.data.tokenizer import EOS, MASK, NUM_SPECIAL, Tokenizer
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.slots import Components
from ltg_mdlm.model.transformer import ModelConfig, Transformer


def open_corpus(config: RunConfig) -> Corpus:
    """The corpus of `data.*`: a prepared folder, files of the existing stack, or the built-in corpus."""
    data = config.data
    if data.train is not None:
        assert data.tokenizer is not None
        return open_tokenized_bin(data.train, data.tokenizer, valid=data.valid)
    if data.corpus == "builtin":
        return builtin_corpus(words=data.builtin_words, zipf_exponent=data.builtin_zipf_exponent)
    return Corpus.open(data.corpus)


def corpus_statistics(config: RunConfig, corpus: Corpus) -> CorpusStatistics:
    """Counts over the training split without control tokens; `</s>` is counted if documents end with it."""
    count_V = torch.from_numpy(np.array(corpus.train.token_count_V, dtype=np.int64))
    count_V[:NUM_SPECIAL] = 0
    if config.data.end_of_document:
        count_V[EOS] = corpus.train.num_documents
    return CorpusStatistics(token_count_V=count_V, num_tokens=int(count_V.sum()), num_words=int(corpus.train.num_words))


def special_types(config: RunConfig, vocab_size: int) -> Tensor:
    """bool[V]: token types that are never masked or predicted."""
    special_V = torch.arange(vocab_size) < NUM_SPECIAL
    special_V[EOS] = not config.data.end_of_document
    return special_V


def batch_schedule(config: RunConfig, corpus: Corpus) -> BatchSchedule:
    """The rows and tokens of every step.  Raises UserError for settings that do not fit the corpus."""
    training = config.training
    ramp = training.batch_ramp
    return BatchSchedule.plan(
        corpus.train,
        stages=training.stages,
        global_batch_rows=training.global_batch_rows,
        max_steps=training.max_steps,
        epochs=training.epochs,
        ramp=(ramp.start, ramp.until) if ramp else None,
        packing=training.packing,
        end_of_document=config.data.end_of_document,
    )


def run_context(
    config: RunConfig, tokenizer: Tokenizer, ranks: Ranks, *, max_steps: int = 0, num_positions: int = 0
) -> RunContext:
    """The context for components; without steps and positions when a trained model is opened.

    `Host.build` adds the corpus statistics.
    """
    return RunContext(
        seed=config.seed,
        max_steps=max_steps,
        seq_len=max(length for _, length in config.training.stages),
        vocab_size=tokenizer.vocab_size,
        hidden_size=config.model.hidden_size,
        mask_id=MASK,
        special_V=special_types(config, tokenizer.vocab_size).to(ranks.device),
        tokens_V=tuple(tokenizer.tokens),
        word_start_V=torch.from_numpy(tokenizer.token_text.opens_word_V).to(ranks.device),
        num_positions=num_positions,
        device=ranks.device,
        rank=ranks.rank,
        world_size=ranks.world_size,
        sum_over_ranks=ranks.sum_over_ranks,
        tokenizer_fingerprint=tokenizer.fingerprint,
    )


def components_of(host: Host, corpus: Corpus, schedule: BatchSchedule, ranks: Ranks) -> Components:
    """The components of the plugins for a run on this corpus; completes `host.config`.  Raises UserError."""
    positions = int(corpus.train.num_tokens)
    context = run_context(host.config, corpus.tokenizer, ranks, max_steps=schedule.max_steps, num_positions=positions)
    return host.build(context, corpus_statistics(host.config, corpus))


def model_config(config: RunConfig, vocab_size: int, *, conditioned: bool) -> ModelConfig:
    """The config of the transformer, with the field names of the existing stack."""
    sizes = config.model.model_dump(exclude={"dropout", "cond_dim"})
    return ModelConfig(
        **sizes,
        vocab_size=vocab_size,
        hidden_dropout_prob=config.model.dropout,
        attention_probs_dropout_prob=config.model.dropout,
        cond_dim=config.model.cond_dim if conditioned else None,
    )


def build_model(config: RunConfig, vocab_size: int, conditioning: TimeConditioning) -> Transformer:
    """The model with initial weights, which are a function of the seed."""
    torch.manual_seed(stream_key(config.seed, "initial weights")[0])
    sizes = model_config(config, vocab_size, conditioned=conditioning.active)
    return Transformer(sizes, conditioning.embedding(config.model.cond_dim) if conditioning.active else None)
