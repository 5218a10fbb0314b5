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

from ltg_mdlm.named_tensors import copy_named, under

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK_NUMEL = 1 << 25
"""Elements that one list of fused CUDA operations takes: bounds the temporary memory to three times their size."""


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
    weight_decay: float


@dataclass(frozen=True)
class _Factors:
    """Scalars of one step on the device.  In a refused step they are such that nothing changes."""

    keep: Tensor
    """1, or 0 in a refused step; of an integer type as wide as the parameters"""
    first_decay: Tensor
    second_decay: Tensor
    gradient: Tensor
    """clipping coefficient times (1 - beta1)"""
    first_correction: Tensor
    """1 / (1 - beta1^n)"""
    second_correction: Tensor
    """1 / sqrt(1 - beta2^n)"""
    lr: Tensor


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
        self,
        groups: Sequence[ParameterGroup],
        *,
        betas: tuple[float, float],
        eps: float,
        max_norm: float,
    ) -> None:
        self._beta1, self._beta2 = betas
        self._eps, self._max_norm = eps, max_norm
        self._slots = {
            name: _Slot(p, torch.zeros_like(p.detach()), torch.zeros_like(p.detach()), group.weight_decay)
            for group in groups
            for name, p in group.parameters.items()
        }
        first = next(iter(self._slots.values())).parameter
        assert all(
            s.parameter.dtype == first.dtype and s.parameter.device == first.device for s in self._slots.values()
        )
        self._bits = _BITS[first.element_size()]
        self._chunks = list(_chunks(list(self._slots.values())))
        self._count = torch.zeros((), dtype=torch.int64, device=first.device)
        self.refused_total = torch.zeros_like(self._count)
        self.refused_in_a_row = torch.zeros_like(self._count)

    @torch.no_grad()
    def step(self, lr: float, ok: Tensor | None = None) -> StepResult:
        """One update from the gradients, which are overwritten.  Parameters without a gradient are left alone.

        `ok` is a bool scalar on the device, equal on every rank; False refuses the step, for example for its loss.
        """
        gradients = [_gradient(s) for s in self._slots.values() if s.parameter.grad is not None]
        grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        accepted = grad_norm.isfinite() if ok is None else grad_norm.isfinite() & ok
        self._count += accepted
        self.refused_total += ~accepted
        self.refused_in_a_row = (self.refused_in_a_row + 1) * ~accepted
        factors = self._factors(accepted, grad_norm, lr)
        for chunk in self._chunks:
            if live := [s for s in chunk if s.parameter.grad is not None]:
                self._update(live, factors)
        return StepResult(grad_norm, ~accepted)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for slot in self._slots.values():
            slot.parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Moments by parameter name, and the counts; what is returned shares memory with the optimiser."""
        return {
            **under("first_moment", {name: s.first for name, s in self._slots.items()}),
            **under("second_moment", {name: s.second for name, s in self._slots.items()}),
            "count": self._count,
            "refused_total": self.refused_total,
            "refused_in_a_row": self.refused_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned.  Raises UserError if names or shapes differ."""
        copy_named(self.state_dict(), state, "the optimiser's state")

    def _factors(self, accepted: Tensor, grad_norm: Tensor, lr: float) -> _Factors:
        clip = (self._max_norm / (grad_norm + 1e-6)).clamp(max=1)
        # The count is 0 only while every step so far was refused, and then the correction is applied to zeros.
        count = self._count.clamp(min=1).double()
        one = torch.ones_like(grad_norm)
        return _Factors(
            keep=accepted.to(self._bits),
            first_decay=one.masked_fill(accepted, self._beta1),
            second_decay=one.masked_fill(accepted, self._beta2),
            gradient=(clip * (1 - self._beta1)).masked_fill(~accepted, 0),
            first_correction=(1 / (1 - self._beta1**count)).to(grad_norm.dtype),
            second_correction=(1 - self._beta2**count).rsqrt().to(grad_norm.dtype),
            lr=accepted * lr,
        )

    def _update(self, slots: Sequence[_Slot], factors: _Factors) -> None:
        gradients = [_gradient(s) for s in slots]
        # NaN times zero is NaN, but its bits times zero are zero.
        torch._foreach_mul_([g.view(self._bits) for g in gradients], factors.keep)
        torch._foreach_mul_(gradients, factors.gradient)
        first, second = [s.first for s in slots], [s.second for s in slots]
        torch._foreach_mul_(first, factors.first_decay)
        torch._foreach_add_(first, gradients)
        torch._foreach_mul_(second, factors.second_decay)
        # The gradients carry a factor of 1 - beta1.
        torch._foreach_addcmul_(second, gradients, gradients, (1 - self._beta2) / (1 - self._beta1) ** 2)
        updates = self._directions(slots, factors)
        for slot, update, ratio in zip(slots, updates, self._trust_ratios(slots, updates), strict=True):
            slot.parameter.addcmul_(update, factors.lr * ratio, value=-1)

    def _directions(self, slots: Sequence[_Slot], factors: _Factors) -> tuple[Tensor, ...]:
        """m / (sqrt(v) + eps) + decay * p, with bias-corrected moments."""
        denominators = torch._foreach_sqrt([s.second for s in slots])
        torch._foreach_mul_(denominators, factors.second_correction)
        torch._foreach_add_(denominators, self._eps)
        directions = torch._foreach_div([s.first for s in slots], denominators)
        torch._foreach_mul_(directions, factors.first_correction)
        for slot, direction in zip(slots, directions, strict=True):
            if slot.weight_decay > 0:
                direction.add_(slot.parameter, alpha=slot.weight_decay)
        return directions

    def _trust_ratios(self, slots: Sequence[_Slot], updates: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """Scalars that the learning rate of every parameter is multiplied by."""
        return [torch.ones((), device=u.device, dtype=u.dtype) for u in updates]


class Lamb(AdamW):
    """LAMB: parameters with weight decay move by a share of their own norm.

    As published: no trust ratio without weight decay, a ratio of 1 while either norm is 0, no bounds on the ratio.
    """

    def _trust_ratios(self, slots: Sequence[_Slot], updates: tuple[Tensor, ...]) -> Sequence[Tensor]:
        parameter_norms = torch.stack(torch._foreach_norm([s.parameter for s in slots]))
        update_norms = torch.stack(torch._foreach_norm(updates))
        ratios = torch.where((parameter_norms > 0) & (update_norms > 0), parameter_norms / update_norms, 1.0)
        return [r if s.weight_decay > 0 else torch.ones_like(r) for s, r in zip(slots, ratios.unbind(), strict=True)]


def _gradient(slot: _Slot) -> Tensor:
    gradient = slot.parameter.grad
    assert gradient is not None
    return gradient


def _chunks(slots: Sequence[_Slot]) -> Iterator[list[_Slot]]:
    """Slots that are updated together: many on CUDA, where launches count; one on the CPU, where caches do."""
    chunk: list[_Slot] = []
    for slot in slots:
        chunk.append(slot)
        if not slot.parameter.is_cuda or sum(s.parameter.numel() for s in chunk) >= _CHUNK_NUMEL:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
