"""What scoring a text needs to know of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ltg_mdlm.api import Mode
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.model.transformer import Transformer


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
