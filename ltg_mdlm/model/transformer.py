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
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def bucket_of_offset(length: int, max_positions: int, bucket_size: int, device: torch.device) -> Tensor:
    """int64[2T - 1]: row of the relative table for query - key = -(T - 1) .. T - 1."""
    ahead = distance_buckets(max_positions, bucket_size)[:length]
    signed = [-bucket for bucket in reversed(ahead[1:])] + list(ahead)
    return torch.tensor(signed).to(device, non_blocking=True) + (bucket_size - 1)


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

    def heads(self, x_xTD: Tensor) -> Tensor:
        """[.., T, D] -> [.., H, T, E]"""
        return x_xTD.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def forward(self, x_BTD: Tensor, relative_RD: Tensor, offsets_TT: Tensor, mask: Tensor | None) -> Tensor:
        """The sublayer's output [B, T, D]; `x_BTD` is normalised already."""
        query, key = map(self.heads, self.in_proj_qk(x_BTD).chunk(2, dim=-1))
        value_BTD, gate_BTD = self.in_proj_vg(x_BTD).chunk(2, dim=-1)
        relative_RD = F.dropout(relative_RD, self.dropout, self.training)
        query_pos, key_pos = map(self.heads, self.in_proj_qk(relative_RD).chunk(2, dim=-1))
        index = offsets_TT.expand(*query.shape[:2], -1, -1)
        bias = (query @ key_pos.mT).gather(-1, index) + (key @ query_pos.mT).mT.gather(-2, index)
        scores = (query @ key.mT + bias) * self.scale
        if mask is not None:
            scores = scores + mask
        probability = F.dropout(scores.softmax(-1), self.dropout, self.training)
        context_BTD = (probability @ self.heads(value_BTD)).transpose(1, 2).flatten(2)
        context_BTD = F.layer_norm(context_BTD * F.gelu(gate_BTD), context_BTD.shape[-1:], eps=self.eps)
        return F.dropout(self.out_proj(context_BTD), self.dropout, self.training)


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
        inner_BTF = inner_BTF * F.gelu(gate_BTF, approximate="tanh")
        inner_BTF = F.layer_norm(inner_BTF, inner_BTF.shape[-1:], eps=self.eps)
        return F.dropout(self.mlp["4"](inner_BTF), self.dropout, self.training)


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

    def forward(
        self, x_BTD: Tensor, time_BC: Tensor | None, relative_RD: Tensor, offsets_TT: Tensor, mask: Tensor | None
    ) -> Tensor:
        outputs = [x_BTD]
        for layer in range(self.config.num_hidden_layers):
            attention, mlp = self.attention_layers[layer], self.mlp_layers[layer]
            modulation = [None, None] if time_BC is None else self.modulation(layer, time_BC)
            for sublayer, arguments, change in (
                (attention, (relative_RD, offsets_TT, mask), modulation[0]),
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
        return F.dropout(words_BTD, self.dropout, self.training), self.relative_layer_norm(self.relative_embedding)


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
        return F.dropout(features_xD, self.dropout, self.training)


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
        mask = attention_mask(document_BT, causal_B, length, words_BTD.dtype)
        bucket = bucket_of_offset(
            length, self.config.max_position_embeddings, self.config.position_bucket_size, ids_BT.device
        )
        place = torch.arange(length, device=ids_BT.device)
        offsets_TT = bucket[place[:, None] - place + (length - 1)]
        time_BC = None if value_B is None else F.silu(self.sigma_map(value_B))
        return cast(Tensor, self.transformer(words_BTD, time_BC, relative_RD, offsets_TT, mask))

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
