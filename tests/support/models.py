"""Small models with every parameter away from its initial value, and packed rows for them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from ltg_mdlm.model.transformer import ModelConfig, Transformer

VOCAB = 50


def small_config(**changes: Any) -> ModelConfig:
    """Two layers, three heads, no dropout."""
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "position_bucket_size": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "cond_dim": 16,
    }
    return ModelConfig(**(sizes | changes))


def disturbed_model(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Transformer:
    """A model in which no parameter is still where initialisation left it (AdaLN starts as the identity)."""
    torch.manual_seed(seed)
    model = Transformer(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def packed(*lengths: int, pad: int = 0) -> Tensor:
    """int32[T]: documents of these lengths, one after the other, then padding."""
    documents = [document for document, length in enumerate(lengths) for _ in range(length)]
    return torch.tensor(documents + [-1] * pad, dtype=torch.int32)


@st.composite
def packed_rows(draw: st.DrawFn, max_length: int = 24) -> tuple[Tensor, Tensor]:
    """(document_BT, causal_B): up to three rows of one length, each cut into documents and padding at random."""
    length = draw(st.integers(1, max_length))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        used = draw(st.integers(0, length))
        cuts = sorted(draw(st.lists(st.integers(0, used), max_size=3)))
        rows.append(packed(*(b - a for a, b in zip([0, *cuts], [*cuts, used], strict=True)), pad=length - used))
    causal = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    return torch.stack(rows), torch.tensor(causal)
