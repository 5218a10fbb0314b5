"""Reads the folder of an exported model, without `transformers` and without running the code in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ltg_mdlm.core.components import Mode
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.model.rate_table import RateTable
from ltg_mdlm.model.transformer import ModelConfig
from ltg_mdlm.storage.tensor_files import load_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
TRAINING_FILE = "training.json"

REVISIONS_FILE = "revisions.json"
"""Lists the subfolders of an export with revisions; each subfolder is named after its revision."""

MAIN = "main"
"""The revision of the newest checkpoint."""

MODEL_TYPE = "ltg_mdlm"
"""`model_type` in config.json."""

MODEL_PREFIX = "denoiser."
"""Prefix of the names of the transformer's tensors."""

TABLE_NAME = "rate_table.value_at_node"
"""Name of the tensor of conditioning values by mask rate."""


@dataclass(frozen=True)
class ExportedFolder:
    """The content of an export's JSON files."""

    path: Path
    config: Mapping[str, Any]
    """Content of config.json."""
    about: Mapping[str, Any]
    """Content of training.json; empty if the folder was saved by `transformers`, which does not write this file."""

    @classmethod
    def read(cls, path: Path) -> ExportedFolder:
        """Raises UserError for files that cannot be read, and for a folder with another type of model."""
        training, config = path / TRAINING_FILE, _read_json(path / CONFIG_FILE)
        if (kind := config.get("model_type", MODEL_TYPE)) != MODEL_TYPE:
            raise UserError(
                f"{path}: a model of type {kind!r}, which `ltg-mdlm export` did not write\n  to convert a checkpoint of"
                " a published code base to a run folder, use `ltg-mdlm import`"
            )
        return cls(path, config, _read_json(training) if training.is_file() else {})

    @property
    def sizes(self) -> ModelConfig:
        """The config of the transformer.  Raises UserError if config.json has no valid sizes."""
        try:
            return ModelConfig(**{field.name: self.config[field.name] for field in fields(ModelConfig)})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path / CONFIG_FILE}: not the sizes of a model: {error}") from None

    @property
    def predicts(self) -> Literal["same", "next"]:
        """Where the model predicts masked tokens, see `ltg_mdlm.inference.trained_model.Denoiser`."""
        return "next" if self.config.get("predicts") == "next" else "same"

    @property
    def modes(self) -> frozenset[Mode]:
        """The modes of the rows in training, according to the evaluation backends."""
        backends = set(self.config.get("backends", ()))
        masked: set[Mode] = {"masked"} if backends - {"causal"} else set()
        causal: set[Mode] = {"causal"} if "causal" in backends else set()
        return frozenset(masked | causal)

    def load(self) -> dict[str, Tensor]:
        """All tensors, on the CPU.  Raises UserError if they cannot be read."""
        return load_tensors(self.path / WEIGHTS_FILE)

    def value_for_rate(self, tensors: Mapping[str, Tensor], device: torch.device) -> Callable[[Tensor], Tensor | None]:
        """The function from mask rates to conditioning values; it returns None for a model without time conditioning.

        Raises UserError if the table of values is missing from `tensors`, or has the wrong length.
        """
        if self.config.get("cond_dim") is None:
            return lambda rate_B: None
        intervals = self.config.get("rate_intervals")
        if intervals is None:
            return lambda rate_B: rate_B.float()
        values = tensors.get(TABLE_NAME)
        if values is None or len(values) != intervals + 1:
            raise UserError(f"{self.path / WEIGHTS_FILE}: {TABLE_NAME} is missing or has the wrong length")
        table = RateTable(intervals)
        table.value_at_node.copy_(values)
        return table.to(device)


def is_exported(path: Path) -> bool:
    """Whether the folder is an export, or one revision of an export."""
    return (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file()


def has_revisions(path: Path) -> bool:
    """Whether the folder is an export with revisions as subfolders."""
    return (path / REVISIONS_FILE).is_file()


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} cannot be read: it is not a JSON object")
    return content
