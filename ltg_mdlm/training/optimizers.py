"""LAMB and AdamW, which refuse a non-finite update without asking the host, and the published learning-rate curve.

LAMB: You et al. 2020, arXiv 1904.00962, algorithm 2.  AdamW: Loshchilov & Hutter 2019, arXiv 1711.05101.  Both are one
algorithm here: without its trust ratio, LAMB is AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltg_mdlm.storage.named_tensors import copy_named

_CHUNK_NUMEL = 1 << 25
"""Elements updated together on CUDA: many, since launches cost; bounded, since LAMB needs as much scratch memory."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a weight decay."""

    parameters: Mapping[str, nn.Parameter]
    weight_decay: float


@dataclass(frozen=True)
class StepResult:
    """What a step came to, still on the device."""

    grad_norm: Tensor
    """float32 scalar: global gradient norm before clipping"""
    refused: Tensor
    """bool scalar: the update was not finite and nothing was changed"""


@dataclass(frozen=True)
class _Slot:
    """A parameter and its moments."""

    parameter: nn.Parameter
    first: Tensor
    second: Tensor

    @property
    def gradient(self) -> Tensor:
        """The parameter's gradient, which the caller knows to be there."""
        assert self.parameter.grad is not None
        return self.parameter.grad


@dataclass(frozen=True)
class _Chunk:
    """Parameters that are updated together."""

    weight_decay: float
    slots: list[_Slot]


@dataclass(frozen=True)
class _Verdict:
    """What becomes of a step's gradients; float32 scalars on the device, as the fused kernel wants them."""

    refused: Tensor
    """1 or 0"""
    divisor: Tensor
    """at least 1; dividing by it clips the gradients"""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[ParameterGroup]:
    """Biases and the parameters of normalisation layers do not decay, everything else does (the published rule)."""
    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    exempt = {
        id(p) for module in model.modules() if isinstance(module, norms) for p in module.parameters(recurse=False)
    }
    decaying: dict[str, nn.Parameter] = {}
    constant: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            stays = id(parameter) in exempt or name.rpartition(".")[2] == "bias"
            (constant if stays else decaying)[name] = parameter
    return [ParameterGroup(decaying, weight_decay), ParameterGroup(constant, 0.0)]


def build_optimizer(
    name: str,
    model: nn.Module,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    max_norm: float,
) -> AdamW:
    """The optimiser of `optimizer.name`, lamb or adamw, for the trainable parameters of `model`."""
    kind = {"lamb": Lamb, "adamw": AdamW}[name]
    return kind(parameter_groups(model, weight_decay), betas=betas, eps=eps, max_norm=max_norm)


def learning_rate_factor(step: int, max_steps: int, *, warmup: float, cooldown: float, final: float) -> float:
    """The published curve at `step` in 0 .. max_steps - 1: linear warm-up, cosine to `final`, linear cool-down to zero.

    `warmup` and `cooldown` are shares of training.  The first step learns, with (step + 1) / warm-up steps, where the
    published code starts at zero.
    """
    warmup_steps, cooldown_steps = int(warmup * max_steps), int(cooldown * max_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= max_steps - cooldown_steps:
        return final * (max_steps - step) / cooldown_steps
    angle = math.pi * (step - warmup_steps) / (max_steps - warmup_steps)
    return final + (1 - final) * (1 + math.cos(angle)) / 2


class AdamW:
    """AdamW with clipping of the global gradient norm.

    A step whose gradient norm is not finite, or that `ok` forbids, is refused on the device: parameters, moments and
    the step count of the bias correction keep their values, and the host need not know.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], *, betas: tuple[float, float], eps: float, max_norm: float
    ) -> None:
        self._betas, self._eps, self._max_norm = betas, eps, max_norm
        self._slots: dict[str, _Slot] = {}
        self._chunks: list[_Chunk] = []
        for group in groups:
            slots = {name: _Slot(p, _zeros(p), _zeros(p)) for name, p in group.parameters.items()}
            self._slots |= slots
            self._chunks += [_Chunk(group.weight_decay, part) for part in _parts(list(slots.values()))]
        self._count = torch.zeros((), device=self._chunks[0].slots[0].parameter.device)
        self.refused_total = torch.zeros_like(self._count, dtype=torch.int64)
        self.refused_in_a_row = torch.zeros_like(self.refused_total)

    @torch.no_grad()
    def step(self, lr: float, ok: Tensor | None = None) -> StepResult:
        """One update from the gradients, which are overwritten.  Parameters without a gradient are left alone.

        `ok` is a bool scalar on the device, equal on every rank; False refuses the step, for example for its loss.
        """
        gradients = [s.gradient for s in self._slots.values() if s.parameter.grad is not None]
        grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).float()
        refused = ~grad_norm.isfinite() if ok is None else ~(grad_norm.isfinite() & ok)
        self._count += ~refused
        self.refused_total += refused
        self.refused_in_a_row = (self.refused_in_a_row + 1) * refused
        verdict = _Verdict(refused.float(), ((grad_norm + 1e-6) / self._max_norm).clamp(min=1))
        for chunk in self._chunks:
            if live := [s for s in chunk.slots if s.parameter.grad is not None]:
                self._update(_Chunk(chunk.weight_decay, live), lr, verdict)
        return StepResult(grad_norm, refused)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for slot in self._slots.values():
            slot.parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Moments by parameter name, and the counts; what is returned shares memory with the optimiser."""
        return {
            **{f"first_moment/{name}": s.first for name, s in self._slots.items()},
            **{f"second_moment/{name}": s.second for name, s in self._slots.items()},
            "count": self._count,
            "refused_total": self.refused_total,
            "refused_in_a_row": self.refused_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned.  Raises UserError if names or shapes differ."""
        copy_named(self.state_dict(), state, "the optimiser's state")

    def _update(self, chunk: _Chunk, lr: float, verdict: _Verdict) -> None:
        self._adam([s.parameter for s in chunk.slots], chunk.slots, lr, chunk.weight_decay, verdict)

    def _adam(
        self, moved: Sequence[Tensor], slots: Sequence[_Slot], lr: float, weight_decay: float, verdict: _Verdict
    ) -> None:
        """Update the moments of `slots`, and move the tensors of `moved` by AdamW's step; torch's one-pass kernel."""
        torch._fused_adamw_(
            list(moved),
            [s.gradient for s in slots],
            [s.first for s in slots],
            [s.second for s in slots],
            [],
            [self._count] * len(slots),
            lr=lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=weight_decay,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
            grad_scale=verdict.divisor,
            found_inf=verdict.refused,
        )


class Lamb(AdamW):
    """LAMB: parameters with weight decay move by a share of their own norm.

    As published: no trust ratio without weight decay, a ratio of 1 while either norm is 0, no bounds on the ratio.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], *, betas: tuple[float, float], eps: float, max_norm: float
    ) -> None:
        super().__init__(groups, betas=betas, eps=eps, max_norm=max_norm)
        sizes = [sum(s.parameter.numel() for s in chunk.slots) for chunk in self._chunks if chunk.weight_decay > 0]
        self._scratch = torch.zeros_like(self._chunks[0].slots[0].first).new_empty(max(sizes, default=0))

    def _update(self, chunk: _Chunk, lr: float, verdict: _Verdict) -> None:
        if chunk.weight_decay == 0:
            super()._update(chunk, lr, verdict)
        else:
            self._update_by_norm(chunk, lr, verdict)

    def _update_by_norm(self, chunk: _Chunk, lr: float, verdict: _Verdict) -> None:
        parameters: list[Tensor] = [s.parameter for s in chunk.slots]
        moves = self._scratch_like(parameters)
        # A unit step from zero is the direction itself.
        self._adam(moves, chunk.slots, 1.0, 0.0, verdict)
        torch._foreach_add_(moves, parameters, alpha=-chunk.weight_decay)
        rates = _trust_ratios(parameters, moves) * lr * (1 - verdict.refused)
        for parameter, move, rate in zip(parameters, moves, rates.unbind(), strict=True):
            parameter.addcmul_(move, rate)

    def _scratch_like(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Zeros of the same shapes, in memory that every chunk uses in turn."""
        sizes = [t.numel() for t in tensors]
        parts = self._scratch[: sum(sizes)].zero_().split_with_sizes(sizes)
        return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


def _trust_ratios(parameters: list[Tensor], moves: list[Tensor]) -> Tensor:
    """||p|| / ||move|| of every parameter, 1 where one of them is 0."""
    parameter_norms = torch.stack(torch._foreach_norm(parameters))
    move_norms = torch.stack(torch._foreach_norm(moves))
    return torch.where((parameter_norms > 0) & (move_norms > 0), parameter_norms / move_norms, 1.0)


def _zeros(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter.detach())


def _parts(slots: Sequence[_Slot]) -> Iterator[list[_Slot]]:
    """Many parameters at a time on CUDA, one on the CPU, where it stays in the cache."""
    part: list[_Slot] = []
    for slot in slots:
        part.append(slot)
        if not slot.parameter.is_cuda or sum(s.parameter.numel() for s in part) >= _CHUNK_NUMEL:
            yield part
            part = []
    if part:
        yield part
