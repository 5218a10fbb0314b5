"""The config of an exported model for Hugging Face `transformers`; part of every exported model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers import PretrainedConfig

# transformers 4.51 copies only the files that this file itself imports, not what those import
from .attention import attend as attend
from .transformer import ModelConfig, TimeEmbedding
from .visibility import Visibility as Visibility


class LtgMdlmConfig(PretrainedConfig):
    """Sizes, named as in `ModelConfig`, and how the model was trained.

    Args:
        predicts: "same": masked tokens are predicted at their own position; "next": one position earlier (MNTP)
        backends: scores of the BabyLM evaluation pipeline (mlm, mntp, causal) that match the training objective
        mask_token_id: id of the mask token
        num_special_tokens: smaller ids are special tokens, which are never masked
        mask_rate: the rate that conditions the model if `forward` receives none: 0 ("zero"), `constant_rate`
            ("constant") or the masked fraction of the row ("fraction"); None for models without time conditioning
        constant_rate: the rate of mask_rate "constant"
        rate_intervals: intervals of the table of conditioning values; None if the value is the rate
        time_embedding: name of the class in time_embedding.py that embeds conditioning values
        mntp_shift: for predicts "next": whether `LtgMdlmForMaskedLM` moves the logits of token i to position i, where
            most programs read them (backend mlm); by default they stay at i - 1, where the backend mntp reads them
        block_length: tokens of a block; a token attends to its own block and to earlier ones (block diffusion). 0: no
            blocks
    """

    model_type = "ltg_mdlm"
    _auto_class = "AutoConfig"  # makes `save_pretrained` copy the code

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
        mntp_shift: bool = False,
        block_length: int = 0,
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
        self.mntp_shift = mntp_shift
        self.block_length = block_length
        super().__init__(**kwargs)

    def sizes(self) -> ModelConfig:
        """The sizes of the transformer."""
        return ModelConfig(**{field.name: getattr(self, field.name) for field in fields(ModelConfig)})
