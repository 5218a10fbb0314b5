"""What samplers ask of a model, and how a trained one answers.

Suffixes: B rows, T tokens per row, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltg_mdlm.evaluate.denoiser import Denoiser

Readout = Callable[[Tensor, Tensor], Tensor]
"""float32[N, V]: logits of the tokens that stand at (row_N, column_N)."""
Predictor = Callable[[Tensor, Tensor | None, Tensor], Readout]
"""A forward pass over (ids_BT with MASK where hidden, document_BT or None, mask rates [B] to tell the model)."""


def model_predictor(denoiser: Denoiser, *, causal: bool) -> Predictor:
    """Asks the model, in masked or in causal rows; logits are made only where they are read."""
    model, shift = denoiser.model, 1 if causal or denoiser.predicts == "next" else 0

    def predict(ids_BT: Tensor, document_BT: Tensor | None, rate_B: Tensor) -> Readout:
        causal_B = torch.ones_like(rate_B, dtype=torch.bool) if causal else None
        hidden_BTD = model(ids_BT, document_BT, causal_B, denoiser.value(rate_B.float(), causal))
        return lambda row_N, column_N: model.logits(model.head(hidden_BTD[row_N, column_N - shift])).float()

    return predict
