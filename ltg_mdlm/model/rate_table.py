"""A table of a plugin's conditioning values by mask rate, so that exported models work without the plugin.

This file is part of every exported model, so it imports only torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

INTERVALS = 2**16
"""A power of two, so that the nodes k / 2^16 are exact in float32.

For sigma = -log(1 - 0.999 rate), the interpolation error is at most 2e-10 up to rate 1/2, 3e-9 up to 0.9, 4e-6 up to
511/512, and 3e-5 beyond; it is 0 at the nodes, which include 0 and 1.  Rounding in float32 has a larger effect: table
and map differ by up to 2e-7, 8e-7, 2e-5 and 7e-5 in these ranges.
"""


class RateTable(nn.Module):
    """Linear interpolation between conditioning values at equidistant mask rates 0, 1 / n, .., 1."""

    value_at_node: Tensor

    def __init__(self, intervals: int = INTERVALS) -> None:
        super().__init__()
        self.register_buffer("value_at_node", torch.zeros(intervals + 1))

    @classmethod
    def of(cls, value_for_rate: Callable[[Tensor], Tensor]) -> RateTable:
        """Tabulate a map from float32[n] rates to float32[n] values.

        Raises ValueError if a value is not finite.
        """
        table = cls()
        rates = torch.arange(INTERVALS + 1) / INTERVALS
        values = value_for_rate(rates).float().cpu()
        if not values.isfinite().all():
            raise ValueError(f"the conditioning value of mask rate {rates[~values.isfinite()][0]:g} is not finite")
        table.value_at_node.copy_(values)
        return table

    def forward(self, rate_B: Tensor) -> Tensor:
        """float32[B] rates to float32[B] values; rates are clamped to [0, 1]."""
        values = self.value_at_node.float()
        position_B = rate_B.float().clamp(0, 1) * (len(values) - 1)
        below_B = position_B.long().clamp(max=len(values) - 2)
        return values[below_B].lerp(values[below_B + 1], position_B - below_B)

    def largest_error(self, value_for_rate: Callable[[Tensor], Tensor]) -> float:
        """The largest error halfway between nodes, where the error of a smooth map is largest."""
        halfway = (torch.arange(INTERVALS) + 0.5) / INTERVALS
        return float((self(halfway) - value_for_rate(halfway).float().cpu()).abs().max())
