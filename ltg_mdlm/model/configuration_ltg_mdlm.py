"""The config of an exported model, for Hugging Face `transformers`; travels with it as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers import PretrainedConfig

from .transformer import ModelConfig, TimeEmbedding


class LtgMdlmConfig(PretrainedConfig):
    """Sizes, under the names of `ModelConfig`, and how the model wants to be used.

    Args:
        predicts: "same": masked tokens are predicted at their own position; "next": one position earlier (MNTP)
        backends: scores of the BabyLM evaluation pipeline (mlm, mntp, causal) that fit what was trained
        num_special_tokens: ids below this one are never masked, other than `mask_token_id` itself
        mask_rate: what a model with time conditioning is told where `forward` gets no rate: that nothing is masked
            ("zero"), `constant_rate` ("constant"), or the share of the row's tokens that are ("fraction")
        constant_rate: the rate of mask_rate "constant"
        rate_intervals: intervals of the table of conditioning values; None where the value is the rate
        time_embedding: the class in time_embedding.py that embeds conditioning values, if there are any
    """

    model_type = "ltg_mdlm"
    _auto_class = "AutoConfig"  # `save_pretrained` takes the code along

    def __init__(
        self,
        predicts: str = "same",
        backends: Sequence[str] = ("mlm",),
        mask_token_id: int = 4,
        num_special_tokens: int = 16,
        mask_rate: str | None = None,
        constant_rate: float | None = None,
        rate_intervals: int | None = None,
        time_embedding: str = TimeEmbedding.__name__,
        **kwargs: Any,
    ) -> None:
        for field in fields(ModelConfig):
            setattr(self, field.name, kwargs.pop(field.name, field.default))
        self.predicts = predicts
        self.backends = list(backends)
        self.mask_token_id = mask_token_id
        self.num_special_tokens = num_special_tokens
        self.mask_rate = mask_rate
        self.constant_rate = constant_rate
        self.rate_intervals = rate_intervals
        self.time_embedding = time_embedding
        super().__init__(**kwargs)

    def sizes(self) -> ModelConfig:
        """What the transformer is built from."""
        return ModelConfig(**{field.name: getattr(self, field.name) for field in fields(ModelConfig)})
