"""The classes of an exported model for Hugging Face `transformers` (4.51 to 5.x); part of every exported model.

The model itself is in `transformer.py`, the file that it was trained with.  The classes here convert attention masks,
choose the conditioning value and add heads.

Every tensor must be a parameter or a persistent buffer: `transformers` 5 builds models on the meta device, and tensors
that are not in the checkpoint are uninitialised afterwards.

Shapes are suffixes: B rows, T tokens per row, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import logging

# transformers 4.51 copies only the files that this file itself imports, not what those import
from .attention import attend as attend
from .configuration_ltg_mdlm import LtgMdlmConfig
from .rate_table import RateTable
from .time_embedding import EMBEDDING
from .transformer import OutputBias, Transformer

logger = logging.get_logger(__name__)


def convert_attention_mask(attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Convert a mask [B, T] or [B, T, T], 1 for attended tokens, to `document_BT` and `allowed_BTT` of `Transformer`.

    Raises ValueError for other shapes.
    """
    if attention_mask is None:
        return None, None
    seen = attention_mask.bool()
    if seen.dim() == 2:
        return seen.long() - 1, None
    if seen.dim() == 3:
        # every token attends to itself: a query without any key would have no probabilities
        return None, seen | torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)
    raise ValueError(f"attention_mask must be [B, T] or [B, T, T], not {list(attention_mask.shape)}")


def masked_fraction(input_ids: Tensor, attention_mask: Tensor | None, config: LtgMdlmConfig) -> Tensor:
    """float32[B]: the masked fraction of a row's maskable tokens; 0 for a row without maskable tokens."""
    masked_BT = input_ids == config.mask_token_id
    maskable_BT = masked_BT | (input_ids >= config.num_special_tokens)
    if attention_mask is not None:
        real_BT = attention_mask.bool() if attention_mask.dim() == 2 else attention_mask.bool().any(1)
        masked_BT, maskable_BT = masked_BT & real_BT, maskable_BT & real_BT
    return masked_BT.sum(1) / maskable_BT.sum(1).clamp(min=1)


def cross_entropy(logits: Tensor, labels: Tensor, *, shift: bool) -> Tensor:
    """The mean over labels other than -100; with `shift`, each label is predicted one position earlier."""
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


class LtgMdlmPreTrainedModel(PreTrainedModel):
    """The transformer and its conditioning value.

    Subclasses set `_auto_class`; transformers 4.51 would not save the code with the model otherwise.
    """

    config_class = LtgMdlmConfig
    with_head = True
    """Whether `denoiser` keeps the layers before the vocabulary matrix."""

    def __init__(self, config: LtgMdlmConfig) -> None:
        """Raises ValueError if time_embedding.py belongs to another model."""
        super().__init__(config)
        if config.cond_dim is not None and EMBEDDING.__name__ != config.time_embedding:
            raise ValueError(
                f"this model's time embedding is {config.time_embedding}, but time_embedding.py defines"
                f" {EMBEDDING.__name__}: transformers loads the code of folders with the same name only once; rename"
                " one of the folders"
            )
        sizes = config.sizes()
        self.denoiser = Transformer(sizes, None if sizes.cond_dim is None else EMBEDDING(sizes.cond_dim))
        if not self.with_head:
            del self.denoiser.classifier
        if config.rate_intervals is not None:
            self.rate_table = RateTable(config.rate_intervals)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.denoiser.embedding.word_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.denoiser.embedding.word_embedding = value

    def head(self) -> nn.Module | None:
        """The part that is missing in checkpoints of another class; None if there is none."""
        return getattr(self.denoiser, "classifier", None)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a new head; all other modules come from the checkpoint or were initialised by `Transformer`."""
        head = self.head()
        if head is None or all(module is not part for part in head.modules()):
            return
        if isinstance(module, nn.Linear):
            std = (2 / (5 * self.config.hidden_size)) ** 0.5
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(module, nn.Linear | OutputBias):
            nn.init.zeros_(module.bias)

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        mask_rate: float | Tensor | None,
        *,
        causal: bool = False,
    ) -> Tensor:
        """Hidden states [B, T, D]; the arguments are those of `LtgMdlmModel.forward`."""
        document_BT, allowed_BTT = convert_attention_mask(attention_mask)
        causal_B = torch.ones_like(input_ids[:, 0], dtype=torch.bool) if causal else None
        value_B = self.conditioning_value(input_ids, attention_mask, mask_rate, causal=causal)
        hidden: Tensor = self.denoiser(input_ids, document_BT, causal_B, value_B, allowed_BTT)
        return hidden

    def conditioning_value(
        self, input_ids: Tensor, attention_mask: Tensor | None, mask_rate: float | Tensor | None, *, causal: bool
    ) -> Tensor | None:
        """float32[B]; None for a model without time conditioning, which raises ValueError if it is given a rate."""
        if self.config.cond_dim is None:
            if mask_rate is not None:
                raise ValueError("this model has no time conditioning: mask_rate must be None")
            return None
        if mask_rate is None and causal:
            return torch.zeros_like(input_ids[:, 0], dtype=torch.float32)  # as in the training of causal rows
        if mask_rate is None:
            if self.config.mask_rate == "fraction":
                mask_rate = masked_fraction(input_ids, attention_mask, self.config)
            else:
                mask_rate = 0.0 if self.config.mask_rate == "zero" else float(self.config.constant_rate)
        rate_B = torch.as_tensor(mask_rate, dtype=torch.float32, device=input_ids.device).expand(input_ids.shape[0])
        return self.rate_table(rate_B) if self.config.rate_intervals is not None else rate_B


class LtgMdlmModel(LtgMdlmPreTrainedModel):
    """Token ids to hidden states; bidirectional."""

    _auto_class = "AutoModel"
    with_head = False
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"denoiser\.classifier\."]

    def __init__(self, config: LtgMdlmConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        mask_rate: float | Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """`last_hidden_state` [B, T, D].

        Args:
            input_ids: [B, T]
            attention_mask: 1 for tokens that are attended to, [B, T] or [B, T (query), T (key)]
            mask_rate: one for all rows, or [B]; the default depends on `config.mask_rate`
            kwargs: ignored; pipelines pass arguments of other models
        """
        return BaseModelOutput(last_hidden_state=self.hidden(input_ids, attention_mask, mask_rate))


class LtgMdlmForMaskedLM(LtgMdlmPreTrainedModel):
    """Token ids to logits; bidirectional.

    If `config.predicts` is "same", the logits of token i are at position i; if it is "next", they are at position
    i - 1, where the evaluation backend `mntp` reads them.
    """

    _auto_class = "AutoModelForMaskedLM"

    def __init__(self, config: LtgMdlmConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        mask_rate: float | Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """`logits` [B, T, V], and `loss` if `labels` [B, T] are given: ids of masked tokens, -100 elsewhere.

        The other arguments are those of `LtgMdlmModel`.
        """
        logits = self.denoiser.logits(self.denoiser.head(self.hidden(input_ids, attention_mask, mask_rate)))
        if labels is None:
            return MaskedLMOutput(logits=logits)
        shift = self.config.predicts == "next"
        return MaskedLMOutput(loss=cross_entropy(logits, labels, shift=shift), logits=logits)


class LtgMdlmForCausalLM(LtgMdlmPreTrainedModel):
    """Token ids to logits of the next token; every token attends to itself and to earlier tokens."""

    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: LtgMdlmConfig) -> None:
        super().__init__(config)
        if "causal" not in config.backends:
            logger.warning_once(
                "this model was not trained to predict the next token: its causal scores are meaningless"
            )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        mask_rate: float | Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """`logits` [B, T, V], and `loss` if `labels` [B, T] are given: the input ids, -100 for ignored tokens.

        The other arguments are those of `LtgMdlmModel`, but `mask_rate` is 0 by default.
        """
        hidden = self.hidden(input_ids, attention_mask, mask_rate, causal=True)
        logits = self.denoiser.logits(self.denoiser.head(hidden))
        loss = None if labels is None else cross_entropy(logits, labels, shift=True)
        return CausalLMOutput(loss=loss, logits=logits)


class LtgMdlmForSequenceClassification(LtgMdlmPreTrainedModel):
    """The hidden state of the first token to `config.num_labels` logits; the head is built like `transformer.Head`."""

    _auto_class = "AutoModelForSequenceClassification"
    with_head = False
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"denoiser\.classifier\."]

    def __init__(self, config: LtgMdlmConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.score = nn.Sequential(
            nn.LayerNorm(width, eps=config.layer_norm_eps, elementwise_affine=False),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=config.layer_norm_eps, elementwise_affine=False),
            nn.Dropout(config.hidden_dropout_prob),
            nn.Linear(width, config.num_labels),
        )
        self.post_init()

    def head(self) -> nn.Module:
        return self.score

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        mask_rate: float | Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """`logits` [B, labels], and `loss` if `labels` are given: classes [B], or values [B] if there is one label.

        The other arguments are those of `LtgMdlmModel`.
        """
        logits = self.score(self.hidden(input_ids, attention_mask, mask_rate)[:, 0])
        if labels is None:
            return SequenceClassifierOutput(logits=logits)
        loss = F.mse_loss(logits[:, 0], labels.float()) if logits.shape[1] == 1 else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
