"""The LTG-BERT backbone with an attention gate (arXiv 2303.09859, 2410.24159), conditioned on time by AdaLN-zero.

From top to bottom: sizes, embeddings, the two sublayers, the encoder with depth-weighted averaging, the head, and
`Transformer`, which puts them together and initialises them.  Modules are named as in published checkpoints.  The
operations behind the modules are in `attention.py`.

This file is part of every exported model, so it imports only torch, the standard library, `attention.py` and
`visibility.py`.

Shapes are suffixes: B rows, T tokens per row, D width, H heads, E width of a head, R relative-position buckets,
V vocabulary, C conditioning width, F inner width of the feed-forward sublayer; x any leading dimensions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import (
    Geometry,
    Kernel,
    Operations,
    batch_geometry,
    dropout,
    is_exporting,
    layer_norm,
    matmul_dtype,
    split_heads,
    weighted_sum,
)
from .visibility import Visibility


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
        """R, the rows of the relative-position table: buckets -(bucket size - 1) .. bucket size - 1."""
        return 2 * self.position_bucket_size - 1


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
        """Words [B, T, D] and relative-position table [R, D]; `ids_BT` can be word vectors [B, T, D] instead of ids."""
        words_BTD = ids_BT if ids_BT.is_floating_point() else self.word_embedding(ids_BT)
        words_BTD = layer_norm(words_BTD, self.eps)
        return dropout(words_BTD, self.dropout, self.training), self.relative_layer_norm(self.relative_embedding)


def weight_dtype(layer: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """The dtype of a layer's weights, or `otherwise` if the layer was quantised and has no weights in floating point.

    Replicas of DataParallel have weights, but no `parameters()`.
    """
    weight = getattr(layer, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else otherwise


class TimeEmbedding(nn.Module):
    """Sinusoidal features of a conditioning value, then an MLP (as in arXiv 2212.09748)."""

    num_features = 256

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.num_features, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, conditioning_B: Tensor) -> Tensor:
        """[B] to [B, C]."""
        half = self.num_features // 2
        conditioning_B = conditioning_B.to(weight_dtype(self.mlp[0], conditioning_B.dtype))
        index = torch.arange(half, dtype=conditioning_B.dtype, device=conditioning_B.device)
        angle = conditioning_B[:, None] * torch.exp(-math.log(10000) / half * index)
        return cast(Tensor, self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1)))


class Attention(nn.Module):
    """Self-attention with relative positions and a gate (arXiv 2303.09859, 2410.24159)."""

    operations = Operations()

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

    def forward(self, x_BTD: Tensor, relative_RD: Tensor, geometry: Geometry | Kernel) -> Tensor:
        """The sublayer's output [B, T, D], before dropout, for a normalised input.

        `relative_RD` is the relative-position table.
        """
        if type(self.in_proj_qk) is nn.Linear and type(self.in_proj_vg) is nn.Linear:
            # one product for query, key and value; another for the gate, which is used after the attention
            value_weight, gate_weight = self.in_proj_vg.weight.chunk(2)
            value_bias, gate_bias = self.in_proj_vg.bias.chunk(2)
            weight = torch.cat([self.in_proj_qk.weight, value_weight])
            bias = torch.cat([self.in_proj_qk.bias, value_bias])
            projected = F.linear(x_BTD, weight, bias)
            gate_BTD = F.linear(x_BTD, gate_weight, gate_bias)
        else:  # replaced by layers that compute more than their weight says, such as adapters
            value_BTD, gate_BTD = self.in_proj_vg(x_BTD).chunk(2, dim=-1)
            projected = torch.cat([self.in_proj_qk(x_BTD), value_BTD], dim=-1)

        relative_RD = dropout(relative_RD, self.dropout, self.training)
        query_pos, key_pos = split_heads(self.in_proj_qk(relative_RD) * self.scale, 2, self.num_heads)
        dropout_rate = self.dropout if self.training else 0.0
        context_BTD = self.operations.gated_attention(
            projected, gate_BTD, query_pos, key_pos, geometry, self.num_heads, self.scale, dropout_rate, self.eps
        )
        return cast(Tensor, self.out_proj(context_BTD))


class FeedForward(nn.Module):
    """GEGLU with a LayerNorm between the two matrices; no biases."""

    operations = Operations()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.eps = config.layer_norm_eps
        self.dropout = config.hidden_dropout_prob
        self.mlp = nn.ModuleDict(  # the keys are indices of the published nn.Sequential
            {"1": nn.Linear(width, 2 * inner, bias=False), "4": nn.Linear(inner, width, bias=False)}
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The sublayer's output [B, T, D], before dropout, for a normalised input."""
        return cast(Tensor, self.mlp["4"](self.operations.gated_halves(self.mlp["1"](x_BTD), self.eps)))


class DepthWeightedAverage(nn.Module):
    """The input of sublayer k + 1: a weighted sum of the embedding and the outputs of sublayers 1 .. k.

    The weights are learned, and initially select the last output (DenseFormer, arXiv 2402.02622).
    """

    def __init__(self, num_sublayers: int) -> None:
        super().__init__()
        self.alphas = nn.ParameterList(torch.zeros(k + 2) for k in range(num_sublayers))
        for alpha in self.alphas:
            nn.init.ones_(alpha[-1])

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """[B, T, D] from the embedding and all outputs so far."""
        return weighted_sum(self.alphas[len(outputs) - 2], outputs)


class Encoder(nn.Module):
    """The layers, with time modulation and depth-weighted averaging if the config has them."""

    operations = Operations()

    activation_checkpointing = False
    """Keep only the input of each sublayer, and repeat its forward pass in the backward pass (arXiv 1604.06174)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers = range(config.num_hidden_layers)
        self.eps = config.layer_norm_eps
        self.attention_layers = nn.ModuleList(Attention(config) for _ in layers)
        self.mlp_layers = nn.ModuleList(FeedForward(config) for _ in layers)
        if config.cond_dim is not None:
            self.adaLN_modulations = nn.ModuleList(nn.Linear(config.cond_dim, 6 * config.hidden_size) for _ in layers)
        self.dwa_modules = DepthWeightedAverage(2 * len(layers)) if config.depth_weighted_averaging else None

    def forward(
        self,
        x_BTD: Tensor,
        time_BC: Tensor | None,
        relative_RD: Tensor,
        geometry: Geometry | Kernel,
        layer_outputs: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D]; the input and the output of every layer are appended to `layer_outputs`."""
        if layer_outputs is not None:
            layer_outputs.append(x_BTD)
        outputs = [x_BTD]
        for layer, (attention, mlp) in enumerate(zip(self.attention_layers, self.mlp_layers, strict=True)):
            self_attention = functools.partial(attention, relative_RD=relative_RD, geometry=geometry)
            attention_change = mlp_change = None
            if time_BC is not None:
                linear = self.adaLN_modulations[layer]
                changes_BE = linear(time_BC)
                # in the parameters' precision: in bfloat16, 1 + scale would lose a small scale
                changes_BE = changes_BE.to(weight_dtype(linear, changes_BE.dtype))
                changes = changes_BE[:, None].chunk(6, dim=-1)
                attention_change, mlp_change = changes[:3], changes[3:]
            for sublayer, change, rate in (
                (self_attention, attention_change, cast(Attention, attention).dropout),
                (mlp, mlp_change, cast(FeedForward, mlp).dropout),
            ):
                residual = functools.partial(self.residual, sublayer, dropout_rate=rate if self.training else 0.0)
                if self.activation_checkpointing and torch.is_grad_enabled():
                    x_BTD = cast(Tensor, checkpoint(residual, x_BTD, change, use_reentrant=False))
                else:
                    x_BTD = residual(x_BTD, change)
                if self.dwa_modules is not None:
                    outputs.append(x_BTD)
                    x_BTD = self.dwa_modules(outputs)
            if layer_outputs is not None:
                layer_outputs.append(x_BTD)
        return x_BTD

    def residual(
        self,
        sublayer: Callable[[Tensor], Tensor],
        x_BTD: Tensor,
        change: tuple[Tensor, ...] | None,
        dropout_rate: float,
    ) -> Tensor:
        """x + gate * dropout(sublayer(LayerNorm(x) * (1 + scale) + shift)) (AdaLN-zero, arXiv 2212.09748).

        `change` is (shift, scale, gate), each [B, 1, D]; None is (0, 0, 1).
        """
        shift, scale, gate = change or (None, None, None)
        normal_BTD = self.operations.modulated_norm(x_BTD, shift, scale, self.eps, matmul_dtype(x_BTD))
        return self.operations.add_update(x_BTD, sublayer(normal_BTD), gate, dropout_rate)


class OutputBias(nn.Module):
    """The bias of the vocabulary matrix; the matrix itself is the word embedding."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))


class Head(nn.Module):
    """The layers before the vocabulary matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.dropout = config.hidden_dropout_prob
        self.nonlinearity = nn.ModuleDict(  # the keys are indices of the published nn.Sequential
            {"1": nn.Linear(config.hidden_size, config.hidden_size), "5": OutputBias(config.vocab_size)}
        )

    def forward(self, hidden_xD: Tensor) -> Tensor:
        """Features [.., D]: LayerNorm, Linear, GELU, LayerNorm, dropout."""
        normal_xD = layer_norm(hidden_xD, self.eps)
        features_xD = F.gelu(self.nonlinearity["1"](normal_xD))
        features_xD = layer_norm(features_xD, self.eps)
        return dropout(features_xD, self.dropout, self.training)


class Transformer(nn.Module):
    """Token ids to hidden states (`forward`), hidden states to features (`head`), features to logits (`logits`)."""

    geometry_of: Callable[..., Geometry | Kernel] = staticmethod(batch_geometry)
    """Replaced on an instance, it makes the model compute attention by another kernel."""

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
        """Weights: normal with std sqrt(2 / 5D), cut at 2 std; those of feed-forward sublayer k times sqrt(1 / 2k).

        Biases and AdaLN are 0; the affine LayerNorm and depth-weighted averaging keep their own initial values.
        """
        std = math.sqrt(2 / (5 * self.config.hidden_size))
        for name, parameter in self.named_parameters():
            if "adaLN" in name or name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif not name.startswith(("embedding.relative_layer_norm", "transformer.dwa_modules")):
                # Not `nn.init.trunc_normal_`: its draws differ between torch versions (2.13 samples by rejection), and
                # with them would the initial weights of a seed.  This is the inverse distribution function.
                bound = math.erf(math.sqrt(2))
                parameter.uniform_(-bound, bound).erfinv_().mul_(math.sqrt(2) * std).clamp_(-2 * std, 2 * std)
        for layer, mlp in enumerate(self.transformer.mlp_layers):
            for parameter in mlp.parameters():
                parameter.mul_(math.sqrt(1 / (2 * (1 + layer))))

    @property
    def output_weight_VD(self) -> Tensor:
        """The vocabulary matrix, tied to the word embedding."""
        return self.embedding.word_embedding.weight

    @property
    def output_bias_V(self) -> Tensor:
        """The bias of the vocabulary matrix."""
        return cast(Tensor, self.classifier.nonlinearity["5"].bias)

    def forward(
        self,
        ids_BT: Tensor,
        document_BT: Tensor | None = None,
        causal_B: Tensor | None = None,
        conditioning_B: Tensor | None = None,
        visibility: Visibility | Tensor | None = None,
        layer_outputs: list[Tensor] | None = None,
        context_BS: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] of the tokens.

        Args:
            ids_BT: int64 token ids, or word vectors [B, T, D] in their place
            document_BT: integer document within the row, -1 for padding; attention does not cross documents.  None:
                every row is one document
            causal_B: bool, rows in which a token attends only to itself and earlier tokens
            conditioning_B: float conditioning value, required if and only if the config has a `cond_dim`
            visibility: the keys of its document that a query attends to, [B, X], in place of `causal_B`; or
                bool[B, T, T], at least one key for each query, which is combined with `causal_B`
            layer_outputs: receives the embedded columns and the output of every layer, each [B, X, D]
            context_BS: int64 token ids of further copies of the row, S = c T: column x of the X = T + S columns has the
                place and the document of token x mod T; needs `visibility`

        Raises ValueError for rows longer than `max_position_embeddings`, and for a missing or surplus `conditioning_B`.
        """
        length, config = ids_BT.shape[1], self.config
        if not is_exporting() and length > config.max_position_embeddings:
            raise ValueError(
                f"rows of {length} tokens are longer than this model's max_position_embeddings,"
                f" {config.max_position_embeddings}"
            )
        if (conditioning_B is None) != (config.cond_dim is None):
            needs = "needs a" if conditioning_B is None else "takes no"
            raise ValueError(f"a model with cond_dim={config.cond_dim} {needs} conditioning value (conditioning_B)")
        copies = 0
        if context_BS is not None:
            copies = context_BS.shape[1] // length
            ids_BT = torch.cat([ids_BT, context_BS], dim=1)
            document_BT = None if document_BT is None else document_BT.repeat(1, 1 + copies)
        words_BXD, relative_RD = self.embedding(ids_BT)
        geometry = self.geometry_of(
            length,
            config.max_position_embeddings,
            config.position_bucket_size,
            document_BT,
            causal_B,
            visibility,
            like=words_BXD,
            copies=copies,
        )
        time_BC = None if conditioning_B is None else F.silu(self.sigma_map(conditioning_B))
        hidden_BXD = cast(Tensor, self.transformer(words_BXD, time_BC, relative_RD, geometry, layer_outputs))
        return hidden_BXD[:, :length] if copies else hidden_BXD

    def head(self, hidden_xD: Tensor) -> Tensor:
        """Hidden states [.., D] to features [.., D], the input of the vocabulary matrix."""
        return cast(Tensor, self.classifier(hidden_xD))

    def logits(self, features_xD: Tensor) -> Tensor:
        """Features [.., D] to logits [.., V]."""
        bias_V, words = self.output_bias_V, self.embedding.word_embedding
        if type(words) is nn.Embedding:
            weight_VD = words.weight
        else:  # replaced by a layer that computes more than its weight says, such as an adapter
            weight_VD = words(torch.arange(len(bias_V), device=bias_V.device))
        return F.linear(features_xD, weight_VD, bias_V)
