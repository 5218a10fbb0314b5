"""Run folders with small models that nobody had to train: every weight is away from where initialisation left it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from support.corpora import small_tokenizer
from support.installed import plugins_installed

from ltg_mdlm import __version__
from ltg_mdlm.api import CorpusStatistics
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import build_model, run_context
from ltg_mdlm.storage.checkpoint import Checkpoints, TrainingState
from ltg_mdlm.storage.run_folder import RunFolder

SIZES = (
    "model.hidden_size=24",
    "model.intermediate_size=40",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=3",
    "model.cond_dim=16",
    "training.seq_len=128",
)

EMBEDDING_PLUGIN = Path(__file__).parent / "embedding"
"""On the import path there, the plugin `embedding` is installed."""


def embedding_plugin_installed() -> AbstractContextManager[None]:
    """The plugin `embedding`, whose time embedding is its own, can be selected within."""
    return plugins_installed(EMBEDDING_PLUGIN)


def write_run(
    out: Path,
    plugin: str = "uniform_mdlm",
    *sets: str,
    words_seen: Sequence[int] = (500_000,),
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """A run folder with a checkpoint for each of the word counts, the averages in it other than the last weights."""
    tokenizer, ranks = tokenizer or small_tokenizer(), Ranks.alone()
    host = Host(load_settings([], [*SIZES, *sets], [plugin], out).config)
    counts = torch.ones(tokenizer.vocab_size, dtype=torch.int64)
    context = run_context(host.config, tokenizer, ranks, max_steps=10, num_positions=100)
    parts = host.build(context, CorpusStatistics(token_count_V=counts, num_tokens=100, num_words=50))
    about = {
        "seed": 0,
        "world_size": 1,
        "versions": {"ltg_mdlm": __version__, **host.config.plugin_versions},
        "config": host.config.model_dump(mode="json", exclude={"run", "plugin_versions"}),
        "modes": sorted(parts.row_mode.modes),
        "predicts": parts.masking.predicts,
        "block_length": parts.masking.block_length,
    }
    folder = RunFolder(out)
    checkpoints = Checkpoints(folder.checkpoints, every=1, keep=2, about=about)
    model = build_model(host.config, tokenizer.vocab_size, parts.time_conditioning)
    generator = torch.Generator().manual_seed(seed)
    for step, words in enumerate(words_seen, 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        averages = {name: parameter + 0.01 for name, parameter in model.named_parameters()}
        checkpoints.save(TrainingState(step=step, words_seen=words, model=model.state_dict(), ema=averages))
        checkpoints.finish()
    checkpoints.close()
    folder.write_config(host.config.to_yaml())
    folder.write_tokenizer(tokenizer)
    rows = [{"step": step, "valid/loss": 4.0 + step, "valid/bound": 5.0} for step in range(len(words_seen) + 1)]
    folder.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out
