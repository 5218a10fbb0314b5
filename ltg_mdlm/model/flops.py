"""Floating-point operations of a model, from the sizes of its matrix products."""

from __future__ import annotations

from dataclasses import dataclass

from ltg_mdlm.model.transformer import ModelConfig


@dataclass(frozen=True)
class FlopsPerToken:
    """Forward pass, per token of a row; a multiplication and an addition are two operations."""

    linear: float
    """Weight matrices of the layers."""
    attention: float
    """Query times key, and probability times value; what packing saves is not deducted."""
    head: float
    """The head and the vocabulary matrix, at supervised positions alone."""

    @property
    def forward(self) -> float:
        """One forward pass."""
        return self.linear + self.attention + self.head

    @property
    def training(self) -> float:
        """Forward and backward pass; what activation checkpointing makes twice counts once."""
        return 3 * self.forward


def flops_per_token(sizes: ModelConfig, length: int, supervised_share: float) -> FlopsPerToken:
    """For rows of `length` tokens, of which a share is supervised.

    Position tables and time conditioning are left out (under 5 % at base size), and all that is no matrix product.
    """
    width, inner, layers = sizes.hidden_size, sizes.intermediate_size, sizes.num_hidden_layers
    return FlopsPerToken(
        linear=2 * layers * (5 * width**2 + 3 * width * inner),
        attention=4 * layers * length * width,
        head=2 * supervised_share * (width**2 + width * sizes.vocab_size),
    )
