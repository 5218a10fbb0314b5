"""Attention with relative positions, and the other operations of the model whose backward pass is written out.

The operations are functions of tensors; the modules that own the weights are in `transformer.py`.  Comments at the
autograd functions compare them with the same formula under autograd, for one call in the small model on 32 rows of 128
tokens in fp32: `python benchmarks/model_speed.py --operations --threads 1 --clock cpu --rounds 9` (docs/benchmarks.md).

This file is part of every exported model, so it imports only torch, the standard library and `visibility.py`.

Shapes are suffixes: B rows, T tokens per row, X columns per row: the T tokens and after them any copies of the row,
H heads, E width of a head, R relative-position buckets, U = 2T - 1 offsets, K terms of a sum.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .visibility import Visibility


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products with `x`: autocast's dtype if autocast is enabled, otherwise that of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def is_exporting() -> bool:
    """Whether the model is being recorded as a graph by `torch.export`, `torch.onnx.export` or `torch.jit.trace`.

    The graph must hold for all batch sizes and lengths, and exporters cannot record an `autograd.Function`.
    """
    # An exported model may meet a torch before 2.7, which has no `is_exporting`.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(exporting()) or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


class _NoBackward:
    """The `ctx` of a forward pass without a backward pass of ours."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep nothing."""


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """`function.apply` with autocast disabled, so that every operation runs in the dtype of its operands.

    While a graph is exported, it is the operations of the forward pass themselves.
    """
    if is_exporting():
        return cast(Tensor, function.forward(_NoBackward(), *arguments))
    device = next(x.device.type for x in arguments if isinstance(x, Tensor))
    with torch.autocast(device, enabled=False):
        return cast(Tensor, function.apply(*arguments))  # type: ignore[no-untyped-call]


# ---- geometry: relative positions and masks, shared by all layers ----


class Kernel(Protocol):
    """Relative positions and visibility of a batch in the form of another implementation of `attend`."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        scale: float,
        dropout_rate: float,
    ) -> Tensor:
        """See the function `attend`."""


class Geometry(NamedTuple):
    """Relative positions and attention mask of a batch; equal for all layers."""

    bucket_XX: Tensor
    """int64: row of the relative-position table for (query, key)"""
    one_hot_UR: Tensor
    """this row as a one-hot vector, for the offsets query - key from T - 1 down to -(T - 1)"""
    mask_B1XX: Tensor | None
    """see `attention_mask`"""


def batch_geometry(
    length: int,
    max_positions: int,
    bucket_size: int,
    document_BX: Tensor | None,
    causal_B: Tensor | None,
    visibility: Visibility | Tensor | None,
    like: Tensor,
    copies: int = 0,
) -> Geometry:
    """The geometry of rows of T = `length` tokens, on the device of `like` and in the dtype of its matrix products.

    `copies` is the number of further copies of the row, whose columns have the places of the first T.  `max_positions`
    and `bucket_size` are described at `distance_buckets`, the other tensors at `attention_mask`.
    """
    device, dtype = like.device, matmul_dtype(like)
    if type(like) is Tensor and not (is_exporting() or torch.is_inference_mode_enabled()):
        bucket_U = cached_offset_buckets(max_positions, bucket_size, device)
    else:  # a fake, exported or inference tensor must not stay for later calls
        bucket_U = offset_buckets(max_positions, bucket_size, device)
    # `length` is not a number while a graph is exported, and must not become one.
    reach = max_positions if is_exporting() else length
    if reach < max_positions:
        bucket_U = bucket_U[max_positions - reach : max_positions + reach - 1]
    position_T = torch.arange(length, device=device)
    bucket_XX = bucket_U[position_T - position_T[:, None] + reach - 1]
    if copies:
        bucket_XX = bucket_XX.repeat(1 + copies, 1 + copies)
    one_hot_UR = (bucket_U[:, None] == torch.arange(2 * bucket_size - 1, device=device)).to(dtype)
    return Geometry(
        bucket_XX, one_hot_UR, attention_mask(length * (1 + copies), document_BX, causal_B, visibility, dtype)
    )


def offset_buckets(max_positions: int, bucket_size: int, device: torch.device) -> Tensor:
    """int64[2P - 1]: rows of the relative-position table for the offsets query - key from P - 1 down to -(P - 1)."""
    bucket_P = distance_buckets(max_positions, bucket_size)
    signed_U = torch.tensor([*reversed(bucket_P), *(-bucket for bucket in bucket_P[1:])])
    return signed_U.to(device, non_blocking=True) + bucket_size - 1


cached_offset_buckets = functools.lru_cache(maxsize=16)(offset_buckets)
"""Making the tensor from numbers takes longer than a layer's launches, and copies it to the device each time."""


@functools.lru_cache(maxsize=64)
def distance_buckets(max_positions: int, bucket_size: int) -> tuple[int, ...]:
    """Buckets of the distances 0 .. P - 1: the distance itself up to m = bucket_size / 2, then a logarithmic scale.

    Beyond m, the bucket is ceil(log(d / m) / log((P - 1) / m) * (m - 1)) + m (arXiv 2303.09859), computed in integers:
    in floating point the ceiling of the last distance can be one too high and index outside the table.
    """
    middle, last = bucket_size // 2, max_positions - 1
    buckets = list(range(min(middle, last) + 1))
    step = 0
    for distance in range(middle + 1, max_positions):
        # the smallest step with (d / m) ** (m - 1) <= ((P - 1) / m) ** step
        while distance ** (middle - 1) * middle**step > last**step * middle ** (middle - 1):
            step += 1
        buckets.append(middle + step)
    return tuple(buckets)


def attention_mask(
    columns: int,
    document_BX: Tensor | None,
    causal_B: Tensor | None,
    visibility: Visibility | Tensor | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """Additive mask [B, 1, X, X]: 0 where the query attends to the key, else -inf; None if there is no restriction.

    A query attends to the keys of its own document that `visibility` names; without it, in rows of `causal_B` to itself
    and earlier keys, and in others to all.  Padding (document -1) attends to padding, so no row of scores is empty.

    `visibility` can also be bool[B, X, X], with at least one key for every query: the attention masks of `transformers`
    allow any pattern.  It is combined with `causal_B`.
    """
    restrictions: list[Tensor] = []
    if document_BX is not None:
        restrictions.append(document_BX[:, :, None] == document_BX[:, None, :])
    if isinstance(visibility, Visibility):
        restrictions.append(visibility.matrix())
    elif causal_B is not None:
        restrictions.append(Visibility.of_rows(causal_B, columns).matrix())
    if isinstance(visibility, Tensor):
        restrictions.append(visibility)
    if not restrictions:
        return None
    allowed = functools.reduce(torch.logical_and, restrictions)
    blocked = torch.full((), -math.inf, dtype=dtype, device=allowed.device)
    return torch.where(allowed, torch.zeros_like(blocked), blocked)[:, None]


# ---- attention ----


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_pos: Tensor,
    key_pos: Tensor,
    geometry: Geometry | Kernel,
    scale: float,
    dropout_rate: float,
) -> Tensor:
    """softmax(scale * query . key + `relative_scores`), dropout, times value: [B, H, X, E].

    `query`, `key` and `value` are [B, H, X, E]; `query_pos` and `key_pos`, already scaled, are [H, R, E].
    """
    if not isinstance(geometry, Geometry):
        return geometry.attend(query, key, value, query_pos, key_pos, scale, dropout_rate)
    if query.device.type == "cpu":  # no library kernel has dropout or the gradient of a bias there
        return apply(_Attention, geometry, scale, dropout_rate, query, key, value, query_pos, key_pos)
    return attend_by_library(query, key, value, query_pos, key_pos, geometry, scale, dropout_rate)


def attend_by_library(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_pos: Tensor,
    key_pos: Tensor,
    geometry: Geometry,
    scale: float,
    dropout_rate: float,
) -> Tensor:
    """`attend` with torch's fused kernel; relative scores and mask are its bias [B, H, X, X]."""
    bias = apply(_RelativeScores, geometry, query, key, query_pos, key_pos)
    return F.scaled_dot_product_attention(query, key, value, bias, dropout_p=dropout_rate, scale=scale)


class _Attention(torch.autograd.Function):
    """`attend` on a CPU.  Keeps the probabilities and a dropout mask of two bytes per probability."""

    # benchmark: keeps 19 MB instead of 63 MB, in equal time

    @staticmethod
    def forward(ctx: Any, geometry: Geometry, scale: float, dropout_rate: float, *operands: Tensor) -> Tensor:
        query, key, value, query_pos, key_pos = operands
        scores = relative_scores(geometry, query, key, query_pos, key_pos)
        # The result is used and not the changed view, because `torch.jit.trace` does not follow changes through views.
        added = scores.flatten(0, 1).baddbmm_(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scale)
        probability = added.view_as(scores).softmax(-1)
        keep, keep_scale = keep_mask(probability, dropout_rate) if dropout_rate else (None, 1.0)
        ctx.geometry, ctx.scale, ctx.keep_scale = geometry, scale, keep_scale
        ctx.save_for_backward(*operands, probability, keep)
        return _masked(probability, keep) @ (value * keep_scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_context: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, query_pos, key_pos, probability, keep = ctx.saved_tensors
        grad_context = grad_context * ctx.keep_scale
        grad_value = _masked(probability, keep).mT @ grad_context
        grad_probability = _masked(grad_context @ value.mT, keep)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_probability, probability, -1, probability.dtype)
        grad_query, grad_key, *grad_tables = relative_scores_backward(
            grad_scores, ctx.geometry, query, key, query_pos, key_pos
        )
        grad_query.add_(grad_scores @ key, alpha=ctx.scale)
        grad_key.add_(grad_scores.mT @ query, alpha=ctx.scale)
        return None, None, None, grad_query, grad_key, grad_value, *grad_tables


def _masked(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else keep.to(x.dtype).mul_(x)


class _RelativeScores(torch.autograd.Function):
    """`relative_scores` with `relative_scores_backward`, for accelerators."""

    # benchmark: keeps 0 MB instead of 19 MB, in 1.4 times the time on a CPU, where it is only tested.  On GPUs, the
    # scatter of autograd would add atomically, in an order that changes from run to run; its speed is not measured.

    @staticmethod
    def forward(ctx: Any, geometry: Geometry, *operands: Tensor) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(*operands)
        return relative_scores(geometry, *operands)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        return None, *relative_scores_backward(grad_scores, ctx.geometry, *ctx.saved_tensors)


def relative_scores(geometry: Geometry, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
    """[B, H, X, X]: query . key_pos[bucket] + key . query_pos[bucket] + mask.

    The products with the tables come before the lookup.  In the order of the formula, each table would be expanded to
    a tensor [T, T, H, E].
    """
    bucket = geometry.bucket_XX.expand(*query.shape[:2], -1, -1)
    scores = (query @ key_pos.transpose(-2, -1)).gather(-1, bucket)
    scores += (key @ query_pos.transpose(-2, -1)).transpose(-2, -1).gather(-2, bucket)
    if geometry.mask_B1XX is not None:
        scores += geometry.mask_B1XX
    return scores


def relative_scores_backward(
    grad_scores: Tensor, geometry: Geometry, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `relative_scores` with respect to query, key, query_pos and key_pos."""
    grad_by_query = bucket_sums(grad_scores, geometry.one_hot_UR)
    grad_by_key = bucket_sums(grad_scores.mT, geometry.one_hot_UR.flip(0))
    grad_query_pos = (grad_by_key.mT @ key).sum(0)
    grad_key_pos = (grad_by_query.mT @ query).sum(0)
    return grad_by_query @ key_pos, grad_by_key @ query_pos, grad_query_pos, grad_key_pos


def bucket_sums(x_BHXX: Tensor, one_hot_UR: Tensor, block: int = 64) -> Tensor:
    """[B, H, X, R]: entry (i, r) is the sum of row i over the columns j whose offset i - j has bucket r.

    This is the gradient of the lookup, as matrix products instead of a scatter: a block of n rows is copied to a zeroed
    buffer, element (i, j) to column n - 1 - i + j, so that equal offsets share a column, and the buffer is multiplied
    by the one-hot matrix.  Copies of the row share its places, so their columns are added first.
    """
    *outer, columns, _ = x_BHXX.shape
    length = (one_hot_UR.shape[0] + 1) // 2
    if columns > length:
        x_BHXT = x_BHXX.view(*outer, columns, -1, length).sum(-2)
        x_BHCTT = x_BHXT.view(*outer, -1, length, length)
        return bucket_sums(x_BHCTT, one_hot_UR, block).flatten(-3, -2)
    rows = min(block, length)
    width = length + rows - 1
    buffer = x_BHXX.new_zeros(*outer, rows, width)
    skewed = buffer.as_strided((*outer, rows, length), (*buffer.stride()[:-2], width - 1, 1), rows - 1)
    sums = x_BHXX.new_empty(*outer, length, one_hot_UR.shape[1])
    for start in range(0, length, rows):
        start = min(start, length - rows)  # the last block overlaps its predecessor, so every block fills the buffer
        stop = start + rows
        skewed.copy_(x_BHXX[..., start:stop, :])
        sums[..., start:stop, :] = buffer @ one_hot_UR[length - stop : length - stop + width]
    return sums


# ---- dropout, gated norm, depth-weighted sum ----


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Inverted dropout, drawn from torch's default generator."""
    if not training or rate == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    keep, scale = keep_mask(x, rate)
    return x * keep * scale


def keep_mask(like: Tensor, rate: float) -> tuple[Tensor, float]:
    """A dropout mask, 0 or 1 as int16 in the shape of `like`, and the scale 1 / P(1), where P(1) = 1 - rate.

    Each element is decided by 16 random bits; on a CPU this is several times faster than a random float.  P(1) is
    therefore rounded to a multiple of 2^-16, and the scale is that of the rounded probability.
    """
    if torch.compiler.is_compiling():  # torch's compiler does not know `random_`
        return (torch.rand(like.shape, device=like.device) >= rate).to(torch.int16), 1 / (1 - rate)
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    dropped = round(rate * 2**16)
    keep = words.view(torch.int16)[: like.numel()].view(like.shape).ge_(dropped - 2**15)
    return keep, 2**16 / (2**16 - dropped)


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension without an affine transformation."""
    return F.layer_norm(x, (int(x.shape[-1]),), eps=eps)  # a number also in an exported graph, unlike `x.shape[-1:]`


def gated_norm(x: Tensor, gate: Tensor, eps: float, approximate: str = "none") -> Tensor:
    """LayerNorm(x * GELU(gate)) without an affine transformation."""
    return apply(_GatedNorm, x, gate, eps, approximate)


class _GatedNorm(torch.autograd.Function):
    """Computes the product x * GELU(gate) again in the backward pass instead of keeping it."""

    # benchmark: keeps 21 MB instead of 42 MB, in 1.1 times the time

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, eps: float, approximate: str) -> Tensor:
        activated = F.gelu(gate, approximate=approximate)
        normal, mean, rstd = torch.native_layer_norm(x * activated, (int(x.shape[-1]),), None, None, eps)
        ctx.approximate = approximate
        ctx.save_for_backward(x, gate, activated, mean, rstd)
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_normal: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, activated, mean, rstd = ctx.saved_tensors
        grad_product, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad_normal, x * activated, x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )
        grad_gate = torch.ops.aten.gelu_backward(grad_product * x, gate, approximate=ctx.approximate)
        return grad_product.mul_(activated), grad_gate, None, None


def weighted_sum(weight_K: Tensor, terms: list[Tensor]) -> Tensor:
    """sum_k weight_K[k] * terms[k]."""
    return apply(_WeightedSum, weight_K, *terms)


class _WeightedSum(torch.autograd.Function):
    """Accumulates in place, without a stacked copy of the terms."""

    # benchmark: 5.9 times as fast; keeps 0 MB instead of 82 MB

    @staticmethod
    def forward(ctx: Any, weight_K: Tensor, *terms: Tensor) -> Tensor:
        ctx.save_for_backward(weight_K, *terms)
        total = terms[0] * weight_K[0]
        for weight, term in zip(weight_K[1:].unbind(), terms[1:], strict=True):
            total.addcmul_(weight, term)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, ...]:
        weight_K, *terms = ctx.saved_tensors
        grad_weight_K = torch.stack([torch.dot(grad_total.flatten(), term.flatten()) for term in terms])
        return grad_weight_K, *(grad_total * weight for weight in weight_K)


# ---- what the layers compute between their matrix products ----


def split_heads(x_xTD: Tensor, count: int, num_heads: int) -> tuple[Tensor, ...]:
    """[.., T, count * D] to `count` tensors [.., H, T, E]."""
    split = x_xTD.view(*x_xTD.shape[:-1], count, num_heads, -1)
    inner = split.dim() - 3  # not -3: the ONNX exporter without dynamo writes negative dimensions as they are
    return split.movedim((inner, inner + 1), (0, inner)).contiguous().unbind()


class Operations:
    """The operations of the layers between their matrix products, by those of torch.

    Layers call the object in their attribute `operations`.  It can be replaced by a subclass that computes the same
    values in another way.
    """

    def modulated_norm(
        self, x_BTD: Tensor, shift_B1D: Tensor | None, scale_B1D: Tensor | None, eps: float, dtype: torch.dtype
    ) -> Tensor:
        """LayerNorm(x) * (1 + scale) + shift, as `dtype`; without shift and scale, LayerNorm(x)."""
        normal_BTD = layer_norm(x_BTD, eps)
        if shift_B1D is not None and scale_B1D is not None:
            normal_BTD = torch.addcmul(shift_B1D, normal_BTD, 1 + scale_B1D)
        return normal_BTD.to(dtype)

    def gated_attention(
        self,
        projected_BXD: Tensor,
        gate_BXD: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        geometry: Geometry | Kernel,
        num_heads: int,
        scale: float,
        dropout_rate: float,
        eps: float,
    ) -> Tensor:
        """LayerNorm(attention * GELU(gate)), [B, X, D]; for `projected_BXD`, query, key and value side by side.

        The other arguments are those of `attend`, which computes the attention.
        """
        query, key, value = split_heads(projected_BXD, 3, num_heads)
        context = attend(query, key, value, query_pos, key_pos, geometry, scale, dropout_rate)
        return gated_norm(context.transpose(1, 2).flatten(2), gate_BXD, eps)

    def gated_halves(self, x_xF: Tensor, eps: float) -> Tensor:
        """LayerNorm(first half * GELU(second half)) over the last dimension, with the approximate GELU."""
        inner_xF, gate_xF = x_xF.chunk(2, dim=-1)
        return gated_norm(inner_xF, gate_xF, eps, approximate="tanh")

    def add_update(self, x_BTD: Tensor, update_BTD: Tensor, gate_B1D: Tensor | None, dropout_rate: float) -> Tensor:
        """x + gate * dropout(update)."""
        update_BTD = dropout(update_BTD, dropout_rate, training=True)
        return x_BTD + (update_BTD if gate_B1D is None else gate_B1D * update_BTD)
