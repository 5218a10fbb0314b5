"""Assembly of a run: from a host with its settings to data, recipe, model, optimiser and validators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltg_mdlm import __version__
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.machine import bf16_for, scaled_to_memory
from ltg_mdlm.core.optimizer import Optimizer
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.records import MinimalPair, read_minimal_pairs
from ltg_mdlm.data.row_loader import RowLoader, validation_batches
from ltg_mdlm.data.synthetic.builtin import MINIMAL_PAIRS, floor_nats
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.host.failures import failures_named
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.result_checks import checked_row_order
from ltg_mdlm.host.run_context import (
    batch_schedule,
    build_model,
    components_of,
    corpus_statistics,
    epoch_sampling,
    with_word_unit,
)
from ltg_mdlm.host.slots import Components
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule, default_score
from ltg_mdlm.inference.trained_model import Denoiser
from ltg_mdlm.storage.checkpoint import find_checkpoint, load_weights
from ltg_mdlm.storage.named_tensors import copy_named
from ltg_mdlm.storage.run_folder import run_of_checkpoint
from ltg_mdlm.training.ema import EMA, tail_start
from ltg_mdlm.training.optimizers import build_optimizer
from ltg_mdlm.training.parameter_groups import parameter_groups
from ltg_mdlm.training.recipe import DenoisingLoss, Recipe
from ltg_mdlm.training.validation import PairValidator, Validator

TOKENS_PER_MICRO_BATCH = {"cpu": 4096, "cuda": 65536}
"""Tokens per forward pass if `training.micro_batch_rows` is null; on GPUs with less than `FULL_MEMORY`, fewer."""

FULL_MEMORY = 80e9
"""Bytes of a GPU on which the base model fits with so many tokens."""

MICRO_BATCH_OVERHEAD = {"cpu": 256, "cuda": 4096}
"""An assumption: a micro-batch takes about as much time as this number of tokens in addition to its own."""


@dataclass(frozen=True)
class Run:
    """The objects that the trainer works with."""

    config: RunConfig
    ranks: Ranks
    corpus: Corpus
    schedule: BatchSchedule
    loader: RowLoader
    recipe: Recipe
    loss: DenoisingLoss
    optimizer: Optimizer
    ema: EMA
    validator: Validator | None
    """None without a validation split."""
    pairs: PairValidator | None
    """None without minimal pairs."""

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.loss.model.parameters() if p.requires_grad)


def build_run(host: Host, corpus: Corpus, ranks: Ranks, *, resumes: bool = False) -> Run:
    """Build all objects of a run.  With `resumes`, its weights will be restored, and `run.init_from` is not read.

    Raises UserError for settings that do not fit the corpus or the number of ranks, and PluginFailure.
    """
    host.config = with_word_unit(host.config, corpus)
    schedule = batch_schedule(host.config, corpus)
    components = components_of(host, corpus, schedule, ranks)
    config = host.config  # complete once the components are built
    sampling = epoch_sampling(config, corpus, schedule)
    with failures_named(components, lambda _: "before the first step"):
        recipe = Recipe(components, uniform_epochs=sampling is None and components.row_order is None)
        model = build_model(config, corpus.vocab_size, components.time_conditioning).to(ranks.device)
        if config.run.init_from is not None and not resumes:
            checkpoint = find_checkpoint(config.run.init_from)
            require_same_tokens(checkpoint, corpus.tokenizer)
            copy_named(model.state_dict(), load_weights(checkpoint), f"run.init_from={config.run.init_from}")
        model.transformer.activation_checkpointing = config.training.activation_checkpointing
        loss = DenoisingLoss(model, recipe, bf16=use_bf16(config, ranks.device))
        loader = RowLoader(
            corpus.train,
            schedule,
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            micro_batch_rows=1,  # until `divide_batches`
            device=ranks.device,
            sampling=sampling,
            choose_rows=checked_row_order(components),
        )
        settings = config.optimizer
        groups = parameter_groups(model, settings.weight_decay)
        for name, part in components.modules.items():
            groups += parameter_groups(part, 0.0, prefix=name, clipped_with=name)
        optimizer = host.optimizer(groups) or build_optimizer(groups, settings)
        run = Run(
            config=host.config,  # with the origin of the optimiser
            ranks=ranks,
            corpus=corpus,
            schedule=schedule,
            loader=loader,
            recipe=recipe,
            loss=loss,
            optimizer=optimizer,
            ema=EMA(
                model,
                loss.learned_parts,
                decay=settings.ema_decay,
                ramp=settings.ema_ramp,
                tail_start=tail_start(settings.tail_average, schedule.max_steps),
            ),
            validator=build_validator(config, corpus, loss, recipe, ranks),
            pairs=build_pair_validator(config, corpus, loss, recipe, ranks),
        )
    divide_batches(run)
    return run


def divide_batches(run: Run, full_before: bool | None = None) -> None:
    """Choose the micro-batches of a run.

    Where code is compiled for each shape, by torch or, in bf16 on CPUs, by oneDNN (`POSITION_MULTIPLE`), all
    micro-batches of a stage have the same number of rows, and the last ones are padded.  Shapes decide what dropout
    draws, so a resumed run keeps what it was started with: its precision may have been auto then, and fp32 now.

    Args:
        run: with an unread loader
        full_before: whether the micro-batches of a resumed run had the same number of rows; None if it is unknown
    """
    config, device, loader = run.config, run.ranks.device, run.loader
    is_compiled = device.type == "cuda" or config.training.compile is True
    is_full = is_compiled or (run.loss.bf16 if full_before is None else full_before)
    copies = run.recipe.components.masking.context_copies
    run.loss.full_rows.clear()
    for number, stage in enumerate(run.schedule.stages):
        rows = micro_batch_rows(config, device, stage.seq_len, copies)
        if is_full:
            overhead = MICRO_BATCH_OVERHEAD[device.type] / stage.seq_len
            rows = run.schedule.equal_micro_batches(number, rows, world_size=run.ranks.world_size, overhead=overhead)
            run.loss.full_rows[stage.seq_len] = max(rows, run.loss.full_rows.get(stage.seq_len, 0))
        loader.micro_batch_rows[number] = rows
    loader.full_micro_batches = is_full


def use_bf16(config: RunConfig, device: torch.device) -> bool:
    """Resolve `training.precision`."""
    return bf16_for(config.training.precision, device)


def micro_batch_rows(config: RunConfig, device: torch.device, seq_len: int, copies: int = 0) -> int:
    """Largest number of rows per forward pass: `training.micro_batch_rows`, or what fits `tokens_per_micro_batch`.

    `seq_len` is the number of tokens per row, and `copies` are the further copies of every row that the model sees.
    """
    columns = (1 + copies) * seq_len
    return config.training.micro_batch_rows or max(tokens_per_micro_batch(device) // columns, 1)


def tokens_per_micro_batch(device: torch.device) -> int:
    """Tokens per forward pass on the device, in proportion to its memory up to `FULL_MEMORY`."""
    return scaled_to_memory(TOKENS_PER_MICRO_BATCH[device.type], device, FULL_MEMORY)


def require_same_tokens(checkpoint: Path, tokenizer: Tokenizer) -> None:
    """Raises UserError if the run of `checkpoint` used another tokenizer, whose ids stand for other tokens.

    Run folders of old versions have no tokenizer and are not checked.
    """
    kept = run_of_checkpoint(checkpoint).tokenizer_file
    if kept.is_file() and Tokenizer.read(kept).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"run.init_from: {checkpoint} was trained with another tokenizer ({kept}) than the corpus of this run was"
            " prepared with, so its weights belong to other tokens"
            f"\n  prepare the corpus with that tokenizer: ltg-mdlm prepare ... --tokenizer {kept}"
        )


def build_validator(
    config: RunConfig, corpus: Corpus, loss: DenoisingLoss, recipe: Recipe, ranks: Ranks
) -> Validator | None:
    """The validator of the held-out split; None without such a split."""
    if corpus.valid is None:
        return None
    masking, seq_len = recipe.components.masking, config.training.stages[0][1]
    tokens = corpus.valid.maskable_tokens(end_of_document=config.data.end_of_document)
    nats = floor_nats(corpus)
    held_out = validation_batches(
        corpus.valid,
        seq_len=seq_len,
        rows=config.validation.rows,
        micro_batch_rows=micro_batch_rows(
            config, ranks.device, seq_len, max(masking.context_copies, 1 if masking.block_length else 0)
        ),
        end_of_document=config.data.end_of_document,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
    )
    return Validator(
        loss,
        recipe,
        held_out.batches,
        corpus_statistics(config, corpus),
        rows=held_out.rows,
        draws=config.validation.draws,
        seed=config.seed,
        tokens_per_byte=tokens / max(corpus.valid.text_bytes, 1),
        ranks=ranks,
        floor=None if nats is None else nats / tokens,
    )


def build_pair_validator(
    config: RunConfig, corpus: Corpus, loss: DenoisingLoss, recipe: Recipe, ranks: Ranks
) -> PairValidator | None:
    """The validator of `validation.pairs`; None without minimal pairs.  Raises UserError for an unreadable file."""
    setting = config.validation.pairs
    path = corpus.path / MINIMAL_PAIRS if setting == "corpus" else Path(setting) if setting else None
    if path is None or (setting == "corpus" and not path.exists()):
        return None
    parts = recipe.components
    denoiser = Denoiser(
        model=loss.model,
        tokenizer=corpus.tokenizer,
        predicts=parts.masking.predicts,
        modes=parts.row_mode.modes,
        value_for_rate=parts.time_conditioning.value_for_rate,
        block_length=parts.masking.block_length,
    )
    pairs = first_of_each(read_minimal_pairs(path), config.validation.pairs_per_phenomenon)
    return PairValidator(loss, pairs, LikelihoodScorer(denoiser, ScoringRule(score=default_score(denoiser)), ranks))


def first_of_each(pairs: Iterable[MinimalPair], limit: int) -> list[MinimalPair]:
    """At most `limit` pairs of each phenomenon, in their order."""
    seen: Counter[str] = Counter()
    chosen = []
    for pair in pairs:
        seen[pair.uid] += 1
        if seen[pair.uid] <= limit:
            chosen.append(pair)
    return chosen


def provenance(config: RunConfig, components: Components, ranks: Ranks) -> dict[str, Any]:
    """Facts about the run that every checkpoint stores in its state.json."""
    return {
        "seed": config.seed,
        "world_size": ranks.world_size,
        "versions": {"ltg_mdlm": __version__, "torch": torch.__version__, **config.plugin_versions},
        "provenance": {slot: provider.model_dump() for slot, provider in config.provenance.items()},
        "config": config.model_dump(mode="json", exclude={"run", "plugin_versions", "provenance"}),
        "modes": sorted(components.row_mode.modes),
        "predicts": components.masking.predicts,
        **({"block_length": length} if (length := components.masking.block_length) else {}),
    }
