"""A plugin's map from mask rate to conditioning value, as a table that travels with an exported model.

Only torch is imported, so that the file can travel, too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

INTERVALS = 2**16
"""A power of two: the nodes k / 2^16 are exact in float32.

For sigma = -log(1 - 0.999 rate) the largest error of the interpolation is 2e-10 up to rate 1/2, 3e-9 up to 0.9, 4e-6
up to 511/512, and 3e-5 beyond; at the nodes, among them 0 and 1, there is none.  Rounding in float32, which the map
itself does as well, is more than that: the two differ by up to 2e-7, 8e-7, 2e-5 and 7e-5.
"""


class RateTable(nn.Module):
    """Linear interpolation between conditioning values at equidistant mask rates 0, 1 / n, .., 1."""

    value_at_node: Tensor

    def __init__(self, intervals: int = INTERVALS) -> None:
        super().__init__()
        self.register_buffer("value_at_node", torch.zeros(intervals + 1))

    @classmethod
    def of(cls, value_for_rate: Callable[[Tensor], Tensor]) -> RateTable:
        """Tabulate a map of float32[n] rates to float32[n] values.  Raises ValueError where it is not finite."""
        table = cls()
        rates = torch.arange(INTERVALS + 1) / INTERVALS
        values = value_for_rate(rates).float().cpu()
        if not values.isfinite().all():
            raise ValueError(f"the conditioning value of mask rate {rates[~values.isfinite()][0]:g} is not finite")
        table.value_at_node.copy_(values)
        return table

    def forward(self, rate_B: Tensor) -> Tensor:
        """float32[B] to float32[B]; rates outside [0, 1] count as 0 and 1."""
        values = self.value_at_node.float()
        place = rate_B.float().clamp(0, 1) * (len(values) - 1)
        below = place.long().clamp(max=len(values) - 2)
        return values[below].lerp(values[below + 1], place - below)

    def largest_error(self, value_for_rate: Callable[[Tensor], Tensor]) -> float:
        """The largest difference to the map halfway between nodes, where that of a smooth map is largest."""
        halfway = (torch.arange(INTERVALS) + 0.5) / INTERVALS
        return float((self(halfway) - value_for_rate(halfway).float().cpu()).abs().max())
