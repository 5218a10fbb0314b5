"""Averages of the weights, which validation and exported models use: exponential, and uniform in the tail of training.

Uniform averages of the last steps: Izmailov et al. 2018, arXiv 1803.05407 (SWA); Kaddour 2022, arXiv 2209.14981 (LAWA).
"""

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
    first steps.  From step `tail_start` on, the average is the mean of the weights after the steps since then; n starts
    again at 1, and d = 1 - 1 / n.  Shared parameters are averaged once.
    """

    def __init__(self, *modules: nn.Module, decay: float, ramp: bool, tail_start: int | None = None) -> None:
        """Average the trainable parameters of `modules`, whose names must differ."""
        named = [item for module in modules for item in module.named_parameters()]
        self._parameters = {name: p for name, p in named if p.requires_grad}
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._decay, self._ramp, self._tail_start = decay, ramp, tail_start
        some_average = next(iter(self._averages.values()))
        self._dtype = some_average.dtype
        self._count = torch.zeros((), dtype=torch.int64, device=some_average.device)
        self._swapped = False

    @torch.no_grad()
    def update(self, refused: Tensor | None = None, step: int = 0) -> None:
        """Add the weights after step `step` to the average.

        `refused` is a bool scalar on the device; True does not change the average.
        """
        assert not self._swapped, "the model holds the averages"
        if step == self._tail_start:
            self._count.zero_()
        accepted = torch.ones_like(self._count, dtype=torch.bool) if refused is None else ~refused
        self._count += accepted
        # 1 - (1 + n) / (10 + n) = 9 / (10 + n)
        weight = torch.full_like(self._count, 1 - self._decay, dtype=torch.float64)
        if self._tail_start is not None and step >= self._tail_start:
            weight = 1 / self._count.double().clamp(min=1)
        elif self._ramp:
            weight = (9 / (10 + self._count.double())).clamp(min=1 - self._decay)
        weight = (weight * accepted).to(self._dtype)
        averages: list[Tensor] = list(self._averages.values())
        parameters: list[Tensor] = list(self._parameters.values())
        if weight.is_cuda:  # lerp with a weight on the device would be a launch for every parameter
            changes = torch._foreach_sub(parameters, averages)
            torch._foreach_mul_(changes, weight)
            torch._foreach_add_(averages, changes)
        else:
            torch._foreach_lerp_(averages, parameters, [weight] * len(averages))

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

    def describe(self) -> str:
        """Which average is kept, for logs and checkpoints."""
        text = f"exponential average with decay {self._decay:g}" if self._decay > 0 else "not averaged"
        return text if self._tail_start is None else f"{text}, uniform average from step {self._tail_start + 1} on"

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name, and the number of updates in them.  The tensors share memory with the EMA."""
        return {**self._averages, COUNT: self._count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned.  Raises UserError if names or shapes differ."""
        copy_named(self.state_dict(), state, "the averaged weights")


def tail_start(share: float, max_steps: int) -> int | None:
    """Index of the first step of the tail, the last `share` of training; None if the share is 0."""
    return max_steps - max(1, round(share * max_steps)) if share > 0 else None
