"""The LTG-BERT backbone with attention gate (arXiv 2303.09859, 2410.24159), conditioned on time by AdaLN-zero.

From top to bottom: the config; dropout; who sees whom and from how far; attention and the gated norm, whose backward
passes are written out; the modules, named as in published checkpoints; `Transformer`.  Only torch and the standard
library are imported, so that the file can travel with an exported model.

Shapes are suffixes: B rows, T tokens per row, D width, H heads, E width of a head, R relative-position buckets,
U = 2T - 1 offsets, V vocabulary, C conditioning width, F inner width of the MLP; x any leading dimensions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a model, named as in the JSON configs of the GPT-BERT code base; the defaults are its base model.

    Raises ValueError for sizes that cannot be built.
    """

    hidden_size: int = 768
    intermediate_size: int = 2560
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    vocab_size: int = 16384
    max_position_embeddings: int = 512
    position_bucket_size: int = 32
    layer_norm_eps: float = 1e-5
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    cond_dim: int | None = 128
    """Width of the time embedding; None builds the model without AdaLN."""
    depth_weighted_averaging: bool = False
    """DenseFormer (arXiv 2402.02622), as GPT-BERT uses it."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        if self.position_bucket_size < 4 or self.position_bucket_size % 2:
            raise ValueError(f"position_bucket_size must be even and at least 4, not {self.position_bucket_size}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")

    @property
    def num_buckets(self) -> int:
        """R, the rows of the relative table: -(bucket size - 1) .. bucket size - 1."""
        return 2 * self.position_bucket_size - 1


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """`function.apply` without autocast: operands come in the dtype that is meant, and gradients leave in it."""
    device = next(x.device.type for x in arguments if isinstance(x, Tensor))
    with torch.autocast(device, enabled=False):
        return cast(Tensor, function.apply(*arguments))  # type: ignore[no-untyped-call]


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product with `x` is made: autocast's where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# ---- dropout ----


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Inverted dropout, drawn from torch's default generator."""
    if not training or rate == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    return apply(_Dropout, x, rate)


def keep_mask(like: Tensor, rate: float) -> tuple[Tensor, float]:
    """(0 or 1 as int16 in the shape of `like`, one over the probability of a 1), the probability being 1 - rate.

    16 random bits decide an element: on a CPU several times faster than a float for each.  The probability is a
    multiple of 2^-16, and the scale is that of this multiple.
    """
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    dropped = round(rate * 2**16)
    keep = words.view(torch.int16)[: like.numel()].view(like.shape).ge_(dropped - 2**15)
    return keep, 2**16 / (2**16 - dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        keep, ctx.scale = keep_mask(x, rate)
        ctx.save_for_backward(keep)
        return _kept(x, keep).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_output: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _kept(by_output, keep).mul_(ctx.scale), None


def _kept(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else keep.to(x.dtype).mul_(x)


# ---- who sees whom, and from how far ----


@functools.lru_cache(maxsize=64)
def distance_buckets(max_positions: int, bucket_size: int) -> tuple[int, ...]:
    """Bucket of every distance 0 .. P - 1: itself up to m = bucket_size / 2, beyond that on a logarithmic scale.

    ceil(log(d / m) / log((P - 1) / m) * (m - 1)) + m, in integers: in floating point the ceiling of the last distance
    can come out one too high and index outside the table.
    """
    middle, last = bucket_size // 2, max_positions - 1
    buckets = list(range(min(middle, last) + 1))
    step = 0
    for distance in range(middle + 1, max_positions):
        # the least step with (d / m) ** (m - 1) <= ((P - 1) / m) ** step
        while distance ** (middle - 1) * middle**step > last**step * middle ** (middle - 1):
            step += 1
        buckets.append(middle + step)
    return tuple(buckets)


def attention_mask(
    document_BT: Tensor | None,
    causal_B: Tensor | None,
    length: int,
    dtype: torch.dtype,
    allowed_BTT: Tensor | None = None,
) -> Tensor | None:
    """Additive mask [B, 1, T, T]: 0 where the query may see the key, else -inf; None where all see all.

    Padding (document -1) sees padding, so that no row of scores is empty; `allowed_BTT` must see to that itself.
    """
    allowed = allowed_BTT
    if document_BT is not None:
        together = document_BT[:, :, None] == document_BT[:, None, :]
        allowed = together if allowed is None else allowed & together
    if causal_B is not None:
        place = torch.arange(length, device=causal_B.device)
        past = (place[:, None] >= place) | ~causal_B[:, None, None]
        allowed = past if allowed is None else allowed & past
    if allowed is None:
        return None
    blocked = torch.full((), -math.inf, dtype=dtype, device=allowed.device)
    return torch.where(allowed, torch.zeros_like(blocked), blocked)[:, None]


class Geometry(NamedTuple):
    """What all layers share about the rows of a batch."""

    bucket_TT: Tensor
    """int64: row of the relative table for (query, key)"""
    one_hot_UR: Tensor
    """That row as a one-hot vector, for each offset query - key from T - 1 down to -(T - 1)"""
    mask_B1TT: Tensor | None
    """`attention_mask`"""


def geometry_of(
    config: ModelConfig,
    length: int,
    document_BT: Tensor | None,
    causal_B: Tensor | None,
    like: Tensor,
    allowed_BTT: Tensor | None = None,
) -> Geometry:
    """For rows of T = `length` tokens, on the device of `like` and in the dtype of its matrix products."""
    device, dtype = like.device, product_dtype(like)
    near = distance_buckets(config.max_position_embeddings, config.position_bucket_size)[:length]
    signed_U = torch.tensor([*reversed(near), *(-bucket for bucket in near[1:])])
    bucket_U = signed_U.to(device, non_blocking=True) + config.position_bucket_size - 1
    place_T = torch.arange(length, device=device)
    bucket_TT = bucket_U[place_T - place_T[:, None] + length - 1]
    one_hot_UR = (bucket_U[:, None] == torch.arange(config.num_buckets, device=device)).to(dtype)
    return Geometry(bucket_TT, one_hot_UR, attention_mask(document_BT, causal_B, length, dtype, allowed_BTT))


# ---- attention ----


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_pos: Tensor,
    key_pos: Tensor,
    geometry: Geometry,
    scale: float,
    rate: float,
) -> Tensor:
    """softmax(scale * query . key + `relative_scores`), dropout, times value: [B, H, T, E].

    `query`, `key`, `value` are [B, H, T, E]; the position tables, already scaled, [H, R, E].
    """
    if query.device.type == "cpu":  # where no library kernel has dropout or the gradient of a bias
        return apply(_Attention, geometry, scale, rate, query, key, value, query_pos, key_pos)
    return attend_by_library(query, key, value, query_pos, key_pos, geometry, scale, rate)


def attend_by_library(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_pos: Tensor,
    key_pos: Tensor,
    geometry: Geometry,
    scale: float,
    rate: float,
) -> Tensor:
    """`attend` by torch's fused kernel, to which positions and mask are a bias [B, H, T, T]."""
    bias = apply(_RelativeScores, geometry, query, key, query_pos, key_pos)
    return F.scaled_dot_product_attention(query, key, value, bias, dropout_p=rate, scale=scale)


class _Attention(torch.autograd.Function):
    """`attend`, written out.  Keeps the probabilities and two bytes of dropout mask for each of them."""

    @staticmethod
    def forward(ctx: Any, geometry: Geometry, scale: float, rate: float, *operands: Tensor) -> Tensor:
        query, key, value, query_pos, key_pos = operands
        scores = relative_scores(geometry, query, key, query_pos, key_pos)
        scores.flatten(0, 1).baddbmm_(query.flatten(0, 1), key.flatten(0, 1).mT, alpha=scale)
        probability = scores.softmax(-1)
        keep, kept_scale = keep_mask(probability, rate) if rate else (None, 1.0)
        ctx.geometry, ctx.scale, ctx.kept_scale = geometry, scale, kept_scale
        ctx.save_for_backward(*operands, probability, keep)
        return _kept(probability, keep) @ (value * kept_scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_context: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, query_pos, key_pos, probability, keep = ctx.saved_tensors
        by_context = by_context * ctx.kept_scale
        by_value = _kept(probability, keep).mT @ by_context
        by_scores = torch.ops.aten._softmax_backward_data(
            _kept(by_context @ value.mT, keep), probability, -1, probability.dtype
        )
        by_query, by_key, *by_pos = relative_scores_backward(by_scores, ctx.geometry, query, key, query_pos, key_pos)
        by_query.add_(by_scores @ key, alpha=ctx.scale)
        by_key.add_(by_scores.mT @ query, alpha=ctx.scale)
        return None, None, None, by_query, by_key, by_value, *by_pos


class _RelativeScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, geometry: Geometry, *operands: Tensor) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(*operands)
        return relative_scores(geometry, *operands)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_scores: Tensor) -> tuple[Tensor | None, ...]:
        return None, *relative_scores_backward(by_scores, ctx.geometry, *ctx.saved_tensors)


def relative_scores(geometry: Geometry, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
    """[B, H, T, T]: query . key_pos[bucket] + key . query_pos[bucket] + mask.

    Products with the tables come first and the lookup second; the other way round, as the formula reads, there would
    be a tensor [T, T, H, E] for each table.
    """
    bucket = geometry.bucket_TT.expand(*query.shape[:2], -1, -1)
    scores = (query @ key_pos.mT).gather(-1, bucket)
    scores += (key @ query_pos.mT).mT.gather(-2, bucket)
    if geometry.mask_B1TT is not None:
        scores += geometry.mask_B1TT
    return scores


def relative_scores_backward(
    by_scores: Tensor, geometry: Geometry, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `relative_scores` by query, key, query_pos and key_pos."""
    by_query_table = bucket_sums(by_scores, geometry.one_hot_UR)
    by_key_table = bucket_sums(by_scores.mT, geometry.one_hot_UR.flip(0))
    by_query_pos = (by_key_table.mT @ key).sum(0)
    by_key_pos = (by_query_table.mT @ query).sum(0)
    return by_query_table @ key_pos, by_key_table @ query_pos, by_query_pos, by_key_pos


def bucket_sums(x_BHTT: Tensor, one_hot_UR: Tensor, block: int = 64) -> Tensor:
    """[B, H, T, R]: entry (i, r) is the sum of row i over the columns j whose offset i - j has bucket r.

    Instead of a scatter, which is slow, or inexact in bfloat16: a block of n rows is copied into a zeroed buffer, the
    element (i, j) to column n - 1 - i + j, so that equal offsets share a column, and multiplied by the one-hot matrix.
    """
    *outer, length, _ = x_BHTT.shape
    rows = min(block, length)
    columns = length + rows - 1
    buffer = x_BHTT.new_zeros(*outer, rows, columns)
    skewed = buffer.as_strided((*outer, rows, length), (*buffer.stride()[:-2], columns - 1, 1), rows - 1)
    sums = x_BHTT.new_empty(*outer, length, one_hot_UR.shape[1])
    for start in range(0, length, rows):
        start = min(start, length - rows)  # the last block overlaps the one before it: every block fills the buffer
        stop = start + rows
        skewed.copy_(x_BHTT[..., start:stop, :])
        sums[..., start:stop, :] = buffer @ one_hot_UR[length - stop : length - stop + columns]
    return sums


# ---- gated norm, depth-weighted sum ----


def gated_norm(x: Tensor, gate: Tensor, eps: float, approximate: str = "none") -> Tensor:
    """LayerNorm(x * GELU(gate)), without affine."""
    return apply(_GatedNorm, x, gate, eps, approximate)


class _GatedNorm(torch.autograd.Function):
    """Keeps one tensor less than autograd would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, eps: float, approximate: str) -> Tensor:
        activated = F.gelu(gate, approximate=approximate)
        normal, mean, rstd = torch.native_layer_norm(x * activated, x.shape[-1:], None, None, eps)
        ctx.approximate = approximate
        ctx.save_for_backward(x, gate, activated, mean, rstd)
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_normal: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, activated, mean, rstd = ctx.saved_tensors
        by_product, _, _ = torch.ops.aten.native_layer_norm_backward(
            by_normal, x * activated, x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )
        by_gate = torch.ops.aten.gelu_backward(by_product * x, gate, approximate=ctx.approximate)
        return by_product.mul_(activated), by_gate, None, None


class _WeightedSum(torch.autograd.Function):
    """sum_k weight[k] * terms[k], without a stacked copy of the terms."""

    @staticmethod
    def forward(ctx: Any, weight_K: Tensor, *terms: Tensor) -> Tensor:
        ctx.save_for_backward(weight_K, *terms)
        total = terms[0] * weight_K[0]
        for weight, term in zip(weight_K[1:], terms[1:], strict=True):
            total.addcmul_(weight, term)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_total: Tensor) -> tuple[Tensor, ...]:
        weight_K, *terms = ctx.saved_tensors
        by_weight_K = torch.stack([torch.dot(by_total.flatten(), term.flatten()) for term in terms])
        return by_weight_K, *(by_total * weight for weight in weight_K)


# ---- modules ----


class Attention(nn.Module):
    """Self-attention with relative positions and a gate (arXiv 2303.09859, 2410.24159)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.scale = 1 / math.sqrt(3 * (width // self.num_heads))
        self.eps = config.layer_norm_eps
        self.dropout = config.attention_probs_dropout_prob
        self.in_proj_qk = nn.Linear(width, 2 * width)
        self.in_proj_vg = nn.Linear(width, 2 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, relative_RD: Tensor, geometry: Geometry) -> Tensor:
        """The sublayer's output [B, T, D] for a normalised input; `relative_RD` is the table of positions."""
        # query, key and value in one product; the gate, which is wanted after the attention, in its own
        value_weight, gate_weight = self.in_proj_vg.weight.chunk(2)
        value_bias, gate_bias = self.in_proj_vg.bias.chunk(2)
        weight = torch.cat([self.in_proj_qk.weight, value_weight])
        bias = torch.cat([self.in_proj_qk.bias, value_bias])
        query, key, value = self.heads(F.linear(x_BTD, weight, bias), 3)
        gate_BTD = F.linear(x_BTD, gate_weight, gate_bias)

        relative_RD = dropout(relative_RD, self.dropout, self.training)
        query_pos, key_pos = self.heads(self.in_proj_qk(relative_RD) * self.scale, 2)
        rate = self.dropout if self.training else 0.0
        context = attend(query, key, value, query_pos, key_pos, geometry, self.scale, rate)
        context_BTD = gated_norm(context.transpose(1, 2).flatten(2), gate_BTD, self.eps)
        return dropout(self.out_proj(context_BTD), self.dropout, self.training)

    def heads(self, x_xTD: Tensor, count: int) -> tuple[Tensor, ...]:
        """[.., T, count * D] to `count` tensors [.., H, T, E]."""
        split = x_xTD.view(*x_xTD.shape[:-1], count, self.num_heads, -1)
        return tuple(split.movedim((-3, -2), (0, -3)).contiguous())


class FeedForward(nn.Module):
    """GEGLU with a LayerNorm between the two matrices; no biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.eps = config.layer_norm_eps
        self.dropout = config.hidden_dropout_prob
        self.mlp = nn.ModuleDict(  # the keys are places in the published nn.Sequential
            {"1": nn.Linear(width, 2 * inner, bias=False), "4": nn.Linear(inner, width, bias=False)}
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The sublayer's output [B, T, D] for a normalised input."""
        inner_BTF, gate_BTF = self.mlp["1"](x_BTD).chunk(2, dim=-1)
        inner_BTF = gated_norm(inner_BTF, gate_BTF, self.eps, approximate="tanh")
        return dropout(self.mlp["4"](inner_BTF), self.dropout, self.training)


class DepthWeightedAverage(nn.Module):
    """The input of sublayer k + 1: the embedding and the outputs of sublayers 1 .. k, weighted (arXiv 2402.02622)."""

    def __init__(self, num_sublayers: int) -> None:
        super().__init__()
        self.alphas = nn.ParameterList(torch.zeros(k + 2) for k in range(num_sublayers))
        for alpha in self.alphas:
            nn.init.ones_(alpha[-1])

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """[B, T, D] from the embedding and all outputs so far."""
        return apply(_WeightedSum, self.alphas[len(outputs) - 2], *outputs)


class Encoder(nn.Module):
    """The layers, with time modulation and depth-weighted averaging if the config has them."""

    activation_checkpointing = False
    """Keep only what enters each sublayer, and compute the rest again in the backward pass (arXiv 1604.06174)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers = range(config.num_hidden_layers)
        self.eps = config.layer_norm_eps
        self.attention_layers = nn.ModuleList(Attention(config) for _ in layers)
        self.mlp_layers = nn.ModuleList(FeedForward(config) for _ in layers)
        if config.cond_dim is not None:
            self.adaLN_modulations = nn.ModuleList(nn.Linear(config.cond_dim, 6 * config.hidden_size) for _ in layers)
        self.dwa_modules = DepthWeightedAverage(2 * len(layers)) if config.depth_weighted_averaging else None

    def forward(self, x_BTD: Tensor, time_BC: Tensor | None, relative_RD: Tensor, geometry: Geometry) -> Tensor:
        """Hidden states [B, T, D]."""
        outputs = [x_BTD]
        for layer, (attention, mlp) in enumerate(zip(self.attention_layers, self.mlp_layers, strict=True)):
            attend_to = functools.partial(attention, relative_RD=relative_RD, geometry=geometry)
            change = (None, None) if time_BC is None else self.modulation(layer, time_BC)
            x_BTD = self.after(attend_to, x_BTD, change[0], outputs)
            x_BTD = self.after(mlp, x_BTD, change[1], outputs)
        return x_BTD

    def modulation(self, layer: int, time_BC: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(shift, scale, gate), each [B, 1, D], of the layer's attention and of its MLP."""
        linear = self.adaLN_modulations[layer]
        # in the parameters' precision: 1 + scale would lose a small scale in bfloat16
        chunks = linear(time_BC).to(linear.weight.dtype)[:, None].chunk(6, dim=-1)
        return chunks[:3], chunks[3:]

    def after(
        self,
        sublayer: Callable[[Tensor], Tensor],
        x_BTD: Tensor,
        change: tuple[Tensor, ...] | None,
        outputs: list[Tensor],
    ) -> Tensor:
        """The residual stream behind a sublayer, averaged with what came before if the config says so."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            x_BTD = cast(Tensor, checkpoint(self.residual, sublayer, x_BTD, change, use_reentrant=False))
        else:
            x_BTD = self.residual(sublayer, x_BTD, change)
        if self.dwa_modules is None:
            return x_BTD
        outputs.append(x_BTD)
        return cast(Tensor, self.dwa_modules(outputs))

    def residual(
        self, sublayer: Callable[[Tensor], Tensor], x_BTD: Tensor, change: tuple[Tensor, ...] | None
    ) -> Tensor:
        """x + gate * sublayer(LayerNorm(x) * (1 + scale) + shift) (AdaLN-zero, arXiv 2212.09748)."""
        normal_BTD = F.layer_norm(x_BTD, x_BTD.shape[-1:], eps=self.eps)
        dtype = product_dtype(x_BTD)
        if change is None:
            return x_BTD + sublayer(normal_BTD.to(dtype))
        shift, scale, gate = change
        return x_BTD + gate * sublayer(torch.addcmul(shift, normal_BTD, 1 + scale).to(dtype))


class Embedding(nn.Module):
    """Word embeddings and the table of relative positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.dropout = config.hidden_dropout_prob
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.relative_embedding = nn.Parameter(torch.empty(config.num_buckets, config.hidden_size))
        self.relative_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(words [B, T, D], relative table [R, D])"""
        words_BTD = self.word_embedding(ids_BT)
        words_BTD = F.layer_norm(words_BTD, words_BTD.shape[-1:], eps=self.eps)
        return dropout(words_BTD, self.dropout, self.training), self.relative_layer_norm(self.relative_embedding)


class OutputBias(nn.Module):
    """The bias of the vocabulary matrix; the matrix itself is the word embedding."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))


class Head(nn.Module):
    """What stands before the vocabulary matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.dropout = config.hidden_dropout_prob
        self.nonlinearity = nn.ModuleDict(  # the keys are places in the published nn.Sequential
            {"1": nn.Linear(config.hidden_size, config.hidden_size), "5": OutputBias(config.vocab_size)}
        )

    def forward(self, hidden_xD: Tensor) -> Tensor:
        """Features [.., D]: LayerNorm, Linear, GELU, LayerNorm, dropout."""
        normal_xD = F.layer_norm(hidden_xD, hidden_xD.shape[-1:], eps=self.eps)
        features_xD = F.gelu(self.nonlinearity["1"](normal_xD))
        features_xD = F.layer_norm(features_xD, features_xD.shape[-1:], eps=self.eps)
        return dropout(features_xD, self.dropout, self.training)


class TimeEmbedding(nn.Module):
    """Sinusoidal features of a conditioning value, then an MLP (as in arXiv 2212.09748)."""

    num_features = 256

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.num_features, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, value_B: Tensor) -> Tensor:
        """[B] to [B, C]."""
        half = self.num_features // 2
        value_B = value_B.to(next(self.mlp.parameters()).dtype)
        place = torch.arange(half, dtype=value_B.dtype, device=value_B.device)
        angle = value_B[:, None] * torch.exp(-math.log(10000) / half * place)
        return cast(Tensor, self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1)))


def truncated_normal_(tensor: Tensor, std: float) -> None:
    """Fill with normal draws within 2 std: the inverse distribution function on uniform draws between its bounds."""
    bound = math.erf(math.sqrt(2))
    tensor.uniform_(-bound, bound).erfinv_().mul_(math.sqrt(2) * std).clamp_(-2 * std, 2 * std)


class Transformer(nn.Module):
    """Token ids to hidden states (`forward`), to features (`head`), to the vocabulary (`logits`)."""

    def __init__(self, config: ModelConfig, time_embedding: nn.Module | None = None) -> None:
        """`time_embedding` maps conditioning values [B] to [B, C]; the default is `TimeEmbedding(cond_dim)`."""
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.transformer = Encoder(config)
        self.classifier = Head(config)
        self.initialise()
        if config.cond_dim is not None:
            self.sigma_map = TimeEmbedding(config.cond_dim) if time_embedding is None else time_embedding

    @torch.no_grad()
    def initialise(self) -> None:
        """Truncated normal of std sqrt(2 / 5D), biases and AdaLN 0, the MLP's matrices smaller with depth."""
        std = math.sqrt(2 / (5 * self.config.hidden_size))
        for name, parameter in self.named_parameters():
            if "adaLN" in name or name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif not name.startswith(("embedding.relative_layer_norm", "transformer.dwa_modules")):
                truncated_normal_(parameter, std)
        for layer, mlp in enumerate(self.transformer.mlp_layers):
            for parameter in mlp.parameters():
                parameter.mul_(math.sqrt(1 / (2 * (1 + layer))))

    @property
    def output_weight_VD(self) -> Tensor:
        """The vocabulary matrix, tied to the word embedding."""
        return self.embedding.word_embedding.weight

    @property
    def output_bias_V(self) -> Tensor:
        return cast(Tensor, self.classifier.nonlinearity["5"].bias)

    def forward(
        self,
        ids_BT: Tensor,
        document_BT: Tensor | None = None,
        causal_B: Tensor | None = None,
        value_B: Tensor | None = None,
        allowed_BTT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D].

        `document_BT`: integer document within the row, -1 for padding; attention stays within a document.  None: every
        row is one document.  `causal_B`: bool, rows in which a token sees only itself and the past.  `value_B`: float
        conditioning value, wanted if and only if the config has a `cond_dim`.  `allowed_BTT`: bool, the keys that a
        query may see at most, at least one for each query.

        Raises ValueError for rows longer than `max_position_embeddings`, and for a missing or surplus `value_B`.
        """
        length = ids_BT.shape[1]
        self.refuse_unfit(length, value_B)
        words_BTD, relative_RD = self.embedding(ids_BT)
        geometry = geometry_of(self.config, length, document_BT, causal_B, words_BTD, allowed_BTT)
        time_BC = None if value_B is None else F.silu(self.sigma_map(value_B))
        return cast(Tensor, self.transformer(words_BTD, time_BC, relative_RD, geometry))

    def refuse_unfit(self, length: int, value_B: Tensor | None) -> None:
        limit, cond_dim = self.config.max_position_embeddings, self.config.cond_dim
        if length > limit:
            raise ValueError(f"rows of {length} tokens are longer than this model's max_position_embeddings, {limit}")
        if (value_B is None) != (cond_dim is None):
            needs = "needs a" if value_B is None else "takes no"
            raise ValueError(f"a model with cond_dim={cond_dim} {needs} conditioning value (value_B)")

    def head(self, hidden_xD: Tensor) -> Tensor:
        """Hidden states [.., D] to the features [.., D] that the vocabulary matrix is applied to."""
        return cast(Tensor, self.classifier(hidden_xD))

    def logits(self, features_xD: Tensor) -> Tensor:
        """Features [.., D] to logits [.., V]."""
        return F.linear(features_xD, self.output_weight_VD, self.output_bias_V)
