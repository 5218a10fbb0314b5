"""What scoring a text needs to know of a model.

A trained model, opened for use: evaluation, export, fine-tuning and generation need its folder and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltg_mdlm.core.components import Mode, TimeConditioning
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import stored_config
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import build_model, run_context
from ltg_mdlm.inference.exported_folder import (
    MAIN,
    MODEL_PREFIX,
    TOKENIZER_FILE,
    TRAINING_FILE,
    ExportedFolder,
    has_revisions,
    is_exported,
)
from ltg_mdlm.model.transformer import TimeEmbedding, Transformer
from ltg_mdlm.storage.checkpoint import STATE_FILE, find_checkpoint, load_weights, read_about
from ltg_mdlm.storage.named_tensors import copy_named
from ltg_mdlm.storage.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A model in evaluation mode, and how it was trained to be used."""

    model: Transformer
    tokenizer: Tokenizer
    predicts: Literal["same", "next"]
    """Masked tokens are predicted at their own position, or one position earlier (MNTP)."""
    modes: frozenset[Mode]
    """The modes that rows were trained in."""
    value_for_rate: Callable[[Tensor], Tensor | None]
    """float32[B] conditioning values for mask rates [B]; None for a model without time conditioning."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.output_weight_VD.device

    @property
    def is_conditioned(self) -> bool:
        """Whether the model is told how much of a row is masked."""
        return self.model.config.cond_dim is not None

    def value(self, rate_B: Tensor, causal: bool) -> Tensor | None:
        """Conditioning values of rows with these mask rates; 0 for causal rows, as in training."""
        if not self.is_conditioned:
            return None
        return torch.zeros_like(rate_B) if causal else self.value_for_rate(rate_B)


Weights = Literal["ema", "raw"]


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Denoiser):
    """A denoiser from the disk, and where it comes from."""

    source: Path
    """The checkpoint or exported folder that the weights come from."""
    weights: Weights
    about: Mapping[str, Any]
    """What is known of the training: step, words_seen, config, versions."""

    @property
    def name(self) -> str:
        """The name of its run, or of its exported folder, of which it may be a revision."""
        folder = self.source.resolve()
        if folder.parent.name == "checkpoints":
            return folder.parent.parent.name
        return folder.parent.name if has_revisions(folder.parent) else folder.name

    @property
    def revision(self) -> str:
        """`chck_10M` for a checkpoint by words seen, else `main`, as evaluation pipelines call it."""
        return self.source.name if self.source.name.startswith("chck_") else "main"


def open_model(path: str | Path, ranks: Ranks | None = None, *, weights: Weights = "ema") -> TrainedModel:
    """Open a run folder (its newest checkpoint), a checkpoint or an exported folder on the device of this rank.

    `ranks`: the processes that this one belongs to; by default those that torchrun started, or this one alone.
    `weights`: the averages, which are what training evaluates, or the weights of the last step; of an exported folder,
    those that it holds.

    Raises UserError if there is none, a part is missing, a plugin that it was trained with is not installed, or the
    weights of the last step are asked of an exported folder of averages.
    """
    path, ranks = Path(path), ranks or Ranks.setup()
    if has_revisions(path):
        path = path / MAIN
    if is_exported(path):
        folder = ExportedFolder.read(path)
        if weights == "raw" and folder.about.get("weights") == "ema":
            raise UserError(f"--weights raw: {path} holds averaged weights only; give the run that it was made from")
        return _open_exported(folder, ranks)
    checkpoint = find_checkpoint(path)
    about = read_about(checkpoint)
    config = stored_config(about["config"], checkpoint / STATE_FILE)
    tokenizer = _tokenizer_of(checkpoint)
    with _plugins_named(checkpoint, about):
        conditioning = conditioning_of(config, tokenizer, ranks)
    model = build_model(config, tokenizer.vocab_size, conditioning)
    copy_named(model.state_dict(), load_weights(checkpoint, averaged=weights == "ema"), f"the model of {checkpoint}")
    return TrainedModel(
        model=model.to(ranks.device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        predicts=about["predicts"],
        modes=frozenset(about["modes"]),
        value_for_rate=conditioning.value_for_rate,
        source=checkpoint,
        weights=weights,
        about=about,
    )


def _open_exported(folder: ExportedFolder, ranks: Ranks) -> TrainedModel:
    """Of its code nothing is run: the model is the package's own, and a plugin's time embedding the installed one."""
    tokenizer = Tokenizer.read(folder.path / TOKENIZER_FILE)
    sizes, tensors = folder.sizes, folder.load()
    model = Transformer(sizes, _embedding_of(folder, tokenizer, ranks))
    weights = {name.removeprefix(MODEL_PREFIX): t for name, t in tensors.items() if name.startswith(MODEL_PREFIX)}
    copy_named(model.state_dict(), weights, f"the model of {folder.path}")
    return TrainedModel(
        model=model.to(ranks.device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        predicts=folder.predicts,
        modes=folder.modes,
        value_for_rate=folder.value_for_rate(tensors, ranks.device),
        source=folder.path,
        weights=folder.about.get("weights", "ema"),
        about=folder.about,
    )


def _embedding_of(folder: ExportedFolder, tokenizer: Tokenizer, ranks: Ranks) -> nn.Module | None:
    """The time embedding that a plugin brought; None for the usual one.  Raises UserError if it cannot be had."""
    name, cond_dim = folder.config.get("time_embedding"), folder.sizes.cond_dim
    if name in (None, TimeEmbedding.__name__) or cond_dim is None:
        return None
    if "config" not in folder.about:
        raise UserError(
            f"{folder.path}: its time embedding {name} comes from a plugin, and no {TRAINING_FILE} says which"
        )
    config = stored_config(folder.about["config"], folder.path / TRAINING_FILE)
    with _plugins_named(folder.path, folder.about):
        return conditioning_of(config, tokenizer, ranks).embedding(cond_dim)


@contextmanager
def _plugins_named(model: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """Whoever lacks a plugin learns which distribution has it."""
    try:
        yield
    except UserError as error:
        versions = about.get("versions", {})
        plugins = ", ".join(f"{name} of {versions.get(name, '?')}" for name in about["config"]["plugins"])
        raise UserError(f"{error}\n  {model} was trained with {plugins}") from None


def conditioning_of(config: RunConfig, tokenizer: Tokenizer, ranks: Ranks) -> TimeConditioning:
    """The time conditioning that the plugins of these settings provide."""
    filled = Host(config).fill("time_conditioning", run_context(config, tokenizer, ranks))
    assert isinstance(filled.component, TimeConditioning)
    return filled.component


def _tokenizer_of(checkpoint: Path) -> Tokenizer:
    folder = RunFolder(checkpoint.parent.parent)
    if not folder.tokenizer_file.is_file():
        raise UserError(
            f"{checkpoint}: no tokenizer: expected {folder.tokenizer_file}, in the run folder that the checkpoint"
            " belongs to"
        )
    return Tokenizer.read(folder.tokenizer_file)
