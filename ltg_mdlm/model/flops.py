"""Floating-point operations (FLOP) of a model, from the sizes of its matrix products."""

from __future__ import annotations

from dataclasses import dataclass

from ltg_mdlm.model.transformer import ModelConfig


@dataclass(frozen=True)
class FlopsPerToken:
    """FLOP of the forward pass per token of a row; a multiplication and an addition are two operations."""

    linear: float
    """weight matrices of the layers"""
    attention: float
    """query times key, and probability times value; savings by packing are not deducted"""
    head: float
    """the head and the vocabulary matrix, at supervised positions only"""

    @property
    def forward(self) -> float:
        """One forward pass."""
        return self.linear + self.attention + self.head

    @property
    def training(self) -> float:
        """Forward and backward pass; operations that activation checkpointing repeats count once."""
        return 3 * self.forward


def flops_per_token(
    sizes: ModelConfig, length: int, supervised_share: float, columns: int | None = None
) -> FlopsPerToken:
    """Count the FLOP of rows of T = `length` tokens, of which `supervised_share` is supervised.

    With copies of the row, the model has X = `columns` columns per row: every token then costs X / T times the weight
    matrices and (X / T)^2 times the attention.  Only matrix products count.  Those of position tables and time
    conditioning are omitted (below 5 % at base size).
    """
    width, inner, layers = sizes.hidden_size, sizes.intermediate_size, sizes.num_hidden_layers
    copies = (columns or length) / length
    return FlopsPerToken(
        linear=2 * layers * (5 * width**2 + 3 * width * inner) * copies,
        attention=4 * layers * length * width * copies**2,
        head=2 * supervised_share * (width**2 + width * sizes.vocab_size),
    )
