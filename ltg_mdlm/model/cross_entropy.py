"""Losses over a large vocabulary, in chunks of positions, with the gradients made in the forward pass.

The logits [N, V] are the largest tensor of a training step.  Here they exist a chunk at a time: its gradient is taken
while its logits are there, and the backward pass only scales what was stored (the idea of arXiv 2410.10989).

Shapes are suffixes: N supervised positions, n positions of a chunk, V vocabulary, D width, K loss groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512
"""Positions per chunk: 32 MiB of float32 logits at V = 16384."""


class CrossEntropy(NamedTuple):
    """What `weighted_cross_entropy` returns; only `loss` carries a gradient."""

    loss: Tensor
    """scalar"""
    nll_N: Tensor
    """negative log-likelihood of the label, nats"""
    log_normalizer_N: Tensor
    """log of the sum of the exponentiated logits"""
    correct_N: Tensor
    """bool: the label has the largest logit"""


class ChunkedLoss(NamedTuple):
    """What `chunked_loss` returns; only `loss` carries a gradient."""

    loss: Tensor
    """scalar: the sum of coefficient x term"""
    terms_K: Tensor


def weighted_cross_entropy(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    label_N: Tensor,
    nll_weight_N: Tensor,
    z_weight_N: Tensor | None = None,
    chunk: int = CHUNK,
) -> CrossEntropy:
    """Sum over positions of nll_weight * nll + z_weight * log_normalizer^2; logits = features @ weight.T + bias.

    The matrix products are made in autocast's dtype, all else in float32 (float64 for float64 weights).  The position
    weights get no gradient.  N may be 0: loss and gradients are then 0.
    """
    vocabulary = _Vocabulary(features_ND, weight_VD, bias_V)
    nll_N = torch.empty(len(label_N), dtype=vocabulary.loss_dtype, device=label_N.device)
    log_normalizer_N = torch.empty_like(nll_N)
    correct_N = torch.empty_like(label_N, dtype=torch.bool)
    nll_weight_N = nll_weight_N.detach().to(nll_N.dtype)
    z_weight_N = torch.zeros_like(nll_N) if z_weight_N is None else z_weight_N.detach().to(nll_N.dtype)

    def gradient(logits_nV: Tensor, part: slice) -> Tensor | None:
        label_n1 = label_N[part, None]
        label_logit_n = logits_nV.gather(-1, label_n1)[:, 0]
        log_share_nV = logits_nV.log_softmax(dim=-1)
        nll_n = nll_N[part] = -log_share_nV.gather(-1, label_n1)[:, 0]
        log_normalizer_n = log_normalizer_N[part] = nll_n + label_logit_n
        correct_N[part] = log_share_nV.max(dim=-1).indices == label_N[part]  # on a CPU several times faster than argmax
        if not vocabulary.wants_gradient:
            return None
        weight_n = nll_weight_N[part]
        by_logits_nV = log_share_nV.exp_().mul_((weight_n + 2 * z_weight_N[part] * log_normalizer_n)[:, None])
        return by_logits_nV.scatter_add_(-1, label_n1, -weight_n[:, None])

    vocabulary.run(gradient, chunk)
    loss = (nll_weight_N * nll_N).sum() + (z_weight_N * log_normalizer_N.square()).sum()
    return CrossEntropy(vocabulary.attach(loss), nll_N, log_normalizer_N, correct_N)


def chunked_loss(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    loss_terms: Callable[[Tensor, slice], Tensor],
    coefficient_K: Tensor,
    chunk: int = CHUNK,
) -> ChunkedLoss:
    """Sum of coefficient_K * terms_K, for terms that need whole logits.

    `loss_terms(logits_nV, part)` returns [K], sums over the positions `part` (a slice of 0 .. N), differentiable in the
    logits; what it wants to keep of a chunk it must detach.  It is not called if N is 0.
    """
    vocabulary = _Vocabulary(features_ND, weight_VD, bias_V)
    terms_K = torch.zeros_like(coefficient_K, dtype=vocabulary.loss_dtype)
    coefficient_K = coefficient_K.detach().to(terms_K.dtype)

    def gradient(logits_nV: Tensor, part: slice) -> Tensor | None:
        with torch.set_grad_enabled(vocabulary.wants_gradient):
            chunk_K = loss_terms(logits_nV.requires_grad_(vocabulary.wants_gradient), part)
            terms_K.add_(chunk_K.detach())
            if not vocabulary.wants_gradient:
                return None
            return torch.autograd.grad((chunk_K * coefficient_K).sum(), logits_nV)[0]

    vocabulary.run(gradient, chunk)
    return ChunkedLoss(vocabulary.attach((coefficient_K * terms_K).sum()), terms_K)


class _Vocabulary:
    """The vocabulary matrix applied chunk by chunk, and the gradients of a loss of its logits."""

    def __init__(self, features_ND: Tensor, weight_VD: Tensor, bias_V: Tensor) -> None:
        device = features_ND.device.type
        autocast = torch.is_autocast_enabled(device)
        self.inputs = (features_ND, weight_VD, bias_V)
        self.matmul_dtype = torch.get_autocast_dtype(device) if autocast else weight_VD.dtype
        self.loss_dtype = torch.promote_types(weight_VD.dtype, torch.float32)
        self.wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in self.inputs)
        self.gradients: tuple[Tensor, ...] = ()

    def run(self, gradient: Callable[[Tensor, slice], Tensor | None], chunk: int) -> None:
        """Give the logits [n, V] of every chunk to `gradient`, which returns the loss's gradient by them if wanted."""
        features_ND, weight_VD, bias_V = (x.detach() for x in self.inputs)
        device = features_ND.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            if self.wants_gradient:
                self.gradients = tuple(torch.zeros_like(x) for x in self.inputs)
            features_ND, weight_VD = features_ND.to(self.matmul_dtype), weight_VD.to(self.matmul_dtype)
            for start in range(0, len(features_ND), chunk):
                part = slice(start, min(start + chunk, len(features_ND)))
                logits_nV = (features_ND[part] @ weight_VD.T).to(self.loss_dtype).add_(bias_V)
                by_logits_nV = gradient(logits_nV, part)
                if by_logits_nV is not None:
                    self.add_gradients(features_ND[part], weight_VD, by_logits_nV, part)

    def add_gradients(self, features_nD: Tensor, weight_VD: Tensor, by_logits_nV: Tensor, part: slice) -> None:
        by_features_ND, by_weight_VD, by_bias_V = self.gradients
        by_bias_V.add_(by_logits_nV.sum(0))
        by_logits_nV = by_logits_nV.to(self.matmul_dtype)
        by_features_ND[part] = by_logits_nV @ weight_VD
        by_weight_VD.add_(by_logits_nV.T @ features_nD)

    def attach(self, loss: Tensor) -> Tensor:
        """The loss, with the gradients hung on it."""
        if not self.wants_gradient:
            return loss
        return cast(Tensor, _GradientsAtHand.apply(loss, *self.inputs, *self.gradients))  # type: ignore[no-untyped-call]


class _GradientsAtHand(torch.autograd.Function):
    """A scalar whose gradients by features, weight and bias are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *inputs_and_gradients: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs_and_gradients[3:])
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (gradient * by_loss.to(gradient.dtype) for gradient in ctx.saved_tensors)
        return (None, *scaled, None, None, None)
