"""A trained model, opened for use: evaluation, export, fine-tuning and generation need its folder and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ltg_mdlm.api import TimeConditioning
from ltg_mdlm.build import build_model, run_context
from ltg_mdlm.checkpoint import find_checkpoint, load_weights, read_about
from ltg_mdlm.config import RunConfig
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.distributed import Ranks
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.denoiser import Denoiser
from ltg_mdlm.host import Host
from ltg_mdlm.named_tensors import copy_named
from ltg_mdlm.run_folder import RunFolder

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
        """The name of its run, or of its exported folder."""
        is_checkpoint = self.source.parent.name == "checkpoints"
        return (self.source.parent.parent if is_checkpoint else self.source).resolve().name

    @property
    def revision(self) -> str:
        """`chck_10M` for a checkpoint by words seen, else `main`, as evaluation pipelines call it."""
        return self.source.name if self.source.name.startswith("chck_") else "main"


def open_model(path: Path, ranks: Ranks, *, weights: Weights = "ema") -> TrainedModel:
    """Open a run folder (its newest checkpoint) or a checkpoint on the device of this rank.

    `weights`: the averages, which are what training evaluates, or the weights of the last step.

    Raises UserError if there is none, a part is missing, or the plugin behind its time conditioning is not installed.
    """
    checkpoint = find_checkpoint(path)
    about = read_about(checkpoint)
    config = RunConfig.model_validate(about["config"])
    tokenizer = _tokenizer_of(checkpoint)
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
