"""A sequence classifier: a trained model, and a head on its first position.

Suffixes: B rows, T tokens per row, D width, L labels.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from ltg_mdlm.model.transformer import Transformer


class SequenceClassifier(nn.Module):
    """The head of the BabyLM evaluation suite on the hidden state of the first position.

    LayerNorm, Linear, GELU, LayerNorm (both without affine), dropout, Linear; torch's default initial weights.
    """

    def __init__(self, encoder: Transformer, labels: int, dropout: float) -> None:
        super().__init__()
        width, eps = encoder.config.hidden_size, encoder.config.layer_norm_eps
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.LayerNorm(width, eps, elementwise_affine=False),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps, elementwise_affine=False),
            nn.Dropout(dropout),
            nn.Linear(width, labels),
        )

    def forward(self, ids_BT: Tensor, document_BT: Tensor, value_B: Tensor | None) -> Tensor:
        """Logits [B, L]; the arguments are those of `Transformer`, without a causal mask."""
        hidden_BTD = self.encoder(ids_BT, document_BT, value_B=value_B)
        return cast(Tensor, self.head(hidden_BTD[:, 0])).float()


def trainable_copy(model: Transformer, dropout: float | None) -> Transformer:
    """A copy whose weights can be trained, all but those of the vocabulary head, which a classifier has no use for.

    `dropout`: of hidden states and attention; None as in `model`.
    """
    config = model.config
    if dropout is not None:
        config = replace(config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    embedding = None if config.cond_dim is None else copy.deepcopy(model.sigma_map)
    copied = Transformer(config, embedding).to(model.output_weight_VD.device)
    copied.load_state_dict(model.state_dict())
    copied.requires_grad_(True).classifier.requires_grad_(False)
    return copied
