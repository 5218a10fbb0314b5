"""LAMB and AdamW that refuse non-finite updates on the device, and the learning-rate curve.

LAMB: You et al. 2020, arXiv 1904.00962, algorithm 2.  AdamW: Loshchilov & Hutter 2019, arXiv 1711.05101.

`torch.optim` has no LAMB, and needs the host to skip an update.  Here both optimisers use torch's fused AdamW kernel,
which skips an update if a flag on the device is set.  LAMB is AdamW with a trust ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ltg_mdlm.storage.named_tensors import copy_named

CHUNK_NUMEL = 1 << 25
"""Elements updated together on CUDA.  Large chunks need fewer kernel launches, but LAMB needs a buffer of this size."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with the same weight decay."""

    parameters: Mapping[str, nn.Parameter]
    weight_decay: float


@dataclass(frozen=True)
class StepResult:
    """What an update reports, still on the device."""

    grad_norm: Tensor
    """float32 scalar: global gradient norm before clipping."""
    refused: Tensor
    """bool scalar: the update was refused and nothing was changed."""


def build_optimizer(
    name: str,
    model: nn.Module,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    max_norm: float,
) -> AdamW:
    """The optimiser `name`, "lamb" or "adamw", for the trainable parameters of `model`."""
    kind = {"lamb": Lamb, "adamw": AdamW}[name]
    return kind(parameter_groups(model, weight_decay), betas=betas, eps=eps, max_norm=max_norm)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[ParameterGroup]:
    """Trainable parameters, with weight decay and without.

    Biases and the parameters of normalisation layers have none, as in the published code.
    """
    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    of_norms = {
        id(p) for module in model.modules() if isinstance(module, norms) for p in module.parameters(recurse=False)
    }
    decayed: dict[str, nn.Parameter] = {}
    not_decayed: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = id(parameter) in of_norms or name.rpartition(".")[2] == "bias"
            (not_decayed if is_exempt else decayed)[name] = parameter
    return [ParameterGroup(decayed, weight_decay), ParameterGroup(not_decayed, 0.0)]


def learning_rate_factor(step: int, max_steps: int, *, warmup: float, cooldown: float, final: float) -> float:
    """The published curve at `step` in 0 .. max_steps - 1: linear warm-up, cosine to `final`, linear cool-down to zero.

    `warmup` and `cooldown` are shares of training.  The warm-up is (step + 1) / warm-up steps; the published code
    starts at 0, so its first step has no effect.
    """
    warmup_steps, cooldown_steps = int(warmup * max_steps), int(cooldown * max_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= max_steps - cooldown_steps:
        return final * (max_steps - step) / cooldown_steps
    angle = math.pi * (step - warmup_steps) / (max_steps - warmup_steps)
    return final + (1 - final) * (1 + math.cos(angle)) / 2


@dataclass(frozen=True)
class _Entry:
    """A parameter and its moments."""

    parameter: nn.Parameter
    first: Tensor
    second: Tensor

    @property
    def gradient(self) -> Tensor:
        assert self.parameter.grad is not None
        return self.parameter.grad


@dataclass(frozen=True)
class _Chunk:
    """Parameters that are updated together."""

    weight_decay: float
    entries: list[_Entry]


class AdamW:
    """AdamW with clipping of the global gradient norm.

    An update is refused if the gradient norm is not finite or if `ok` is False: parameters, moments and the step count
    of the bias correction keep their values.  This happens on the device, without a synchronisation.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], *, betas: tuple[float, float], eps: float, max_norm: float
    ) -> None:
        self._betas, self._eps, self._max_norm = betas, eps, max_norm
        self._entries: dict[str, _Entry] = {}
        self._chunks: list[_Chunk] = []
        for group in groups:
            chunk = _Chunk(group.weight_decay, [])
            for name, p in group.parameters.items():
                self._entries[name] = _Entry(p, torch.zeros_like(p.detach()), torch.zeros_like(p.detach()))
                chunk.entries.append(self._entries[name])
                # On a CPU, one parameter at a time, so that it stays in the cache.
                if not p.is_cuda or sum(e.parameter.numel() for e in chunk.entries) >= CHUNK_NUMEL:
                    self._chunks.append(chunk)
                    chunk = _Chunk(group.weight_decay, [])
            if chunk.entries:
                self._chunks.append(chunk)
        self._count = torch.zeros((), device=self._chunks[0].entries[0].parameter.device)
        self.refused_total = torch.zeros_like(self._count, dtype=torch.int64)
        self.refused_in_a_row = torch.zeros_like(self.refused_total)

    @torch.no_grad()
    def step(self, lr: float, ok: Tensor | None = None) -> StepResult:
        """Update the parameters that have a gradient.  Gradients are overwritten.

        `ok` is a bool scalar on the device, equal on every rank; False refuses the update.
        """
        gradients = [e.gradient for e in self._entries.values() if e.parameter.grad is not None]
        grad_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).float()
        refused = ~grad_norm.isfinite() if ok is None else ~(grad_norm.isfinite() & ok)
        self._count += ~refused
        self.refused_total += refused
        self.refused_in_a_row = (self.refused_in_a_row + 1) * refused
        # Gradients are divided by this number, at least 1, as in torch.nn.utils.clip_grad_norm_.
        divisor = ((grad_norm + 1e-6) / self._max_norm).clamp(min=1)
        for chunk in self._chunks:
            if live := [e for e in chunk.entries if e.parameter.grad is not None]:
                self._update(replace(chunk, entries=live), lr, refused.float(), divisor)
        return StepResult(grad_norm, refused)

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for entry in self._entries.values():
            entry.parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Moments by parameter name, and the counts.  The tensors share memory with the optimiser."""
        return {
            **{f"first_moment/{name}": e.first for name, e in self._entries.items()},
            **{f"second_moment/{name}": e.second for name, e in self._entries.items()},
            "count": self._count,
            "refused_total": self.refused_total,
            "refused_in_a_row": self.refused_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned.  Raises UserError if names or shapes differ."""
        copy_named(self.state_dict(), state, "the optimiser's state")

    def _update(self, chunk: _Chunk, lr: float, refused: Tensor, divisor: Tensor) -> None:
        """Update one chunk.  `refused` (1 or 0) and `divisor` are float32 scalars on the device."""
        self._fused_adamw([e.parameter for e in chunk.entries], chunk.entries, lr, chunk.weight_decay, refused, divisor)

    def _fused_adamw(
        self,
        targets: Sequence[Tensor],
        entries: Sequence[_Entry],
        lr: float,
        weight_decay: float,
        refused: Tensor,
        divisor: Tensor,
    ) -> None:
        """Update the moments of `entries`, and add AdamW's step to `targets`, in one pass over memory."""
        torch._fused_adamw_(
            list(targets),
            [e.gradient for e in entries],
            [e.first for e in entries],
            [e.second for e in entries],
            [],
            [self._count] * len(entries),
            lr=lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=weight_decay,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
            found_inf=refused,
        )


class Lamb(AdamW):
    """LAMB: a parameter with weight decay moves by lr times its own norm.

    The trust ratio is 1 while the norm of the parameter or of its update is 0, and has no bounds.  Parameters without
    weight decay have no trust ratio, as in the published code: they get plain Adam updates.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], *, betas: tuple[float, float], eps: float, max_norm: float
    ) -> None:
        super().__init__(groups, betas=betas, eps=eps, max_norm=max_norm)
        # One buffer for the updates of a chunk, which all chunks use in turn.
        sizes = [sum(e.parameter.numel() for e in chunk.entries) for chunk in self._chunks if chunk.weight_decay > 0]
        self._buffer = torch.zeros_like(self._chunks[0].entries[0].first).new_empty(max(sizes, default=0))

    def _update(self, chunk: _Chunk, lr: float, refused: Tensor, divisor: Tensor) -> None:
        if chunk.weight_decay == 0:
            super()._update(chunk, lr, refused, divisor)
            return
        parameters: list[Tensor] = [e.parameter for e in chunk.entries]
        sizes = [p.numel() for p in parameters]
        parts = self._buffer[: sum(sizes)].zero_().split_with_sizes(sizes)
        updates = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
        # An AdamW step with lr = 1 from zero is minus the Adam direction.
        self._fused_adamw(updates, chunk.entries, 1.0, 0.0, refused, divisor)
        torch._foreach_add_(updates, parameters, alpha=-chunk.weight_decay)
        parameter_norms = torch.stack(torch._foreach_norm(parameters))
        update_norms = torch.stack(torch._foreach_norm(updates))
        has_ratio = (parameter_norms > 0) & (update_norms > 0)
        trust_ratios = torch.where(has_ratio, parameter_norms / update_norms, 1.0)
        rates = trust_ratios * lr * (1 - refused)
        for parameter, update, rate in zip(parameters, updates, rates.unbind(), strict=True):
            parameter.addcmul_(update, rate)
