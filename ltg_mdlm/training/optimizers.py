"""LAMB, AdamW and Muon, and the learning-rate curve.

LAMB: You et al. 2020, arXiv 1904.00962, algorithm 2.  AdamW: Loshchilov & Hutter 2019, arXiv 1711.05101.
Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; scaled as by Liu et al. 2025, arXiv 2502.16982.

`torch.optim` has no LAMB, and its optimisers need the host to skip an update.  Here AdamW and LAMB use torch's fused
AdamW kernel, which skips an update if a flag on the device is set.  LAMB is AdamW with a trust ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ltg_mdlm.core.config import OptimizerConfig
from ltg_mdlm.core.optimizer import OptimizedParameter, Optimizer, ParameterGroup, ParameterKind

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of the polynomial a s + b s^3 + c s^5, by which an iteration changes every singular value s.

Those of the authors of Muon: five iterations bring singular values from 0.002 to 1 to between 0.68 and 1.21.
"""

NEWTON_SCHULZ_STEPS = 5

MUON_SCALE = 0.2
"""Root mean square of Muon's update of a matrix at a learning rate of 1, about that of AdamW (arXiv 2502.16982)."""


def build_optimizer(groups: Sequence[ParameterGroup], settings: OptimizerConfig) -> Optimizer:
    """The built-in optimiser `settings.name`."""
    if settings.name == "muon":
        return Muon(
            groups,
            betas=settings.betas,
            eps=settings.eps,
            max_norm=settings.clip,
            momentum=settings.muon_momentum,
            lr_ratios={
                "embedding": (settings.muon_embedding_lr or settings.lr) / settings.lr,
                "head": (settings.muon_head_lr or settings.lr) / settings.lr,
                "vector": (settings.muon_vector_lr or settings.lr) / settings.lr,
            },
        )
    kind = {"lamb": Lamb, "adamw": AdamW}[settings.name]
    return kind(groups, betas=settings.betas, eps=settings.eps, max_norm=settings.clip)


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


class AdamW(Optimizer):
    """AdamW with clipping of the gradient norm."""

    def __init__(
        self, groups: Sequence[ParameterGroup], *, betas: tuple[float, float], eps: float, max_norm: float
    ) -> None:
        super().__init__(groups, max_norm=max_norm)
        self._betas, self._eps = betas, eps

    def initial_state(self, parameter: OptimizedParameter) -> dict[str, Tensor]:
        """Averages of the gradient and of its square."""
        value = parameter.value.detach()
        return {"first_moment": torch.zeros_like(value), "second_moment": torch.zeros_like(value)}

    def update_chunk(self, chunk: Sequence[OptimizedParameter], lr: float, refused: Tensor, divisor: Tensor) -> None:
        """One fused kernel for all parameters of the chunk."""
        self._fused_adamw([p.value for p in chunk], chunk, lr, chunk[0].weight_decay, refused, divisor)

    def _fused_adamw(
        self,
        targets: Sequence[Tensor],
        chunk: Sequence[OptimizedParameter],
        lr: float,
        weight_decay: float,
        refused: Tensor,
        divisor: Tensor,
    ) -> None:
        """Update the moments of `chunk`, and add AdamW's step to `targets`, in one pass over memory."""
        torch._fused_adamw_(
            list(targets),
            [p.gradient for p in chunk],
            [p.state["first_moment"] for p in chunk],
            [p.state["second_moment"] for p in chunk],
            [],
            [self.count] * len(chunk),
            lr=lr,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=weight_decay,
            eps=self._eps,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
            found_inf=refused.float(),
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
        sizes = [sum(p.value.numel() for p in chunk) for chunk in self.chunks if chunk[0].weight_decay > 0]
        self._buffer = self.chunks[0][0].value.detach().new_empty(max(sizes, default=0))

    def update_chunk(self, chunk: Sequence[OptimizedParameter], lr: float, refused: Tensor, divisor: Tensor) -> None:
        """AdamW's step from zero, with the trust ratio of each parameter."""
        weight_decay = chunk[0].weight_decay
        if weight_decay == 0:
            super().update_chunk(chunk, lr, refused, divisor)
            return
        parameters: list[Tensor] = [p.value for p in chunk]
        sizes = [p.numel() for p in parameters]
        parts = self._buffer[: sum(sizes)].zero_().split_with_sizes(sizes)
        updates = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
        # An AdamW step with lr = 1 from zero is minus the Adam direction.
        self._fused_adamw(updates, chunk, 1.0, 0.0, refused, divisor)
        torch._foreach_add_(updates, parameters, alpha=-weight_decay)
        parameter_norms = torch.stack(torch._foreach_norm(parameters))
        update_norms = torch.stack(torch._foreach_norm(updates))
        has_ratio = (parameter_norms > 0) & (update_norms > 0)
        trust_ratios = torch.where(has_ratio, parameter_norms / update_norms, 1.0)
        rates = trust_ratios * lr * (1 - refused.float())
        # Not by foreach: it has no fused kernel for numbers on the device, and would launch as many kernels.
        for parameter, update, rate in zip(parameters, updates, rates.unbind(), strict=True):
            parameter.addcmul_(update, rate)


class Muon(AdamW):
    """Muon for matrices between hidden states, AdamW for embeddings, head and vectors.

    With momentum mu, a matrix W of m x n with gradient G is updated by

        M <- mu M + (1 - mu) G,    W <- W - lr (0.2 sqrt(max(m, n)) O(mu M + (1 - mu) G) + weight decay W),

    where O(U) is near the matrix with the singular vectors of U and all singular values 1.  Matrices that are stacked
    in one parameter are updated separately.  Every rank computes all updates, from equal gradients.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        *,
        betas: tuple[float, float],
        eps: float,
        max_norm: float,
        momentum: float,
        lr_ratios: Mapping[ParameterKind, float],
    ) -> None:
        """`lr_ratios` are the learning rates of embeddings, head and vectors, divided by that of the matrices."""
        super().__init__(groups, betas=betas, eps=eps, max_norm=max_norm)
        self._momentum, self._lr_ratios = momentum, dict(lr_ratios)

    def initial_state(self, parameter: OptimizedParameter) -> dict[str, Tensor]:
        """The momentum of a matrix; AdamW's moments of anything else."""
        if parameter.kind == "matrix":
            return {"momentum": torch.zeros_like(parameter.value.detach())}
        return super().initial_state(parameter)

    def update_chunk(self, chunk: Sequence[OptimizedParameter], lr: float, refused: Tensor, divisor: Tensor) -> None:
        """Matrices of one size are orthogonalised together."""
        kind = chunk[0].kind
        if kind != "matrix":
            super().update_chunk(chunk, lr * self._lr_ratios[kind], refused, divisor)
            return
        gradients = [p.gradient / divisor for p in chunk]
        momenta = [g.lerp(p.state["momentum"], self._momentum) for p, g in zip(chunk, gradients, strict=True)]
        # Nesterov momentum: the average after another step with the same gradient.
        stacks = [
            g.lerp(momentum, self._momentum).reshape(p.parts, -1, g.shape[1])
            for p, g, momentum in zip(chunk, gradients, momenta, strict=True)
        ]
        for p, momentum, direction in zip(chunk, momenta, orthogonalised(stacks), strict=True):
            scale = MUON_SCALE * math.sqrt(max(direction.shape[-2:]))
            change = torch.add(p.value * p.weight_decay, direction.flatten(0, 1), alpha=scale) * -lr
            self.commit(p, change, {"momentum": momentum}, refused)


def orthogonalised(stacks: Sequence[Tensor]) -> list[Tensor]:
    """Stacks of matrices [.., m, n] with their singular values replaced by numbers near 1; zero matrices stay zero.

    Newton-Schulz iteration in bf16: X <- a X + (b A + c A A) X with A = X X^T, from X = U / |U|.
    """
    a, b, c = NEWTON_SCHULZ
    results: list[Tensor] = list(stacks)
    by_shape: dict[torch.Size, list[int]] = {}
    for i, stack in enumerate(stacks):
        by_shape.setdefault(stack.shape[-2:], []).append(i)
    for shape, indices in by_shape.items():
        x = torch.cat([stacks[i] for i in indices])
        norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
        x = (x / norm.clamp(min=torch.finfo(x.dtype).tiny)).bfloat16()
        if is_tall := shape[0] > shape[1]:  # so that A is the smaller of the two possible products
            x = x.mT.contiguous()
        for _ in range(NEWTON_SCHULZ_STEPS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        x = (x.mT if is_tall else x).to(stacks[indices[0]].dtype)
        for i, part in zip(indices, x.split_with_sizes([len(stacks[i]) for i in indices]), strict=True):
            results[i] = part
    return results
