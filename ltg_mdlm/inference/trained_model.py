"""Opens a trained model from a run folder, a checkpoint or an exported folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltg_mdlm.core.components import Mode, TimeConditioning
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import reason_of
from ltg_mdlm.core.settings import stored_config
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import build_model, run_context
from ltg_mdlm.inference.exported_folder import (
    CONFIG_FILE,
    MAIN,
    MODEL_PREFIX,
    TOKENIZER_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    ExportedFolder,
    has_revisions,
    is_exported,
)
from ltg_mdlm.model.transformer import TimeEmbedding, Transformer
from ltg_mdlm.storage.checkpoint import STATE_FILE, find_checkpoint, load_weights, read_about
from ltg_mdlm.storage.named_tensors import copy_named
from ltg_mdlm.storage.run_folder import run_of_checkpoint

Weights = Literal["ema", "raw"]
"""The averaged weights, or the weights of the last step."""


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A model in evaluation mode, and what its training says about its use."""

    model: Transformer
    tokenizer: Tokenizer
    predicts: Literal["same", "next"]
    """Whether masked tokens are predicted at their own position, or one position earlier (MNTP)."""
    modes: frozenset[Mode]
    """The modes of the rows in training."""
    value_for_rate: Callable[[Tensor], Tensor | None]
    """Returns float32[B] conditioning values for mask rates [B]; None for a model without time conditioning."""
    block_length: int = 0
    """Tokens of a block: in masked rows, a token sees its own block and earlier ones.  0: the whole row."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.output_weight_VD.device

    @property
    def is_conditioned(self) -> bool:
        """Whether the model has time conditioning."""
        return self.model.config.cond_dim is not None

    def value(self, rate_B: Tensor, causal: bool) -> Tensor | None:
        """float32[B] conditioning values of rows with these mask rates; 0 for causal rows, as in training."""
        if not self.is_conditioned:
            return None
        return torch.zeros_like(rate_B) if causal else self.value_for_rate(rate_B)


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Denoiser):
    """A denoiser that was read from disk."""

    source: Path
    """The checkpoint or exported folder that holds the weights."""
    weights: Weights
    about: Mapping[str, Any]
    """Facts of the training: step, words_seen, config, versions; empty if unknown."""

    @property
    def name(self) -> str:
        """The name of the run, or of the exported folder without the revision."""
        return model_name(self.source)

    @property
    def revision(self) -> str:
        """The revision in the terms of evaluation pipelines: `chck_10M` for a checkpoint by words seen, else `main`."""
        return self.source.name if self.source.name.startswith("chck_") else MAIN

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of the names and contents of the weights, equal for a run and its export."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}\0".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def model_name(path: Path) -> str:
    """The name of the run that a folder or checkpoint belongs to, or of the exported folder without the revision."""
    places = (_absolute(path), path.resolve())  # a link keeps the name of the folder that it is in
    for place in places:
        if place.parent.name == "checkpoints":
            return place.parent.parent.resolve().name
    for place in places:
        if has_revisions(place.parent):
            return place.parent.resolve().name
    return path.resolve().name


def _absolute(path: Path) -> Path:
    """The path from the root; links stay, unless the way leads back from one."""
    return path.resolve() if ".." in path.parts else Path(os.path.abspath(path))


def open_model(path: str | Path, ranks: Ranks | None = None, *, weights: Weights = "ema") -> TrainedModel:
    """Open a trained model on the device of this process.

    Args:
        path: a run folder (its newest checkpoint is used), a checkpoint or an exported folder.
        ranks: the processes of this program; by default those that torchrun started, or this process alone.
        weights: "ema" for the averaged weights, which training evaluates, or "raw" for the weights of the last step.
            Exported folders hold only one of them.

    Raises UserError if there is no model, a part of it is missing, a plugin of its training is not installed, or "raw"
    weights are requested from an exported folder with averaged weights.
    """
    path, ranks = Path(path), ranks or Ranks.setup()
    try:
        if has_revisions(path):
            path = path / MAIN
        exported = is_exported(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}") from None
    if exported:
        return _open_exported(ExportedFolder.read(path), ranks, weights)
    if any((path / name).is_file() for name in (CONFIG_FILE, TRAINING_FILE)):
        missing = next(name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (path / name).is_file())
        raise UserError(f"{path}: an exported model without {missing}; export the model again")
    checkpoint = find_checkpoint(path)
    about = read_about(checkpoint)
    if absent := {"config", "modes", "predicts"} - about.keys():
        raise UserError(f"{checkpoint / STATE_FILE} does not describe the model: it has no {', '.join(sorted(absent))}")
    config = stored_config(about["config"], checkpoint / STATE_FILE)
    tokenizer_file = run_of_checkpoint(checkpoint).tokenizer_file
    if not tokenizer_file.is_file():
        raise UserError(
            f"{checkpoint}: no tokenizer: expected {tokenizer_file}, in the run folder that the checkpoint belongs to"
        )
    tokenizer = Tokenizer.read(tokenizer_file)
    # Checkpoints of old versions do not say which tokenizer they belong to.
    if about.get("tokenizer", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise UserError(
            f"{tokenizer_file} is damaged, or is not the tokenizer that {checkpoint} was trained with"
            "\n  restore it: the corpus of the run has a copy, and to resume the run writes it again"
        )
    with _plugins_named(checkpoint, about):
        conditioning = _time_conditioning(config, tokenizer, ranks)
    model = build_model(config, tokenizer.vocab_size, conditioning)
    copy_named(model.state_dict(), load_weights(checkpoint, averaged=weights == "ema"), f"the model of {checkpoint}")
    return TrainedModel(
        model=model.to(ranks.device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        predicts=about["predicts"],
        modes=frozenset(about["modes"]),
        value_for_rate=conditioning.value_for_rate,
        block_length=about.get("block_length", 0),
        source=_absolute(checkpoint),
        weights=weights,
        about=about,
    )


def _open_exported(folder: ExportedFolder, ranks: Ranks, weights: Weights) -> TrainedModel:
    """Open an export with the package's own model; the code in the folder is not run.

    A time embedding of a plugin is taken from the installed plugin.
    """
    if weights == "raw" and folder.about.get("weights") == "ema":
        raise UserError(f"--weights raw: {folder.path} holds averaged weights only; give the run that it was made from")
    tokenizer = Tokenizer.read(folder.path / TOKENIZER_FILE)
    sizes, tensors = folder.sizes, folder.load()
    embedding: nn.Module | None = None
    embedding_class = folder.config.get("time_embedding")
    if embedding_class not in (None, TimeEmbedding.__name__) and sizes.cond_dim is not None:
        if "config" not in folder.about:
            raise UserError(
                f"{folder.path}: its time embedding {embedding_class} comes from a plugin, and no {TRAINING_FILE} says"
                " which"
            )
        config = stored_config(folder.about["config"], folder.path / TRAINING_FILE)
        with _plugins_named(folder.path, folder.about):
            embedding = _time_conditioning(config, tokenizer, ranks).embedding(sizes.cond_dim)
    model = Transformer(sizes, embedding)
    named = {name.removeprefix(MODEL_PREFIX): t for name, t in tensors.items() if name.startswith(MODEL_PREFIX)}
    copy_named(model.state_dict(), named, f"the model of {folder.path}")
    return TrainedModel(
        model=model.to(ranks.device).eval().requires_grad_(False),
        tokenizer=tokenizer,
        predicts=folder.predicts,
        modes=folder.modes,
        value_for_rate=folder.value_for_rate(tensors, ranks.device),
        block_length=folder.block_length,
        source=_absolute(folder.path),
        weights=folder.about.get("weights", "ema"),
        about=folder.about,
    )


def _time_conditioning(config: RunConfig, tokenizer: Tokenizer, ranks: Ranks) -> TimeConditioning:
    """The component of the plugins that the settings select."""
    filled = Host(config).fill("time_conditioning", run_context(config, tokenizer, ranks))
    assert isinstance(filled.component, TimeConditioning)
    return filled.component


@contextmanager
def _plugins_named(model: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """Add the plugins of the training, with their distributions, to the message of a UserError."""
    try:
        yield
    except UserError as error:
        versions = about.get("versions", {})
        plugins = ", ".join(f"{name} of {versions.get(name, '?')}" for name in about["config"].get("plugins", ()))
        raise UserError(f"{error}\n  {model} was trained with {plugins}") from None
