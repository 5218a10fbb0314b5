"""The JSON file with a model's sizes, in the fields of the published code bases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltg_mdlm.errors import UserError

_NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "position_bucket_size",
    "layer_norm_eps",
)
"""Sizes that have no default: some of them cannot be told from the weights, so that a wrong one would go unnoticed."""
_OPTIONAL = ("cond_dim", "depth_weighted_averaging")
_DROPOUT, _ATTENTION_DROPOUT = "hidden_dropout_prob", "attention_probs_dropout_prob"


@dataclass(frozen=True)
class ModelFile:
    """What the file says."""

    path: Path
    fields: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Raises UserError for a file that is not JSON, or lacks a size."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError:
            raise UserError(f"{path}: not a model config: it is not JSON") from None
        missing = [name for name in _NEEDED if name not in fields] if isinstance(fields, dict) else list(_NEEDED)
        if missing:
            raise UserError(
                f"{path}: not a model config: it lacks {', '.join(missing)}"
                "\n  give the JSON file that the checkpoint was trained with (--model-config)"
            )
        return cls(path, fields)

    @property
    def settings(self) -> dict[str, Any]:
        """The section `model` of a run's settings."""
        given = {name: self.fields[name] for name in (*_NEEDED, *_OPTIONAL) if self.fields.get(name) is not None}
        if _DROPOUT in self.fields:
            given["dropout"] = self.fields[_DROPOUT]
        return given

    @property
    def vocab_size(self) -> int | None:
        """None if the file does not say."""
        return self.fields.get("vocab_size")

    @property
    def unused(self) -> list[str]:
        """Fields that change nothing: unknown ones, and a second rate of dropout, of which runs have one."""
        known = {*_NEEDED, *_OPTIONAL, "vocab_size", _DROPOUT}
        if self.fields.get(_ATTENTION_DROPOUT) == self.fields.get(_DROPOUT):
            known.add(_ATTENTION_DROPOUT)
        return [name for name in self.fields if name not in known]
