"""Losses over a large vocabulary, computed in chunks of positions.

The logits [N, V] would be the largest tensor of a training step.  Here only one chunk of them exists at a time.  The
forward pass computes the gradients chunk by chunk, and the backward pass scales them (as in arXiv 2410.10989).

Shapes are suffixes: N supervised positions, M >= N rows of the features, n rows of a chunk, V vocabulary, D width, K
loss groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ltg_mdlm.model.attention import matmul_dtype

CHUNK = {"cpu": 512, "cuda": 4096}
"""Positions per chunk; 32 and 256 MiB of float32 logits at V = 16384.

On CPUs small chunks stay in the cache; on GPUs large ones need fewer launches and passes over the weight's gradient.
"""


class CrossEntropy(NamedTuple):
    """The result of `weighted_cross_entropy`; only `loss` has a gradient."""

    loss: Tensor
    """scalar"""
    nll_N: Tensor
    """negative log-likelihood of the label, nats"""
    log_normalizer_N: Tensor
    """log of the sum of the exponentiated logits"""
    correct_N: Tensor
    """bool: the label has the largest logit; of equal logits, one counts as the largest"""


class ChunkedLoss(NamedTuple):
    """The result of `chunked_loss`; only `loss` has a gradient."""

    loss: Tensor
    """scalar: sum of coefficient_K * terms_K"""
    terms_K: Tensor
    """sums over all positions"""


def weighted_cross_entropy(
    features_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    label_N: Tensor,
    nll_weight_N: Tensor,
    z_weight_N: Tensor | None = None,
    chunk: int | None = None,
) -> CrossEntropy:
    """Sum over positions of nll_weight * nll + z_weight * log_normalizer^2; logits = features @ weight.T + bias.

    Matrix products run in autocast's dtype, everything else in float32 (float64 for float64 weights).  The position
    weights receive no gradient.  If N is 0, loss and gradients are 0.  Rows of the features after the first N have no
    loss and the gradient 0: they keep the shape of the matrix products the same from call to call.
    """
    logits = _ChunkedLogits(features_MD, weight_VD, bias_V)
    positions, further = len(label_N), len(features_MD) - len(label_N)
    # The further rows have label 0 and weight 0.
    label_M = F.pad(label_N, (0, further))
    nll_M = torch.empty(positions + further, dtype=logits.loss_dtype, device=label_N.device)
    log_normalizer_M = torch.empty_like(nll_M)
    correct_M = torch.empty_like(label_M, dtype=torch.bool)
    nll_weight_M = F.pad(nll_weight_N.detach().to(nll_M.dtype), (0, further))
    z_weight_M = (
        torch.zeros_like(nll_M) if z_weight_N is None else F.pad(z_weight_N.detach().to(nll_M.dtype), (0, further))
    )

    def gradient(logits_nV: Tensor, part: slice) -> Tensor | None:
        label_n1 = label_M[part, None]
        label_logit_n = logits_nV.gather(-1, label_n1)[:, 0]
        log_share_nV = logits_nV.log_softmax(dim=-1)
        nll_n = nll_M[part] = -log_share_nV.gather(-1, label_n1)[:, 0]
        log_normalizer_n = log_normalizer_M[part] = nll_n + label_logit_n
        correct_M[part] = log_share_nV.max(dim=-1).indices == label_M[part]  # on CPUs several times faster than argmax
        if not logits.wants_gradient:
            return None
        weight_n = nll_weight_M[part]
        grad_logits_nV = log_share_nV.exp_().mul_((weight_n + 2 * z_weight_M[part] * log_normalizer_n)[:, None])
        return grad_logits_nV.scatter_add_(-1, label_n1, -weight_n[:, None])

    logits.run(gradient, chunk)
    nll_N, log_normalizer_N = nll_M[:positions], log_normalizer_M[:positions]
    loss = (nll_weight_M[:positions] * nll_N).sum() + (z_weight_M[:positions] * log_normalizer_N.square()).sum()
    return CrossEntropy(logits.with_gradients(loss), nll_N, log_normalizer_N, correct_M[:positions])


def chunked_loss(
    features_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    loss_terms: Callable[[Tensor, slice], Tensor],
    coefficient_K: Tensor,
    chunk: int | None = None,
    positions: int | None = None,
) -> ChunkedLoss:
    """Sum of coefficient_K * terms_K, for terms that are functions of all logits of a position.

    `loss_terms(logits_nV, part)` returns the terms [K] summed over the positions `part` (a slice of 0 .. N),
    differentiable in the logits.  It must detach tensors of a chunk that it keeps.  It is not called if N is 0.
    N is `positions`, by default all rows of the features.
    """
    logits = _ChunkedLogits(features_MD, weight_VD, bias_V)
    count = len(features_MD) if positions is None else positions
    terms_K = torch.zeros_like(coefficient_K, dtype=logits.loss_dtype)
    coefficient_K = coefficient_K.detach().to(terms_K.dtype)

    def gradient(logits_nV: Tensor, part: slice) -> Tensor | None:
        if part.start >= count:
            return None
        with torch.set_grad_enabled(logits.wants_gradient):
            logits_nV.requires_grad_(logits.wants_gradient)
            chunk_K = loss_terms(logits_nV[: count - part.start], slice(part.start, min(part.stop, count)))
            terms_K.add_(chunk_K.detach())
            if not logits.wants_gradient:
                return None
            return torch.autograd.grad((chunk_K * coefficient_K).sum(), logits_nV)[0]

    logits.run(gradient, chunk)
    return ChunkedLoss(logits.with_gradients((coefficient_K * terms_K).sum()), terms_K)


class _ChunkedLogits:
    """The vocabulary matrix applied in chunks, and the gradients of a loss with respect to its inputs."""

    def __init__(self, features_MD: Tensor, weight_VD: Tensor, bias_V: Tensor) -> None:
        self.inputs = (features_MD, weight_VD, bias_V)
        self.matmul_dtype = matmul_dtype(weight_VD)
        self.loss_dtype = torch.promote_types(weight_VD.dtype, torch.float32)
        self.wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in self.inputs)
        self.gradients: tuple[Tensor, ...] = ()

    def run(self, gradient: Callable[[Tensor, slice], Tensor | None], chunk: int | None) -> None:
        """Call `gradient` with the logits [n, V] and the positions of every chunk, by default of `CHUNK` positions.

        It returns the gradient of the loss with respect to these logits, or None if no gradient is needed.
        """
        features_MD, weight_VD, bias_V = (x.detach() for x in self.inputs)
        with torch.no_grad(), torch.autocast(features_MD.device.type, enabled=False):
            if self.wants_gradient:
                self.gradients = tuple(torch.zeros_like(x) for x in self.inputs)
            features_MD, weight_VD = features_MD.to(self.matmul_dtype), weight_VD.to(self.matmul_dtype)
            chunk = chunk or CHUNK.get(features_MD.device.type, CHUNK["cpu"])
            starts = range(0, len(features_MD), chunk)
            # torch.split makes one empty chunk of no rows.
            for start, features_nD in zip(starts, torch.split(features_MD, chunk), strict=False):
                logits_nV = (features_nD @ weight_VD.T).to(self.loss_dtype).add_(bias_V)
                grad_logits_nV = gradient(logits_nV, slice(start, start + len(features_nD)))
                if grad_logits_nV is None:
                    continue
                grad_features_MD, grad_weight_VD, grad_bias_V = self.gradients
                grad_bias_V.add_(grad_logits_nV.sum(0))
                grad_logits_nV = grad_logits_nV.to(self.matmul_dtype)
                grad_features_MD.narrow(0, start, len(features_nD)).copy_(grad_logits_nV @ weight_VD)
                grad_weight_VD.add_(matrix_product(grad_logits_nV.T, features_nD, grad_weight_VD.dtype))

    def with_gradients(self, loss: Tensor) -> Tensor:
        """The loss as a function of the inputs, with the gradients that `run` computed."""
        if not self.wants_gradient:
            return loss
        return cast(Tensor, _PrecomputedGradients.apply(loss, *self.inputs, *self.gradients))  # type: ignore[no-untyped-call]


def matrix_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ right, for a sum in `dtype`: on GPUs, its float32 accumulators are not rounded to the operands' bfloat16.

    Elsewhere, and before torch 2.8, the product has the dtype of its operands.
    """
    if left.is_cuda and dtype != left.dtype and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(left, right, out_dtype=dtype)
    return left @ right


class _PrecomputedGradients(torch.autograd.Function):
    """A scalar with known gradients with respect to features, weight and bias."""

    # `python benchmarks/model_speed.py --operations --threads 1 --clock cpu --rounds 9` (1,474 positions, V = 8192):
    # keeps 15 MB instead of the 48 MB of F.cross_entropy under autograd, in 1.1 times the time

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *inputs_and_gradients: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs_and_gradients[3:])
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (gradient * grad_loss.to(gradient.dtype) for gradient in ctx.saved_tensors)
        return (None, *scaled, None, None, None)
