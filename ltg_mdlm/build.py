"""From settings to the objects of a run: corpus, schedule, plugins' components, model, optimiser, validator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltg_mdlm import __version__
from ltg_mdlm.api import CorpusStatistics, RunContext, TimeConditioning
from ltg_mdlm.blame import failures_named
from ltg_mdlm.checkpoint import find_checkpoint, load_weights
from ltg_mdlm.config import RunConfig
from ltg_mdlm.data.builtin import MINIMAL_PAIRS, builtin_corpus
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.loader import RowLoader, validation_batches
from ltg_mdlm.data.schedule import BatchSchedule
from ltg_mdlm.data.special_tokens import EOS, MASK, NUM_SPECIAL
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.distributed import Ranks
from ltg_mdlm.ema import EMA
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.denoiser import Denoiser
from ltg_mdlm.evaluate.pair_files import MinimalPair, read_minimal_pairs
from ltg_mdlm.evaluate.scoring import LikelihoodScorer, ScoringRule, default_score
from ltg_mdlm.host import Components, Host
from ltg_mdlm.model.transformer import ModelConfig, Transformer
from ltg_mdlm.named_tensors import copy_named
from ltg_mdlm.optim import AdamW, build_optimizer
from ltg_mdlm.random import stream_key
from ltg_mdlm.recipe import DenoisingLoss, Recipe
from ltg_mdlm.run_folder import RunFolder
from ltg_mdlm.validation import PairValidator, Validator

TOKENS_PER_MICRO_BATCH = {"cpu": 4096, "cuda": 65536}
"""Tokens per forward pass when `training.micro_batch_rows` is null."""


@dataclass(frozen=True)
class Run:
    """What the trainer works with."""

    config: RunConfig
    ranks: Ranks
    corpus: Corpus
    schedule: BatchSchedule
    loader: RowLoader
    recipe: Recipe
    loss: DenoisingLoss
    optimizer: AdamW
    ema: EMA
    validator: Validator | None
    pairs: PairValidator | None

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for p in self.loss.model.parameters() if p.requires_grad)


def open_corpus(config: RunConfig) -> Corpus:
    """The corpus of `data.*`: a prepared folder, files of the existing stack, or the generated corpus."""
    data = config.data
    if data.train is not None:
        assert data.tokenizer is not None
        return Corpus.from_bin(data.train, data.tokenizer, valid=data.valid)
    if data.corpus == "builtin":
        return builtin_corpus(words=data.builtin_words, zipf_exponent=data.builtin_zipf_exponent)
    return Corpus.open(data.corpus)


def corpus_statistics(config: RunConfig, corpus: Corpus) -> CorpusStatistics:
    """Counts over the training split without special tokens; `</s>` is an ordinary one where documents end in it."""
    count_V = torch.from_numpy(np.array(corpus.train.token_count_V, dtype=np.int64))
    count_V[:NUM_SPECIAL] = 0
    if config.data.end_of_document:
        count_V[EOS] = corpus.train.num_documents
    return CorpusStatistics(token_count_V=count_V, num_tokens=int(count_V.sum()), num_words=int(corpus.train.num_words))


def special_types(config: RunConfig, vocab_size: int) -> Tensor:
    """bool[V]: token types that are never masked nor predicted."""
    special_V = torch.arange(vocab_size) < NUM_SPECIAL
    special_V[EOS] = not config.data.end_of_document
    return special_V


def batch_schedule(config: RunConfig, corpus: Corpus) -> BatchSchedule:
    """Rows and tokens of every step."""
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
    """What components may know of the run; without steps and positions when a trained model is opened."""
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
    )


def model_config(config: RunConfig, vocab_size: int, *, conditioned: bool) -> ModelConfig:
    """Sizes of the transformer, under the field names of the existing stack."""
    sizes = config.model.model_dump(exclude={"dropout", "cond_dim"})
    return ModelConfig(
        **sizes,
        vocab_size=vocab_size,
        hidden_dropout_prob=config.model.dropout,
        attention_probs_dropout_prob=config.model.dropout,
        cond_dim=config.model.cond_dim if conditioned else None,
    )


def components_of(host: Host, corpus: Corpus, schedule: BatchSchedule, ranks: Ranks) -> Components:
    """The plugins' components for a run on this corpus."""
    positions = int(corpus.train.num_tokens)
    context = run_context(host.config, corpus.tokenizer, ranks, max_steps=schedule.max_steps, num_positions=positions)
    return host.build(context, corpus_statistics(host.config, corpus))


def provenance(config: RunConfig, components: Components, ranks: Ranks) -> dict[str, Any]:
    """What a checkpoint should tell about the run it comes from."""
    return {
        "seed": config.seed,
        "world_size": ranks.world_size,
        "versions": {"ltg_mdlm": __version__, "torch": torch.__version__, **config.plugin_versions},
        "provenance": {slot: provider.model_dump() for slot, provider in components.provenance.items()},
        "config": config.model_dump(mode="json", exclude={"run", "plugin_versions", "provenance"}),
        "modes": sorted(components.row_mode.modes),
        "predicts": components.masking.predicts,
    }


def build_model(config: RunConfig, vocab_size: int, conditioning: TimeConditioning) -> Transformer:
    """The model with fresh weights, a function of the seed alone."""
    torch.manual_seed(stream_key(config.seed, "initial weights")[0])
    sizes = model_config(config, vocab_size, conditioned=conditioning.active)
    return Transformer(sizes, conditioning.embedding(config.model.cond_dim) if conditioning.active else None)


def use_bf16(config: RunConfig, device: torch.device) -> bool:
    """Resolve `training.precision`."""
    return bf16_for(config.training.precision, device)


def bf16_for(precision: str, device: torch.device) -> bool:
    """Resolve auto, fp32 or bf16: auto is bf16 where matrix products in it are native."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # The only question torch answers about bf16 arithmetic of the CPU is behind a leading underscore.
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(native())


def micro_batch_rows(config: RunConfig, device: torch.device) -> int:
    """Rows per forward pass at the longest row."""
    longest = max(length for _, length in config.training.stages)
    return config.training.micro_batch_rows or max(TOKENS_PER_MICRO_BATCH[device.type] // longest, 1)


def build_run(host: Host, corpus: Corpus, ranks: Ranks) -> Run:
    """Assemble everything.  Raises UserError for settings that do not fit the corpus or the number of ranks."""
    config = host.config
    schedule = batch_schedule(config, corpus)
    components = components_of(host, corpus, schedule, ranks)
    with failures_named(components, lambda _: "before the first step"):
        return assemble(config, corpus, schedule, components, ranks)


def assemble(config: RunConfig, corpus: Corpus, schedule: BatchSchedule, components: Components, ranks: Ranks) -> Run:
    """Put model, optimiser, validators and loader around the components.  Raises UserError as `build_run`."""
    recipe = Recipe(components)
    model = build_model(config, corpus.vocab_size, recipe.components.time_conditioning).to(ranks.device)
    if config.run.init_from is not None:
        checkpoint = find_checkpoint(config.run.init_from)
        require_same_tokens(checkpoint, corpus.tokenizer)
        copy_named(model.state_dict(), load_weights(checkpoint), f"run.init_from={config.run.init_from}")
    model.transformer.activation_checkpointing = config.training.activation_checkpointing
    loss = DenoisingLoss(model, recipe, bf16=use_bf16(config, ranks.device))
    if config.training.compile and ranks.device.type == "cuda":
        loss.compile_layers()
    settings = config.optimizer
    loader = RowLoader(
        corpus.train,
        schedule,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        micro_batch_rows=micro_batch_rows(config, ranks.device),
        device=ranks.device,
    )
    return Run(
        config=config.model_copy(update={"provenance": recipe.components.provenance}),
        ranks=ranks,
        corpus=corpus,
        schedule=schedule,
        loader=loader,
        recipe=recipe,
        loss=loss,
        optimizer=build_optimizer(
            settings.name,
            model,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            max_norm=settings.clip,
        ),
        ema=EMA(model, decay=settings.ema_decay, ramp=settings.ema_ramp),
        validator=build_validator(config, corpus, loss, recipe, corpus_statistics(config, corpus), ranks),
        pairs=build_pairs(config, corpus, loss, recipe.components, ranks),
    )


def require_same_tokens(checkpoint: Path, tokenizer: Tokenizer) -> None:
    """Raises UserError if the run of `checkpoint` kept a tokenizer that cuts text differently: other ids, other words.

    Runs of older versions kept none.
    """
    kept = RunFolder(checkpoint.absolute().parent.parent).tokenizer_file
    if kept.is_file() and Tokenizer.read(kept).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"run.init_from: {checkpoint} was trained with another tokenizer ({kept}) than this run's corpus was made"
            " with, so that its weights belong to other tokens"
            f"\n  prepare the corpus with that one: ltg-mdlm prepare ... --tokenizer {kept}"
        )


def build_validator(
    config: RunConfig,
    corpus: Corpus,
    loss: DenoisingLoss,
    recipe: Recipe,
    statistics: CorpusStatistics,
    ranks: Ranks,
) -> Validator | None:
    """The validator of the held-out split; None without such a split."""
    if corpus.valid is None:
        return None
    held_out = validation_batches(
        corpus.valid,
        seq_len=config.training.stages[0][1],
        rows=config.validation.rows,
        micro_batch_rows=micro_batch_rows(config, ranks.device),
        end_of_document=config.data.end_of_document,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
    )
    return Validator(
        loss,
        recipe,
        held_out.batches,
        statistics,
        rows=held_out.rows,
        draws=config.validation.draws,
        seed=config.seed,
        tokens_per_byte=corpus.valid.num_tokens / max(corpus.valid.text_bytes, 1),
        ranks=ranks,
    )


def build_pairs(
    config: RunConfig, corpus: Corpus, loss: DenoisingLoss, components: Components, ranks: Ranks
) -> PairValidator | None:
    """What scores minimal pairs, or None when there are none.  Raises UserError for an unreadable file."""
    wanted = config.validation.pairs
    path = corpus.path / MINIMAL_PAIRS if wanted == "corpus" else Path(wanted) if wanted else None
    if path is None or (wanted == "corpus" and not path.exists()):
        return None
    denoiser = Denoiser(
        model=loss.model,
        tokenizer=corpus.tokenizer,
        predicts=components.masking.predicts,
        modes=components.row_mode.modes,
        value_for_rate=components.time_conditioning.value_for_rate,
    )
    pairs = first_of_each(read_minimal_pairs(path), config.validation.pairs_per_phenomenon)
    return PairValidator(loss, pairs, LikelihoodScorer(denoiser, ScoringRule(score=default_score(denoiser)), ranks))


def first_of_each(pairs: Iterable[MinimalPair], limit: int) -> list[MinimalPair]:
    """At most `limit` pairs of each phenomenon."""
    seen: Counter[str] = Counter()
    chosen = []
    for pair in pairs:
        seen[pair.uid] += 1
        if seen[pair.uid] <= limit:
            chosen.append(pair)
    return chosen
