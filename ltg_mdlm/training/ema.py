"""Exponential moving average (EMA) of the weights, which validation and exported models use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ltg_mdlm.storage.checkpoint import COUNT
from ltg_mdlm.storage.named_tensors import copy_named


class EMA:
    """average = d * average + (1 - d) * parameter, with d = `decay`; with `ramp`, d = min(decay, (1 + n) / (10 + n)).

    n is the number of updates, including this one.  With the ramp, the average forgets the initial weights within the
    first steps.  Shared parameters are averaged once.
    """

    def __init__(self, model: nn.Module, *, decay: float, ramp: bool) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._decay, self._ramp = decay, ramp
        some_average = next(iter(self._averages.values()))
        self._dtype = some_average.dtype
        self._count = torch.zeros((), dtype=torch.int64, device=some_average.device)
        self._swapped = False

    @torch.no_grad()
    def update(self, refused: Tensor | None = None) -> None:
        """Add the current weights to the average.  `refused` is a bool scalar on the device; True changes nothing."""
        assert not self._swapped, "the model holds the averages"
        accepted = torch.ones_like(self._count, dtype=torch.bool) if refused is None else ~refused
        self._count += accepted
        # 1 - (1 + n) / (10 + n) = 9 / (10 + n)
        weight = torch.full_like(self._count, 1 - self._decay, dtype=torch.float64)
        if self._ramp:
            weight = (9 / (10 + self._count.double())).clamp(min=1 - self._decay)
        weight = (weight * accepted).to(self._dtype)
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name], weight)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block, and restore its own weights bit-exactly after it.

        The values are copied, so the optimiser and data parallelism keep their references to the parameters.
        """
        assert not self._swapped, "the model holds the averages already"
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._swapped = True
        try:
            self._set_parameters(self._averages)
            yield
        finally:
            self._set_parameters(own)
            self._swapped = False

    @torch.no_grad()
    def _set_parameters(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name, and the number of updates.  The tensors share memory with the EMA."""
        return {**self._averages, COUNT: self._count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned.  Raises UserError if names or shapes differ."""
        copy_named(self.state_dict(), state, "the averaged weights")
