"""The exponential moving average of the weights, which is what gets evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ltg_mdlm.storage.checkpoint import COUNT
from ltg_mdlm.storage.named_tensors import copy_named


class EMA:
    """average = d * average + (1 - d) * parameter, with d = decay; with `ramp`, d = min(decay, (1 + n) / (10 + n)).

    n counts the updates, this one included.  The ramp makes the average forget the initial weights within the first
    steps.  Shared parameters are averaged once.
    """

    def __init__(self, model: nn.Module, *, decay: float, ramp: bool) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._decay, self._ramp = decay, ramp
        device = next(iter(self._averages.values())).device
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._swapped = False

    @torch.no_grad()
    def update(self, refused: Tensor | None = None) -> None:
        """Take in the current weights; a step that was `refused` (bool scalar on the device) does not count."""
        assert not self._swapped, "the model holds the averages"
        accepted = torch.ones_like(self._count, dtype=torch.bool) if refused is None else ~refused
        self._count += accepted
        weight = (self._weight() * accepted).to(next(iter(self._averages.values())).dtype)
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name], weight)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again, to the bit, after it."""
        assert not self._swapped, "the model holds the averages already"
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._swapped = True
        try:
            self._put(self._averages)
            yield
        finally:
            self._put(own)
            self._swapped = False

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name, and the number of updates; shares memory with the average."""
        return {**self._averages, COUNT: self._count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned.  Raises UserError if names or shapes differ."""
        copy_named(self.state_dict(), state, "the averaged weights")

    def _weight(self) -> Tensor:
        """float64 scalar: 1 - d."""
        constant = torch.full_like(self._count, 1 - self._decay, dtype=torch.float64)
        return (9 / (10 + self._count.double())).clamp(min=1 - self._decay) if self._ramp else constant

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])
