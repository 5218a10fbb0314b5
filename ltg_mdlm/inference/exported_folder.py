"""An exported folder: the names in it, and how it is read back without `transformers` and without running its code."""

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
"""In the folder of an export with revisions, each of which is a subfolder named like it."""


MAIN = "main"


MODEL_TYPE = "ltg_mdlm"


MODEL_PREFIX = "denoiser."
"""Before the names of the transformer's tensors."""


TABLE_NAME = "rate_table.value_at_node"


@dataclass(frozen=True)
class ExportedFolder:
    """What the files of an export say."""

    path: Path
    config: Mapping[str, Any]
    """config.json"""
    about: Mapping[str, Any]
    """training.json; empty where `transformers` saved the folder, which does not know it"""

    @classmethod
    def read(cls, path: Path) -> ExportedFolder:
        """Raises UserError for files that cannot be read, and for the folder of another kind of model."""
        training, config = path / TRAINING_FILE, _read_json(path / CONFIG_FILE)
        if (kind := config.get("model_type", MODEL_TYPE)) != MODEL_TYPE:
            raise UserError(
                f"{path}: a model of type {kind!r}, not one that `ltg-mdlm export` wrote\n  checkpoints of the"
                " published code bases become run folders by `ltg-mdlm import`"
            )
        return cls(path, config, _read_json(training) if training.is_file() else {})

    @property
    def sizes(self) -> ModelConfig:
        """What the transformer is built from.  Raises UserError if config.json does not say."""
        try:
            return ModelConfig(**{field.name: self.config[field.name] for field in fields(ModelConfig)})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path / CONFIG_FILE}: not the sizes of a model: {error}") from None

    @property
    def predicts(self) -> Literal["same", "next"]:
        return "next" if self.config.get("predicts") == "next" else "same"

    @property
    def modes(self) -> frozenset[Mode]:
        """The modes that rows were trained in, as the evaluation backends tell."""
        backends = set(self.config.get("backends", ()))
        masked: set[Mode] = {"masked"} if backends - {"causal"} else set()
        causal: set[Mode] = {"causal"} if "causal" in backends else set()
        return frozenset(masked | causal)

    def load(self) -> dict[str, Tensor]:
        """All tensors, on the CPU.  Raises UserError if they cannot be read."""
        return load_tensors(self.path / WEIGHTS_FILE)

    def value_for_rate(self, tensors: Mapping[str, Tensor], device: torch.device) -> Callable[[Tensor], Tensor | None]:
        """The map from mask rates to conditioning values, None for a model that is told nothing.

        Raises UserError if its table is not among the `tensors`.
        """
        if self.config.get("cond_dim") is None:
            return lambda rate_B: None
        intervals = self.config.get("rate_intervals")
        if intervals is None:
            return lambda rate_B: rate_B.float()
        values = tensors.get(TABLE_NAME)
        if values is None or len(values) != intervals + 1:
            raise UserError(f"{self.path / WEIGHTS_FILE}: {TABLE_NAME} is missing, or not of the length it must have")
        table = RateTable(intervals)
        table.value_at_node.copy_(values)
        return table.to(device)


def is_exported(path: Path) -> bool:
    """Whether the folder is an export, or one revision of it."""
    return (path / CONFIG_FILE).is_file() and (path / WEIGHTS_FILE).is_file()


def has_revisions(path: Path) -> bool:
    """Whether the folder is that of an export whose revisions are subfolders."""
    return (path / REVISIONS_FILE).is_file()


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write an object as people read it."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} cannot be read: it is not a JSON object")
    return content
