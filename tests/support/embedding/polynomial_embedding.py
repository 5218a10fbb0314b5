"""A time embedding that a plugin brings, in a file of its own, so that it can travel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltg_mdlm.model.transformer import (
    TimeEmbedding,
)


class Polynomial(nn.Module):
    """Powers of the value, times a matrix, plus the usual embedding."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.usual = TimeEmbedding(cond_dim)
        self.matrix = nn.Linear(4, cond_dim)
        self.register_buffer("power", torch.arange(1.0, 5.0))

    def forward(self, conditioning_B: Tensor) -> Tensor:
        """[B] to [B, C]."""
        return self.usual(conditioning_B) + self.matrix((conditioning_B[:, None] / 8) ** self.power)


class Forgetful(Polynomial):
    """As above, with powers that no checkpoint keeps."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__(cond_dim)
        self.register_buffer("power", torch.arange(1.0, 5.0), persistent=False)


class Scaled(Polynomial):
    """As above, with an argument more."""

    def __init__(self, cond_dim: int, scale: float) -> None:
        super().__init__(cond_dim)
        self.scale = scale
