"""Objects of a run that follow from its config: corpus, batch schedule, context of the components, and model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ltg_mdlm.core.components import CorpusStatistics, CorpusView, RunContext, TimeConditioning
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.random import stream_key
from ltg_mdlm.core.settings import did_you_mean
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.corpus_view import TrainingText
from ltg_mdlm.data.epoch_sampling import EpochSampling, Mixture, read_scores
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


def with_word_unit(config: RunConfig, corpus: Corpus) -> RunConfig:
    """The config with the corpus's unit of words in `data.words`. Raises UserError if it asks for another one."""
    if config.data.words not in (None, corpus.word_unit):
        raise UserError(
            f"data.words: {config.data.words}, but the corpus {corpus.path} counts words by {corpus.word_unit}"
            f"\n  prepare it again with --words {config.data.words}, or leave the setting out"
        )
    return config.model_copy(update={"data": config.data.model_copy(update={"words": corpus.word_unit})})


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


def epoch_sampling(config: RunConfig, corpus: Corpus, schedule: BatchSchedule) -> EpochSampling | None:
    """The mixture and the curriculum of `data.*`; None if every epoch has every document once, in random order.

    Raises UserError for sources that the corpus does not have, for weights without any text, and for scores that do not
    fit the documents.
    """
    data, train = config.data, corpus.train
    curriculum = data.curriculum
    if data.mixture is None and data.mixture_end is None and curriculum is None:
        return None
    words = train.words_by_source()

    def require_sources(key: str, names: Iterable[str]) -> None:
        if not words:
            raise UserError(
                f"{key}: the corpus {corpus.path} does not say from which source its documents are"
                "\n  prepare it again, from one file for each source or with --source-field"
            )
        for name in names:
            if name not in words:
                raise UserError(
                    f"{key}: the corpus has no source {name!r}{did_you_mean(name, words)}"
                    f"\n  sources: {', '.join(words)}"
                )

    mixture = difficulty_D = None
    if data.mixture is not None or data.mixture_end is not None:
        start = data.mixture or {}
        end = start if data.mixture_end is None else data.mixture_end
        for key, weights in (("data.mixture", start), ("data.mixture_end", end)):
            require_sources(key, weights)
            if not any(weights.get(name, 1) for name in words):
                raise UserError(f"{key}: every source has the weight 0, so there is nothing to train on")
        start_G, end_G = (np.array([of.get(name, 1.0) for name in train.source_names]) for of in (start, end))
        mixture = Mixture(start_G=start_G, end_G=end_G)
    if curriculum is not None and curriculum.order is not None:
        key = "data.curriculum.order"
        require_sources(key, curriculum.order)
        if missing := [name for name in words if name not in curriculum.order]:
            raise UserError(f"{key}: it must list every source; missing: {', '.join(missing)}")
        if len(set(curriculum.order)) < len(curriculum.order):
            raise UserError(f"{key}: it lists a source twice: {', '.join(curriculum.order)}")
        rank_G = np.array([curriculum.order.index(name) if name in words else 0 for name in train.source_names], float)
        assert train.source_D is not None
        difficulty_D = rank_G[train.source_D]
    elif curriculum is not None:
        scores = curriculum.scores
        difficulty_D = train.words.astype(float) if scores is None else read_scores(scores, train.num_documents)
    over_training = curriculum is not None and curriculum.over == "training"
    if over_training and (epochs := schedule.epoch(schedule.max_steps)) < 2:
        raise UserError(
            f"data.curriculum.over: this training has {epochs:.2f} epochs, and 'training' needs at least two, since it"
            " repeats the easy documents before the hard ones; use 'epoch'"
        )
    return EpochSampling(
        split=train,
        schedule=schedule,
        seed=config.seed,
        mixture=mixture,
        difficulty_D=difficulty_D,
        over_training=over_training,
    )


def run_context(
    config: RunConfig,
    tokenizer: Tokenizer,
    ranks: Ranks,
    *,
    max_steps: int = 0,
    num_positions: int = 0,
    corpus: CorpusView | None = None,
) -> RunContext:
    """The context for components; without steps, positions and corpus when a trained model is opened.

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
        corpus=corpus,
    )


def components_of(host: Host, corpus: Corpus, schedule: BatchSchedule, ranks: Ranks) -> Components:
    """The components of the plugins for a run on this corpus; completes `host.config`.  Raises UserError."""
    context = run_context(
        host.config,
        corpus.tokenizer,
        ranks,
        max_steps=schedule.max_steps,
        num_positions=corpus.train.num_tokens,
        corpus=TrainingText(corpus),
    )
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
