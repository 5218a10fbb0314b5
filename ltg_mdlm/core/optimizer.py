"""Base class of optimisers, and the groups of parameters that they receive.

The base class computes gradient norms, clips, counts updates, refuses non-finite ones, and keeps the state by name, all
on the device.  A subclass says how the state and a parameter change: `initial_state`, `new_state` and `update`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ltg_mdlm.core.components import described
from ltg_mdlm.core.config import Provider
from ltg_mdlm.core.errors import ResultError

ParameterKind = Literal["embedding", "head", "matrix", "vector"]
"""What a parameter does: a table of vectors, which is read by index (also the table that is the vocabulary matrix); a
matrix of the head, between the last layer and the vocabulary; a matrix between hidden states; and everything else, such
as biases and norms."""

MODEL = "model"
"""The name under which the parameters of the model are clipped together."""

CHUNK_NUMEL = 1 << 25
"""Elements updated together on CUDA.  Large chunks need fewer kernel launches, but some optimisers need a buffer of
this size."""


@dataclass(frozen=True)
class ParameterGroup:
    """Consecutive parameters of one kind with the same weight decay, by name."""

    parameters: Mapping[str, nn.Parameter]
    """the parameters by name"""
    weight_decay: float
    """0 for biases, norms, and learned parts of components"""
    kind: ParameterKind = "vector"
    """what the parameters do"""
    parts: Mapping[str, int] = field(default_factory=dict)
    """how many matrices of equal size are stacked along dimension 0, for parameters with more than one: query and key,
    value and gate, the two matrices of a gated MLP, shifts, scales and gates of a time conditioning"""
    clipped_with: str = MODEL
    """groups with the same name are clipped together, by their joint gradient norm"""


@dataclass(frozen=True)
class OptimizedParameter:
    """A parameter with its state, and the properties of its group."""

    name: str
    """name within the model; `slot/name.parameter` for a learned part of a component"""
    value: nn.Parameter
    """the parameter itself, which `new_state` and `update` must not change"""
    kind: ParameterKind
    """see `ParameterGroup`"""
    parts: int
    """number of matrices of equal size that are stacked along dimension 0; 1 for most parameters"""
    weight_decay: float
    """see `ParameterGroup`"""
    clipped_with: str
    """see `ParameterGroup`"""
    state: dict[str, Tensor] = field(default_factory=dict)
    """the state before this update, by name, which `new_state` and `update` must not change"""

    @property
    def gradient(self) -> Tensor:
        """The gradient before clipping."""
        assert self.value.grad is not None
        return self.value.grad


@dataclass(frozen=True)
class StepResult:
    """What an update reports, still on the device."""

    grad_norm: Tensor
    """float32 scalar: gradient norm of the model before clipping."""
    refused: Tensor
    """bool scalar: the update was refused and nothing was changed."""


class Optimizer:
    """Base class of optimisers.

    An update is refused if a gradient norm is not finite or if `ok` is False: parameters, state and counts of all
    groups keep their values.  This happens on the device, without a synchronisation.

    Results must be a function of parameters, gradients and state alone, so that all ranks take the same step and a run
    resumes bit-exactly.  State that is not returned by `new_state` is not saved.
    """

    provider: Provider | None = None
    """origin of the optimiser, set by the host; None for the built-in ones"""

    def __init__(self, groups: Sequence[ParameterGroup], *, max_norm: float) -> None:
        """`groups` hold all parameters; gradients are clipped to the norm `max_norm`."""
        self.groups, self.max_norm = list(groups), max_norm
        device = next(iter(self.groups[0].parameters.values())).device
        self.count = torch.zeros((), device=device)
        """float32 scalar on the device: number of accepted updates, including the present one"""
        self.refused_total = torch.zeros_like(self.count, dtype=torch.int64)
        """number of refused updates"""
        self.refused_in_a_row = torch.zeros_like(self.refused_total)
        """number of updates that were refused since the last accepted one"""

    def initial_state(self, parameter: OptimizedParameter) -> dict[str, Tensor]:
        """State of a parameter before the first update, by name.  Names, shapes and types never change."""
        return {}

    def new_state(self, parameter: OptimizedParameter, gradient: Tensor) -> Mapping[str, Tensor]:
        """State of a parameter after this update, in new tensors; `gradient` is clipped."""
        return {}

    def update(self, parameter: OptimizedParameter, gradient: Tensor, state: Mapping[str, Tensor], lr: float) -> Tensor:
        """The change that is added to a parameter, with its weight decay.

        `state` is what `new_state` returned, and `parameter.state` the state before.  `lr` is the learning rate of this
        step.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define update")

    @functools.cached_property
    def chunks(self) -> list[list[OptimizedParameter]]:
        """Parameters of one group that are updated together.

        They are created at the first use, when the constructors of subclasses are done.
        """
        chunks: list[list[OptimizedParameter]] = []
        for group in self.groups:
            numel: float = torch.inf
            for name, value in group.parameters.items():
                # On a CPU, one parameter at a time, so that it stays in the cache.
                if not value.is_cuda or numel >= CHUNK_NUMEL:
                    chunks.append([])
                    numel = 0
                parts = group.parts.get(name, 1)
                parameter = OptimizedParameter(name, value, group.kind, parts, group.weight_decay, group.clipped_with)
                parameter.state.update(self.initial_state(parameter))
                chunks[-1].append(parameter)
                numel += value.numel()
        return chunks

    @torch.no_grad()
    def step(self, lr: float, ok: Tensor | None = None) -> StepResult:
        """Update the parameters that have a gradient.  Gradients are overwritten.

        `ok` is a bool scalar on the device, equal on every rank; False refuses the update.
        """
        gradients: dict[str, list[Tensor]] = {}
        for parameter in (p for chunk in self.chunks for p in chunk if p.value.grad is not None):
            gradients.setdefault(parameter.clipped_with, []).append(parameter.gradient)
        norms = {
            name: torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))).float()
            for name, tensors in gradients.items()
        }
        accepted = torch.stack([norm.isfinite() for norm in norms.values()]).all()
        refused = ~accepted if ok is None else ~(accepted & ok)
        self.count += ~refused
        self.refused_total += refused
        self.refused_in_a_row = (self.refused_in_a_row + 1) * refused
        # Gradients are divided by these numbers, at least 1, as in torch.nn.utils.clip_grad_norm_.
        divisors = {name: ((norm + 1e-6) / self.max_norm).clamp(min=1) for name, norm in norms.items()}
        for chunk in self.chunks:
            if live := [p for p in chunk if p.value.grad is not None]:
                self.update_chunk(live, lr, refused, divisors[live[0].clipped_with])
        return StepResult(norms.get(MODEL, next(iter(norms.values()))), refused)

    def update_chunk(self, chunk: Sequence[OptimizedParameter], lr: float, refused: Tensor, divisor: Tensor) -> None:
        """Update parameters of one group; gradients are to be divided by `divisor`, a float32 scalar on the device.

        Built-in optimisers override this to update several parameters with one kernel.
        """
        for parameter in chunk:
            gradient = parameter.gradient / divisor
            state = self.new_state(parameter, gradient)
            self.commit(parameter, self.update(parameter, gradient, state, lr), state, refused)

    def commit(
        self, parameter: OptimizedParameter, change: Tensor, state: Mapping[str, Tensor], refused: Tensor
    ) -> None:
        """Add `change` and store `state`, unless `refused`.  Raises ResultError if names, shapes or types differ."""
        if state.keys() != parameter.state.keys():
            names = [", ".join(names) or "nothing" for names in (state, parameter.state)]
            raise ResultError(f"new_state returned {names[0]} for {parameter.name}, not {names[1]}")
        results = [("update returned", change, parameter.value.data)]
        results += [(f"new_state returned {key} =", state[key], old) for key, old in parameter.state.items()]
        for found, new, old in results:
            if not isinstance(new, Tensor) or (new.shape, new.dtype, new.device) != (old.shape, old.dtype, old.device):
                place = f" on {new.device}" if isinstance(new, Tensor) else ""
                raise ResultError(
                    f"{found} {described(new)}{place} for {parameter.name}, not {described(old)} on {old.device}"
                )
        # A product with 0 would keep NaN, so the old value is selected.
        parameter.value.copy_(torch.where(refused, parameter.value, parameter.value + change))
        for key, old in parameter.state.items():
            old.copy_(torch.where(refused, old, state[key]))

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for parameter in (p for chunk in self.chunks for p in chunk):
            parameter.value.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """State as `name/parameter`, and the counts.  The tensors share memory with the optimiser."""
        return {
            **{f"{key}/{p.name}": tensor for chunk in self.chunks for p in chunk for key, tensor in p.state.items()},
            "count": self.count,
            "refused_total": self.refused_total,
            "refused_in_a_row": self.refused_in_a_row,
        }
