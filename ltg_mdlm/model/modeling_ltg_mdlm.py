"""The classes of an exported model for Hugging Face `transformers` (4.51 to 5.x); part of every exported model.

The model itself is in `transformer.py`, the file that it was trained with.  The classes here convert attention masks,
choose the conditioning value and add heads.

Every tensor must be a parameter or a persistent buffer: `transformers` 5 builds models on the meta device, and tensors
that are not in the checkpoint are uninitialised afterwards.

Shapes are suffixes: B rows, T tokens per row, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    MaskedLMOutput,
    ModelOutput,
    SequenceClassifierOutput,
)
from transformers.utils import logging

# transformers 4.51 copies only the files that this file itself imports, not what those import
from .attention import attend as attend
from .configuration_ltg_mdlm import LtgMdlmConfig
from .rate_table import RateTable
from .time_embedding import EMBEDDING
from .transformer import OutputBias, Transformer
from .visibility import Visibility, block_visibility

logger = logging.get_logger(__name__)


def convert_attention_mask(attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Convert a mask [B, T] or [B, T, T], 1 for attended tokens, to `document_BT` or to `visibility` of `Transformer`.

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


def attended(attention_mask: Tensor) -> Tensor:
    """bool[B, T]: tokens that any token attends to, from a mask of either shape."""
    return attention_mask.bool() if attention_mask.dim() == 2 else attention_mask.bool().any(1)


def masked_fraction(input_ids: Tensor, attention_mask: Tensor | None, config: LtgMdlmConfig) -> Tensor:
    """float32[B]: the masked fraction of a row's maskable tokens; 0 for a row without maskable tokens."""
    masked_BT = input_ids == config.mask_token_id
    maskable_BT = masked_BT | (input_ids >= config.num_special_tokens)
    if attention_mask is not None:
        real_BT = attended(attention_mask)
        masked_BT, maskable_BT = masked_BT & real_BT, maskable_BT & real_BT
    return masked_BT.sum(1) / maskable_BT.sum(1).clamp(min=1)


def cross_entropy(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None, *, shift: bool) -> Tensor:
    """The mean over labels other than -100; 0 if there are none.  With `shift`, labels stand one position later.

    If `num_items_in_batch` is given, it is the denominator: the `Trainer` of transformers counts the labels of all
    micro-batches of an optimizer step, and then does not divide by the number of micro-batches.
    """
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    labels = labels.to(logits.device).long()
    total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum")
    count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def classification_loss(
    logits: Tensor, labels: Tensor, problem_type: str | None, num_items_in_batch: Tensor | int | None
) -> Tensor:
    """The mean loss of logits [B, L], or the sum divided by `num_items_in_batch`, see `cross_entropy`.

    Args:
        logits: [B, L]
        labels: values [B] or [B, L] for "regression", classes [B] for "single_label_classification", 0 or 1 [B, L]
            for "multi_label_classification"
        problem_type: one of these; if it is None, one label is a regression, integers [B] are classes, and other
            labels are those of a multi-label classification

    Raises ValueError for labels that do not fit.
    """
    if problem_type is None and logits.shape[1] == 1:
        problem_type = "regression"
    elif problem_type is None:
        classes = labels.numel() == len(logits) and not labels.is_floating_point()
        problem_type = "single_label_classification" if classes else "multi_label_classification"
    expected = len(logits) if problem_type == "single_label_classification" else logits.numel()
    if labels.numel() != expected:
        raise ValueError(
            f"labels {list(labels.shape)} do not fit problem_type {problem_type} with {logits.shape[1]} labels"
            f" and {len(logits)} rows: {expected} values are needed"
        )
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels, num_items_in_batch, shift=False)
    logits, values = logits.float(), labels.to(logits.device, torch.float32).view_as(logits)
    if problem_type == "regression":
        total = F.mse_loss(logits, values, reduction="sum")
    elif problem_type == "multi_label_classification":
        total = F.binary_cross_entropy_with_logits(logits, values, reduction="sum")
    else:
        raise ValueError(
            f"problem_type {problem_type}: choose regression, single_label_classification or multi_label_classification"
        )
    count = logits.numel() if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count, device=total.device)


class LtgMdlmPreTrainedModel(PreTrainedModel):
    """The transformer and its conditioning value.

    Subclasses set `_auto_class`; transformers 4.51 would not save the code with the model otherwise.
    """

    config_class = LtgMdlmConfig
    supports_gradient_checkpointing = True
    # `attention.attend` chooses the kernel; both names are accepted, because both formulas are the same
    _supports_sdpa = True
    # hooks of accelerate move weights when a module is called, and the vocabulary matrix is used outside of its module
    _no_split_modules: ClassVar[list[str]] = ["Transformer"]
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
        """Replace the word embedding, which is also the vocabulary matrix; the output bias gets the same length.

        `resize_token_embeddings` calls this. New tokens have bias 0.
        """
        self.denoiser.embedding.word_embedding = value
        size = value.weight.shape[0]
        self.denoiser.config = replace(self.denoiser.config, vocab_size=size)
        if self.with_head and size != len(self.denoiser.output_bias_V):
            output, old = self.denoiser.classifier.nonlinearity["5"], self.denoiser.output_bias_V
            new = F.pad(old.detach()[:size], (0, max(size - len(old), 0)))
            output.bias = nn.Parameter(new, requires_grad=old.requires_grad)

    def get_output_embeddings(self) -> None:
        """None: the vocabulary matrix is the word embedding, and no module of its own."""

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether sublayers are computed again in the backward pass; set by `gradient_checkpointing_enable`."""
        return bool(self.denoiser.transformer.activation_checkpointing)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled: bool) -> None:
        self.denoiser.transformer.activation_checkpointing = enabled

    def head(self) -> nn.Module | None:
        """The part that is missing in checkpoints of another class; None if there is none."""
        return getattr(self.denoiser, "classifier", None)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a new head, and the embedding that `resize_token_embeddings` makes.

        All other modules come from the checkpoint or were initialised by `Transformer`.
        """
        head = self.head()
        new = isinstance(module, nn.Embedding) and all(module is not part for part in self.modules())
        if not new and (head is None or all(module is not part for part in head.modules())):
            return
        if isinstance(module, nn.Linear | nn.Embedding):
            std = (2 / (5 * self.config.hidden_size)) ** 0.5
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(module, nn.Linear | OutputBias):
            nn.init.zeros_(module.bias)

    def encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        mask_rate: float | Tensor | None,
        inputs_embeds: Tensor | None,
        *,
        causal: bool = False,
        in_blocks: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Hidden states; the arguments are those of `LtgMdlmModel.forward`.

        With `in_blocks`, a token attends to its block of `config.block_length` tokens and to earlier ones, if the model
        was trained so.  Raises ValueError for arguments that would otherwise be ignored with an effect on the results.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError("output_attentions: the attention of this model does not return its probabilities")
        for name in ("past_key_values", "cache"):
            cache = kwargs.get(name)
            if cache is not None and (not hasattr(cache, "get_seq_length") or cache.get_seq_length() > 0):
                raise ValueError(f"{name}: this model has no cache; call it with all tokens (use_cache=False)")
        tokens = inputs_embeds if input_ids is None else input_ids
        assert tokens is not None
        document_BT, allowed_BTT = convert_attention_mask(attention_mask)
        visibility: Visibility | Tensor | None = allowed_BTT
        if self.config.block_length and in_blocks and not causal:
            one_BT = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
            blocks = block_visibility(one_BT if document_BT is None else document_BT, self.config.block_length)
            visibility = blocks if allowed_BTT is None else allowed_BTT & blocks.matrix()
        causal_B = torch.ones(tokens.shape[0], dtype=torch.bool, device=tokens.device) if causal else None
        conditioning_B = self.conditioning_value(tokens, attention_mask, mask_rate, causal=causal)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states: list[Tensor] | None = [] if wanted else None
        hidden = self.denoiser(tokens, document_BT, causal_B, conditioning_B, visibility, states)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=None if states is None else tuple(states))

    def returned(self, output: ModelOutput, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """The output, or a tuple of its values if `return_dict` or the config says so."""
        if return_dict is None:
            return_dict = self.config.return_dict and not getattr(self.config, "torchscript", False)
        return output if return_dict else output.to_tuple()

    def conditioning_value(
        self, tokens: Tensor, attention_mask: Tensor | None, mask_rate: float | Tensor | None, *, causal: bool
    ) -> Tensor | None:
        """float32[B] for ids [B, T] or word vectors [B, T, D]; None for a model without time conditioning.

        Raises ValueError for a rate without time conditioning, and if the rate would have to be counted in vectors.
        """
        if self.config.cond_dim is None:
            if mask_rate is not None:
                raise ValueError("this model has no time conditioning: mask_rate must be None")
            return None
        if mask_rate is None and causal:
            # as in the training of causal rows
            return torch.zeros(tokens.shape[0], dtype=torch.float32, device=tokens.device)
        if mask_rate is None:
            if self.config.mask_rate == "fraction" and tokens.is_floating_point():
                raise ValueError(
                    "this model is conditioned on the masked fraction of input_ids, which cannot be counted in"
                    " inputs_embeds: give mask_rate"
                )
            if self.config.mask_rate == "fraction":
                mask_rate = masked_fraction(tokens, attention_mask, self.config)
            else:
                mask_rate = 0.0 if self.config.mask_rate == "zero" else float(self.config.constant_rate)
        rate_B = torch.as_tensor(mask_rate, dtype=torch.float32, device=tokens.device).expand(tokens.shape[0])
        conditioning_B: Tensor = self.rate_table(rate_B) if self.config.rate_intervals is not None else rate_B
        # a plugin's embedding may not convert the value when the model is loaded in half precision
        floats = (p for p in self.denoiser.sigma_map.parameters() if p.is_floating_point())  # not if quantised
        parameter = next(floats, conditioning_B)
        return conditioning_B.to(parameter.dtype)


class LtgMdlmModel(LtgMdlmPreTrainedModel):
    """Token ids to hidden states; bidirectional, within blocks if the config has a `block_length`."""

    _auto_class = "AutoModel"
    with_head = False
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"denoiser\.classifier\."]

    def __init__(self, config: LtgMdlmConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mask_rate: float | Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """`last_hidden_state` [B, T, D].

        Args:
            input_ids: [B, T]
            attention_mask: 1 for tokens that are attended to, [B, T] or [B, T (query), T (key)]
            mask_rate: one for all rows, or [B]; the default depends on `config.mask_rate`
            inputs_embeds: rows of the word embedding, [B, T, D], instead of `input_ids`
            kwargs: `output_hidden_states` adds `hidden_states`, a tuple of the embedded tokens and the output of every
                layer; `return_dict=False` returns a tuple; `output_attentions` and a filled cache are refused; the
                arguments of other models are ignored
        """
        return self.returned(self.encode(input_ids, attention_mask, mask_rate, inputs_embeds, **kwargs), **kwargs)


@dataclass
class MntpOutput(MaskedLMOutput):
    """Logits of token i at position i - 1, as the evaluation backend `mntp` reads them.

    The `fill-mask` pipeline reads them at the masked position. It is recognised by the input ids that it adds to the
    output; the logits are then moved to position i.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "input_ids":
            super().__setitem__("logits", shifted_logits(self["logits"]))
        super().__setitem__(key, value)


def shifted_logits(logits: Tensor) -> Tensor:
    """Logits of token i moved from position i - 1 to i; those of the first token, which has no prediction, are 0."""
    return torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], dim=1)


class LtgMdlmForMaskedLM(LtgMdlmPreTrainedModel):
    """Token ids to logits; bidirectional, within blocks if the config has a `block_length`.

    If `config.predicts` is "same", the logits of token i are at position i. If it is "next", they are at position
    i - 1, where the evaluation backend `mntp` reads them, or at position i if `config.mntp_shift` is set:
    `from_pretrained(PATH, trust_remote_code=True, mntp_shift=True)`.
    """

    _auto_class = "AutoModelForMaskedLM"

    def __init__(self, config: LtgMdlmConfig) -> None:
        super().__init__(config)
        if config.predicts == "next" and not config.mntp_shift:
            logger.warning_once(
                "this model predicts the token of position i at position i - 1 (evaluation backend mntp); for programs"
                " that read the logits at the masked position, load it with mntp_shift=True"
            )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mask_rate: float | Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """`logits` [B, T, V], and `loss` if `labels` [B, T] are given: ids of masked tokens, -100 elsewhere.

        `num_items_in_batch` is described at `cross_entropy`, the other arguments at `LtgMdlmModel`.
        """
        encoded = self.encode(input_ids, attention_mask, mask_rate, inputs_embeds, **kwargs)
        logits = self.denoiser.logits(self.denoiser.head(encoded.last_hidden_state))
        one_earlier = self.config.predicts == "next"
        loss = None if labels is None else cross_entropy(logits, labels, num_items_in_batch, shift=one_earlier)
        if one_earlier and self.config.mntp_shift:
            logits, one_earlier = shifted_logits(logits), False
        output = MntpOutput if one_earlier else MaskedLMOutput
        return self.returned(output(loss=loss, logits=logits, hidden_states=encoded.hidden_states), **kwargs)


class LtgMdlmForCausalLM(LtgMdlmPreTrainedModel, GenerationMixin):
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
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mask_rate: float | Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """`logits` [B, T, V], and `loss` if `labels` [B, T] are given: the input ids, -100 for ignored tokens.

        `num_items_in_batch` is described at `cross_entropy`, the other arguments at `LtgMdlmModel`, but `mask_rate` is
        0 by default.
        """
        encoded = self.encode(input_ids, attention_mask, mask_rate, inputs_embeds, causal=True, **kwargs)
        logits = self.denoiser.logits(self.denoiser.head(encoded.last_hidden_state))
        loss = None if labels is None else cross_entropy(logits, labels, num_items_in_batch, shift=True)
        return self.returned(CausalLMOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states), **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as described at `GenerationMixin.generate`, without a cache, which this model does not have."""
        return super().generate(*args, **kwargs | {"use_cache": False})

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The arguments of `forward` for the next token: all tokens so far."""
        passed_on = ("mask_rate", "output_hidden_states", "output_attentions", "return_dict")
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return inputs | {name: kwargs[name] for name in passed_on if kwargs.get(name) is not None}


class LtgMdlmForSequenceClassification(LtgMdlmPreTrainedModel):
    """The hidden state of the first token to `config.num_labels` logits; the head is built like `transformer.Head`.

    The first token attends to the whole text, also in a model with blocks, in which it would see its own block only.
    """

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
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mask_rate: float | Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """`logits` [B, labels], and `loss` if `labels` are given, see `classification_loss` and `config.problem_type`.

        The first token is the first that is attended to: with padding on the left, it is not at position 0. The other
        arguments are those of `LtgMdlmModel`.
        """
        encoded = self.encode(input_ids, attention_mask, mask_rate, inputs_embeds, in_blocks=False, **kwargs)
        hidden = encoded.last_hidden_state
        if attention_mask is None:
            first_BD = hidden[:, 0]
        else:
            first_B = attended(attention_mask).long().argmax(1)
            first_BD = hidden[torch.arange(hidden.shape[0], device=hidden.device), first_B]
        logits = self.score(first_BD)
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config.problem_type, num_items_in_batch)
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
        return self.returned(output, **kwargs)
