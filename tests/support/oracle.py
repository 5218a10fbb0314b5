"""The published model, formula by formula and slowly: what `ltg_mdlm.model.transformer` is compared with.

Written independently of it: positions as tensors [T, T, 2D] looked up for every pair, einsums, sequence first, one
dropout per place where the published model has one.  It shares only the names of the state dict and of the config.

Shapes are suffixes: T = Q = K tokens of a row (as queries, as keys), B rows, H heads, E width of a head, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def visible(document_BT: Tensor, causal_B: Tensor) -> Tensor:
    """bool[B, Q, K]: may the query see the key?"""
    rows, length = document_BT.shape
    seen = torch.zeros(rows, length, length, dtype=torch.bool)
    for b in range(rows):
        for q in range(length):
            for k in range(length):
                same = document_BT[b, q] == document_BT[b, k]
                seen[b, q, k] = same and (k <= q or not causal_B[b])
    return seen


def bucket(distance: int, max_positions: int, bucket_size: int) -> int:
    """The logarithmic bucket of query - key, with a margin for the ceiling's rounding."""
    middle, size = bucket_size // 2, abs(distance)
    if size <= middle:
        return distance
    fraction = math.log(size / middle) / math.log((max_positions - 1) / middle)
    return int(math.copysign(math.ceil(fraction * (middle - 1) - 1e-9) + middle, distance))


class Oracle:
    """The forward pass over a state dict (of tensors that may want gradients)."""

    def __init__(self, config: Any, state: Mapping[str, Tensor], training: bool = False) -> None:
        self.config, self.state, self.training = config, state, training
        length, size = config.max_position_embeddings, config.position_bucket_size
        self.position_indices_QK = torch.tensor(
            [[size - 1 + bucket(q - k, length, size) for k in range(length)] for q in range(length)]
        )

    def hidden(self, ids_BT: Tensor, visible_BQK: Tensor, conditioning_B: Tensor | None = None) -> Tensor:
        """The encoder's output [B, T, D]."""
        x_TBD = self.normalised(F.embedding(ids_BT.t(), self.state["embedding.word_embedding.weight"]))
        x_TBD = self.dropout(x_TBD, self.config.hidden_dropout_prob)
        relative_RD = F.layer_norm(
            self.state["embedding.relative_embedding"],
            [self.config.hidden_size],
            self.state["embedding.relative_layer_norm.weight"],
            self.state["embedding.relative_layer_norm.bias"],
            self.config.layer_norm_eps,
        )
        time_BC = None if conditioning_B is None else F.silu(self.time_embedding(conditioning_B))
        outputs = [x_TBD]
        for layer in range(self.config.num_hidden_layers):
            change = self.modulation(layer, time_BC)
            normal_TBD = self.normalised(x_TBD) * (1 + change[1]) + change[0]
            x_TBD = x_TBD + change[2] * self.attention(layer, normal_TBD, relative_RD, visible_BQK)
            x_TBD = self.averaged(2 * layer, x_TBD, outputs)
            normal_TBD = self.normalised(x_TBD) * (1 + change[4]) + change[3]
            x_TBD = x_TBD + change[5] * self.feed_forward(layer, normal_TBD)
            x_TBD = self.averaged(2 * layer + 1, x_TBD, outputs)
        return x_TBD.transpose(0, 1)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Vocabulary logits [B, T, V] from the encoder's output."""
        x_BTD = self.linear("classifier.nonlinearity.1", self.normalised(hidden_BTD))
        x_BTD = self.normalised(F.gelu(x_BTD))
        x_BTD = self.dropout(x_BTD, self.config.hidden_dropout_prob)
        return F.linear(
            x_BTD, self.state["embedding.word_embedding.weight"], self.state["classifier.nonlinearity.5.bias"]
        )

    def time_embedding(self, conditioning_B: Tensor) -> Tensor:
        features = []
        for function in (torch.cos, torch.sin):
            for k in range(128):
                features.append(function(conditioning_B * math.exp(-math.log(10000) * k / 128)))
        hidden_BC = F.silu(self.linear("sigma_map.mlp.0", torch.stack(features, dim=1)))
        return self.linear("sigma_map.mlp.2", hidden_BC)

    def modulation(self, layer: int, time_BC: Tensor | None) -> tuple[Any, ...]:
        """shift, scale, gate of the attention, then of the MLP."""
        if time_BC is None:
            return (0, 0, 1, 0, 0, 1)
        return self.linear(f"transformer.adaLN_modulations.{layer}", time_BC).unsqueeze(0).chunk(6, dim=-1)

    def averaged(self, sublayer: int, x_TBD: Tensor, outputs: list[Tensor]) -> Tensor:
        if not self.config.depth_weighted_averaging:
            return x_TBD
        outputs.append(x_TBD)
        return torch.tensordot(self.state[f"transformer.dwa_modules.alphas.{sublayer}"], torch.stack(outputs), dims=1)

    def attention(self, layer: int, x_TBD: Tensor, relative_RD: Tensor, visible_BQK: Tensor) -> Tensor:
        name = f"transformer.attention_layers.{layer}"
        length, rows, width = x_TBD.shape
        heads = self.config.num_attention_heads
        rate = self.config.attention_probs_dropout_prob
        scale = 1 / math.sqrt(3 * (width // heads))

        query_TBD, key_TBD = self.linear(f"{name}.in_proj_qk", x_TBD).chunk(2, dim=-1)
        value_TBD, gate_TBD = self.linear(f"{name}.in_proj_vg", x_TBD).chunk(2, dim=-1)
        query_QBHE = query_TBD.reshape(length, rows, heads, -1)
        key_KBHE = key_TBD.reshape(length, rows, heads, -1)
        value_KBHE = value_TBD.reshape(length, rows, heads, -1)

        position_R2D = self.linear(f"{name}.in_proj_qk", self.dropout(relative_RD, rate))
        position_QK2D = F.embedding(self.position_indices_QK[:length, :length], position_R2D)
        query_pos_QKD, key_pos_QKD = position_QK2D.chunk(2, dim=-1)
        query_pos_QKHE = query_pos_QKD.reshape(length, length, heads, -1)
        key_pos_QKHE = key_pos_QKD.reshape(length, length, heads, -1)

        score_BHQK = torch.einsum("qbhe,kbhe->bhqk", query_QBHE, key_KBHE * scale)
        score_BHQK = score_BHQK + torch.einsum("qbhe,qkhe->bhqk", query_QBHE, key_pos_QKHE * scale)
        score_BHQK = score_BHQK + torch.einsum("kbhe,qkhe->bhqk", key_KBHE * scale, query_pos_QKHE)
        score_BHQK = score_BHQK.masked_fill(~visible_BQK.unsqueeze(1), -math.inf)
        share_BHQK = self.dropout(torch.softmax(score_BHQK, dim=-1), rate)

        context_TBD = torch.einsum("bhqk,kbhe->qbhe", share_BHQK, value_KBHE).reshape(length, rows, width)
        context_TBD = self.normalised(context_TBD * F.gelu(gate_TBD))
        return self.dropout(self.linear(f"{name}.out_proj", context_TBD), rate)

    def feed_forward(self, layer: int, x_TBD: Tensor) -> Tensor:
        name = f"transformer.mlp_layers.{layer}.mlp"
        left_TBF, right_TBF = self.linear(f"{name}.1", x_TBD).chunk(2, dim=-1)
        inner_TBF = self.normalised(left_TBF * F.gelu(right_TBF, approximate="tanh"))
        return self.dropout(self.linear(f"{name}.4", inner_TBF), self.config.hidden_dropout_prob)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def normalised(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.config.layer_norm_eps)

    def dropout(self, x: Tensor, rate: float) -> Tensor:
        return F.dropout(x, rate, self.training)
