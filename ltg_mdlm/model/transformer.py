"""The LTG-BERT backbone with attention gate (arXiv 2303.09859, 2410.24159), conditioned on time by AdaLN-zero.

Read from the bottom: `Transformer` -> `Encoder` -> `Attention`, `FeedForward`.  Imports torch and the standard library
only, so that the file can travel with an exported model.  State-dict names are those of published checkpoints.

Shapes are suffixes: B rows, T tokens per row, D width, H heads, E width of a head, R relative-position buckets,
V vocabulary, C conditioning width, F inner width of the MLP.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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

    @property
    def num_buckets(self) -> int:
        return 2 * self.position_bucket_size - 1


class _Dropout(torch.autograd.Function):
    """Dropout whose mask costs 16 random bits per element, several times faster than drawing floats on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        keep, ctx.scale = keep_mask(x, rate)
        ctx.save_for_backward(keep)
        return (x * keep.to(x.dtype)).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_output: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (by_output * keep.to(by_output.dtype)).mul_(ctx.scale), None


def keep_mask(like: Tensor, rate: float) -> tuple[Tensor, float]:
    """(int16 of 0 and 1 in the shape of `like`, one over the probability of 1); the probability is 1 - rate to 2^-17."""
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    dropped = round(rate * 2**16)
    keep = words.view(torch.int16)[: like.numel()].view(like.shape).ge_(dropped - 2**15)
    return keep, 2**16 / (2**16 - dropped)


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Inverted dropout from torch's default generator."""
    if not training or rate == 0:
        return x
    if x.is_cuda:
        return F.dropout(x, rate)
    return cast(Tensor, _Dropout.apply(x, rate))


def product_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype where it is on, else that of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


@functools.lru_cache(maxsize=64)
def distance_buckets(max_positions: int, bucket_size: int) -> tuple[int, ...]:
    """Bucket of every distance 0 .. max_positions - 1: exact up to bucket_size / 2, then logarithmic.

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
    document_BT: Tensor | None, causal_B: Tensor | None, length: int, dtype: torch.dtype
) -> Tensor | None:
    """Additive mask [B, 1, T, T]: 0 where query may see key, else -inf; None where everything may.

    Padding (document -1) sees padding, so that no row of scores is empty.
    """
    allowed = None
    if document_BT is not None:
        allowed = document_BT[:, :, None] == document_BT[:, None, :]
    if causal_B is not None:
        place = torch.arange(length, device=causal_B.device)
        past = (place[:, None] >= place) | ~causal_B[:, None, None]
        allowed = past if allowed is None else allowed & past
    if allowed is None:
        return None
    blocked = torch.full((), -math.inf, dtype=dtype, device=allowed.device)
    return torch.where(allowed, torch.zeros_like(blocked), blocked)[:, None]


@dataclass(frozen=True)
class Geometry:
    """What all layers share about the rows of a batch: who is how far from whom, and who may see whom."""

    bucket_TT: Tensor
    """int64: row of the relative table for (query, key)"""
    one_hot_UR: Tensor
    """The row as a one-hot vector for each of the U = 2T - 1 offsets query - key, from T - 1 down to -(T - 1)"""
    mask_B1TT: Tensor | None
    """0 where the query may see the key, -inf elsewhere; None where all see all"""

    @staticmethod
    def of(
        config: ModelConfig, length: int, document_BT: Tensor | None, causal_B: Tensor | None, like: Tensor
    ) -> Geometry:
        """For rows of T = `length` tokens; device and dtype of products are those of `like`."""
        offset_U = torch.arange(length - 1, -length, -1)
        near = torch.tensor(distance_buckets(config.max_position_embeddings, config.position_bucket_size))
        bucket_U = near[offset_U.abs()] * offset_U.sign() + config.position_bucket_size - 1
        bucket_U = bucket_U.to(like.device, non_blocking=True)
        place_T = torch.arange(length, device=like.device)
        bucket_TT = bucket_U[place_T - place_T[:, None] + length - 1]
        one_hot_UR = (bucket_U[:, None] == torch.arange(config.num_buckets, device=like.device)).to(like.dtype)
        return Geometry(bucket_TT, one_hot_UR, attention_mask(document_BT, causal_B, length, like.dtype))


def relative_scores(query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor, geometry: Geometry) -> Tensor:
    """[B, H, T, T]: query . key_pos[bucket] + key . query_pos[bucket] + mask.

    `query`, `key` are [B, H, T, E], the position tables [H, R, E].  Products with the tables first, then a lookup: the
    textbook's lookup first makes a tensor [T, T, H, E].
    """
    bucket = geometry.bucket_TT.expand(*query.shape[:2], -1, -1)
    scores = (query @ key_pos.mT).gather(-1, bucket)
    scores += (key @ query_pos.mT).mT.gather(-2, bucket)
    if geometry.mask_B1TT is not None:
        scores += geometry.mask_B1TT
    return scores


def relative_scores_backward(
    by_scores: Tensor, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `relative_scores` by query, key, query_pos and key_pos."""
    by_query_table = bucket_sums(by_scores, geometry.one_hot_UR)
    by_key_table = bucket_sums(by_scores.mT, geometry.one_hot_UR.flip(0))
    by_query_pos = (by_key_table.mT @ key).sum(0)
    by_key_pos = (by_query_table.mT @ query).sum(0)
    return by_query_table @ key_pos, by_key_table @ query_pos, by_query_pos, by_key_pos


def bucket_sums(x_BHTT: Tensor, one_hot_UR: Tensor, block: int = 128) -> Tensor:
    """[B, H, T, R]: entry (i, r) is the sum of row i over the columns j whose offset i - j is in bucket r.

    A product with the one-hot matrix of offsets instead of a scatter: exact in the accumulation, deterministic, and
    parallel.  Rows i, skewed so that the columns of equal offset lie under each other, are written into a zeroed
    buffer: the element (i, j) of a block of n rows goes to column n - 1 - i + j.
    """
    *outer, length, _ = x_BHTT.shape
    sums = x_BHTT.new_empty(*outer, length, one_hot_UR.shape[1])
    for start in range(0, length, block):
        stop = min(start + block, length)
        rows, columns = stop - start, length + stop - start - 1
        buffer = x_BHTT.new_zeros(*outer, rows, columns)
        strides = (*buffer.stride()[:-2], columns - 1, 1)
        buffer.as_strided((*outer, rows, length), strides, rows - 1).copy_(x_BHTT[..., start:stop, :])
        sums[..., start:stop, :] = buffer @ one_hot_UR[length - stop : length - stop + columns]
    return sums


class _RelativeScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, geometry: Geometry, *operands: Tensor) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(*operands)
        return relative_scores(*operands, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_scores: Tensor) -> tuple[Tensor | None, ...]:
        return None, *relative_scores_backward(by_scores, *ctx.saved_tensors, ctx.geometry)


class _Attention(torch.autograd.Function):
    """softmax(scale * query . key + relative scores), dropout, times value; the backward pass by hand.

    Against the fused kernels of a CPU, which have neither a gradient for a bias nor dropout.
    """

    @staticmethod
    def forward(ctx: Any, geometry: Geometry, scale: float, rate: float, *operands: Tensor) -> Tensor:
        query, key, value, query_pos, key_pos = operands
        scores = relative_scores(query, key, query_pos, key_pos, geometry)
        scores.flatten(0, 1).baddbmm_(query.flatten(0, 1), key.flatten(0, 1).mT, alpha=scale)
        probability = scores.softmax(-1)
        keep, ctx.scale_kept = keep_mask(probability, rate) if rate else (None, 1.0)
        ctx.geometry, ctx.scale = geometry, scale
        ctx.save_for_backward(*operands, probability, keep)
        return kept(probability, keep) @ (value * ctx.scale_kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_context: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, query_pos, key_pos, probability, keep = ctx.saved_tensors
        by_context = by_context * ctx.scale_kept
        by_value = kept(probability, keep).mT @ by_context
        by_scores = kept(by_context @ value.mT, keep)
        by_scores = torch._softmax_backward_data(by_scores, probability, -1, probability.dtype)
        by_query, by_key, *by_pos = relative_scores_backward(by_scores, query, key, query_pos, key_pos, ctx.geometry)
        by_query.add_(by_scores @ key, alpha=ctx.scale)
        by_key.add_(by_scores.mT @ query, alpha=ctx.scale)
        return None, None, None, by_query, by_key, by_value, *by_pos


def kept(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep.to(x.dtype)


class _GatedNorm(torch.autograd.Function):
    """LayerNorm(x * GELU(gate)), keeping one tensor less than autograd would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, approximate: str, eps: float) -> Tensor:
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


class Attention(nn.Module):
    """Gated self-attention with relative positions (arXiv 2303.09859, section 2.1; the gate is GPT-BERT's)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.scale = 1.0 / math.sqrt(3 * width // config.num_attention_heads)
        self.eps = config.layer_norm_eps
        self.dropout = config.attention_probs_dropout_prob
        self.in_proj_qk = nn.Linear(width, 2 * width)
        self.in_proj_vg = nn.Linear(width, 2 * width)
        self.out_proj = nn.Linear(width, width)

    def heads(self, x_xTD: Tensor, count: int) -> tuple[Tensor, ...]:
        """[.., T, count * D] -> `count` tensors [.., H, T, E]"""
        split = x_xTD.view(*x_xTD.shape[:-1], count, self.num_heads, -1)
        return split.movedim((-3, -2), (0, -3)).contiguous().unbind()

    def forward(self, x_BTD: Tensor, relative_RD: Tensor, geometry: Geometry) -> Tensor:
        """The sublayer's output [B, T, D]; `x_BTD` is normalised already."""
        value_weight, gate_weight = self.in_proj_vg.weight.chunk(2)
        value_bias, gate_bias = self.in_proj_vg.bias.chunk(2)
        weight = torch.cat([self.in_proj_qk.weight, value_weight])
        bias = torch.cat([self.in_proj_qk.bias, value_bias])
        query, key, value = self.heads(F.linear(x_BTD, weight, bias), 3)
        relative_RD = dropout(relative_RD, self.dropout, self.training)
        query_pos, key_pos = self.heads(self.in_proj_qk(relative_RD) * self.scale, 2)
        rate = self.dropout if self.training else 0.0
        context = _Attention.apply(geometry, self.scale, rate, query, key, value, query_pos, key_pos)
        context_BTD = context.transpose(1, 2).flatten(2)
        context_BTD = _GatedNorm.apply(context_BTD, F.linear(x_BTD, gate_weight, gate_bias), "none", self.eps)
        return dropout(self.out_proj(context_BTD), self.dropout, self.training)


class FeedForward(nn.Module):
    """GEGLU with a LayerNorm between the two matrices; no biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.dropout = config.hidden_dropout_prob
        self.mlp = nn.ModuleDict(  # named by the places in the published nn.Sequential
            {
                "1": nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False),
                "4": nn.Linear(config.intermediate_size, config.hidden_size, bias=False),
            }
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The sublayer's output [B, T, D]; `x_BTD` is normalised already."""
        inner_BTF, gate_BTF = self.mlp["1"](x_BTD).chunk(2, dim=-1)
        inner_BTF = _GatedNorm.apply(inner_BTF, gate_BTF, "tanh", self.eps)
        return dropout(self.mlp["4"](inner_BTF), self.dropout, self.training)


class DepthWeightedAverages(nn.Module):
    """After sublayer k, the average of the embedding and the outputs 1 .. k, with learned weights (DenseFormer)."""

    def __init__(self, num_sublayers: int) -> None:
        super().__init__()
        self.alphas = nn.ParameterList(torch.zeros(k + 2) for k in range(num_sublayers))
        for alpha in self.alphas:
            nn.init.ones_(alpha[-1])

    def forward(self, outputs: list[Tensor]) -> Tensor:
        alpha = self.alphas[len(outputs) - 2]
        return torch.stack([weight * x for weight, x in zip(alpha, outputs, strict=True)]).sum(0)


class Encoder(nn.Module):
    """The layers, the time modulation of each, and depth-weighted averaging if the config has it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers = range(config.num_hidden_layers)
        self.eps = config.layer_norm_eps
        self.attention_layers = nn.ModuleList(Attention(config) for _ in layers)
        self.mlp_layers = nn.ModuleList(FeedForward(config) for _ in layers)
        if config.cond_dim is not None:
            self.adaLN_modulations = nn.ModuleList(nn.Linear(config.cond_dim, 6 * config.hidden_size) for _ in layers)
        if config.depth_weighted_averaging:
            self.dwa_modules = DepthWeightedAverages(2 * config.num_hidden_layers)
        self.config = config

    def forward(self, x_BTD: Tensor, time_BC: Tensor | None, relative_RD: Tensor, geometry: Geometry) -> Tensor:
        outputs = [x_BTD]
        for layer in range(self.config.num_hidden_layers):
            attention, mlp = self.attention_layers[layer], self.mlp_layers[layer]
            modulation = [None, None] if time_BC is None else self.modulation(layer, time_BC)
            for sublayer, arguments, change in (
                (attention, (relative_RD, geometry), modulation[0]),
                (mlp, (), modulation[1]),
            ):
                x_BTD = x_BTD + self.modulated(sublayer, x_BTD, arguments, change)
                if self.config.depth_weighted_averaging:
                    outputs.append(x_BTD)
                    x_BTD = self.dwa_modules(outputs)
        return x_BTD

    def modulation(self, layer: int, time_BC: Tensor) -> list[tuple[Tensor, ...]]:
        """(shift, scale, gate), each [B, 1, D], of the layer's attention and of its MLP."""
        chunks = self.adaLN_modulations[layer](time_BC)[:, None].chunk(6, dim=-1)
        return [chunks[:3], chunks[3:]]

    def modulated(
        self,
        sublayer: nn.Module,
        x_BTD: Tensor,
        arguments: tuple[Tensor | None, ...],
        change: tuple[Tensor, ...] | None,
    ) -> Tensor:
        """LayerNorm, sublayer, and around them AdaLN-zero (arXiv 2212.09748, section 3.2)."""
        normal_BTD = F.layer_norm(x_BTD, x_BTD.shape[-1:], eps=self.eps)
        if change is None:
            return cast(Tensor, sublayer(normal_BTD, *arguments))
        shift, scale, gate = change
        return cast(Tensor, gate * sublayer(normal_BTD * (1 + scale) + shift, *arguments))


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
    """LayerNorm, Linear, GELU, LayerNorm, dropout: what stands before the vocabulary matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.dropout = config.hidden_dropout_prob
        self.nonlinearity = nn.ModuleDict(  # named by the places in the published nn.Sequential
            {"1": nn.Linear(config.hidden_size, config.hidden_size), "5": OutputBias(config.vocab_size)}
        )

    def forward(self, hidden_xD: Tensor) -> Tensor:
        normal_xD = F.layer_norm(hidden_xD, hidden_xD.shape[-1:], eps=self.eps)
        features_xD = F.gelu(self.nonlinearity["1"](normal_xD))
        features_xD = F.layer_norm(features_xD, features_xD.shape[-1:], eps=self.eps)
        return dropout(features_xD, self.dropout, self.training)


class TimeEmbedding(nn.Module):
    """Sinusoidal features of a conditioning value, then an MLP (arXiv 2212.09748; 256 features as published)."""

    num_features = 256

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.num_features, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, value_B: Tensor) -> Tensor:
        """[B] -> [B, C]"""
        half = self.num_features // 2
        dtype = self.mlp[0].weight.dtype
        place = torch.arange(half, dtype=dtype, device=value_B.device)
        angle = value_B.to(dtype)[:, None] * torch.exp(-math.log(10000) / half * place)
        return cast(Tensor, self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1)))


def truncated_normal_(tensor: Tensor, std: float) -> None:
    """Fill with normal draws, those beyond 2 std left out: the inverse of the distribution function on uniform draws."""
    bound = math.erf(math.sqrt(2))
    tensor.uniform_(-bound, bound).erfinv_().mul_(math.sqrt(2) * std).clamp_(-2 * std, 2 * std)


class Transformer(nn.Module):
    """Token ids to hidden states, and hidden states to the vocabulary."""

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
        """Truncated normal of std sqrt(2 / 5D), biases 0, AdaLN 0, MLP matrices smaller with depth."""
        std = math.sqrt(2 / (5 * self.config.hidden_size))
        for name, parameter in self.named_parameters():
            if "adaLN" in name or name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif not name.startswith(("embedding.relative_layer_norm", "transformer.dwa")):
                truncated_normal_(parameter, std)
        for layer, mlp in enumerate(self.transformer.mlp_layers):
            for parameter in mlp.parameters():
                parameter.mul_(math.sqrt(1 / (2 * (1 + layer))))

    @property
    def output_weight_VD(self) -> Tensor:
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
    ) -> Tensor:
        """Hidden states [B, T, D].

        `document_BT`: integer document within the row, -1 for padding; attention stays within a document.  None: every
        row is one document.  `causal_B`: bool, rows in which a token sees only itself and the past.  `value_B`: float
        conditioning value, wanted if and only if the config has a `cond_dim`.

        Raises ValueError for rows longer than `max_position_embeddings`, and for a missing or surplus `value_B`.
        """
        length = ids_BT.shape[1]
        self.check(length, value_B)
        words_BTD, relative_RD = self.embedding(ids_BT)
        like = words_BTD.new_empty(0, dtype=product_dtype(words_BTD))
        geometry = Geometry.of(self.config, length, document_BT, causal_B, like)
        time_BC = None if value_B is None else F.silu(self.sigma_map(value_B))
        return cast(Tensor, self.transformer(words_BTD, time_BC, relative_RD, geometry))

    def check(self, length: int, value_B: Tensor | None) -> None:
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"rows of {length} tokens are longer than this model's max_position_embeddings, {limit}")
        if (value_B is None) != (self.config.cond_dim is None):
            wanted = "needs" if value_B is None else "takes no"
            raise ValueError(f"a model with cond_dim={self.config.cond_dim} {wanted} conditioning value (value_B)")

    def head(self, hidden_xD: Tensor) -> Tensor:
        """Hidden states [.., D] to the features [.., D] that the vocabulary matrix is applied to."""
        return cast(Tensor, self.classifier(hidden_xD))

    def logits(self, features_xD: Tensor) -> Tensor:
        """Features [.., D] to logits [.., V]; the matrix is tied to the word embedding."""
        return F.linear(features_xD, self.output_weight_VD, self.output_bias_V)
