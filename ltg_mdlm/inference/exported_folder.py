"""Reads the folder of an exported model, without `transformers` and without running the code in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ltg_mdlm.core.components import Mode
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import read_object, shown
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


_TYPES = {"int": (int,), "float": (int, float), "int | None": (int, type(None)), "bool": (bool,)}
"""Types in JSON of the fields of `ModelConfig`."""

_ABOUT_TYPES = {"config": (dict,), "versions": (dict,), "step": (int,), "words_seen": (int, type(None))}
"""Types in training.json."""

_MAX_POSITIONS = 1 << 16


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
        training, config = path / TRAINING_FILE, read_object(path / CONFIG_FILE)
        if (kind := config.get("model_type", MODEL_TYPE)) != MODEL_TYPE:
            raise UserError(
                f"{path}: a model of type {shown(kind)}, which `ltg-mdlm export` did not write"
                "\n  to convert a checkpoint of a published code base to a run folder, use `ltg-mdlm import`"
            )
        about = read_object(training, finite=False) if training.is_file() else {}
        for key, types in _ABOUT_TYPES.items():
            if key in about and type(about[key]) not in types:
                raise UserError(f"{training}: {key} cannot be {shown(about[key])}; export the model again")
        if about.get("weights", "ema") not in ("ema", "raw"):
            raise UserError(f"{training}: weights must be ema or raw, not {shown(about['weights'])}")
        return cls(path, config, about)

    @property
    def sizes(self) -> ModelConfig:
        """The config of the transformer.  Raises UserError if config.json has no valid sizes."""
        try:
            sizes = {field.name: self.config[field.name] for field in fields(ModelConfig)}
            for field in fields(ModelConfig):
                value = sizes[field.name]
                if type(value) not in _TYPES[str(field.type)] or (type(value) is int and value < 0):
                    raise ValueError(f"{field.name} cannot be {shown(value)}")
            if not 0 < sizes["max_position_embeddings"] <= _MAX_POSITIONS:
                raise ValueError(f"max_position_embeddings must be in 1..{_MAX_POSITIONS}")
            return ModelConfig(**sizes)
        except (KeyError, ValueError, ZeroDivisionError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{self.path / CONFIG_FILE}: not the sizes of a model: {problem}") from None

    @property
    def predicts(self) -> Literal["same", "next"]:
        """Where the model predicts masked tokens, see `ltg_mdlm.inference.trained_model.Denoiser`."""
        value = self.config.get("predicts", "same")
        if value not in ("same", "next"):
            raise UserError(f"{self.path / CONFIG_FILE}: predicts must be same or next, not {shown(value)}")
        return "next" if value == "next" else "same"

    @property
    def block_length(self) -> int:
        """Tokens of a block, see `ltg_mdlm.inference.trained_model.Denoiser`."""
        value = self.config.get("block_length", 0)
        if type(value) is not int or value < 0:
            raise UserError(
                f"{self.path / CONFIG_FILE}: block_length must be 0 or a number of tokens, not {shown(value)}"
            )
        return value

    @property
    def modes(self) -> frozenset[Mode]:
        """The modes of the rows in training, according to the evaluation backends."""
        given = self.config.get("backends", [])
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            raise UserError(f"{self.path / CONFIG_FILE}: backends must be a list of names, not {shown(given)}")
        backends = set(given)
        masked: set[Mode] = {"masked"} if backends - {"causal"} else set()
        causal: set[Mode] = {"causal"} if "causal" in backends else set()
        return frozenset(masked | causal)

    def load(self) -> dict[str, Tensor]:
        """All tensors, on the CPU.  Raises UserError if they cannot be read."""
        tensors = load_tensors(self.path / WEIGHTS_FILE)
        # Before anything of these sizes is built, which might not fit into memory.
        sizes, prefix = self.sizes, MODEL_PREFIX
        expected = {
            f"{prefix}embedding.word_embedding.weight": [sizes.vocab_size, sizes.hidden_size],
            f"{prefix}embedding.relative_embedding": [sizes.num_buckets, sizes.hidden_size],
            f"{prefix}transformer.mlp_layers.0.mlp.1.weight": [2 * sizes.intermediate_size, sizes.hidden_size],
        }
        found = {name: list(tensors[name].shape) for name in expected if name in tensors}
        layers = sum(name.startswith(prefix) and name.endswith(".out_proj.bias") for name in tensors)
        if any(expected[name] != shape for name, shape in found.items()) or layers != sizes.num_hidden_layers:
            raise UserError(
                f"{self.path}: {CONFIG_FILE} has other sizes than the weights in {WEIGHTS_FILE}; export the model again"
            )
        return tensors

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
        if type(intervals) is not int or values is None or list(values.shape) != [intervals + 1]:
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
