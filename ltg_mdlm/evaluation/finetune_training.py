"""Fine-tuning on one task with one seed: a deterministic function of weights, examples, settings and seed.

Shape suffixes: B rows, T tokens per row, N items, D width, L labels. The items are what has a class: the rows, or the
words of all rows.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.machine import bf16_for
from ltg_mdlm.core.optimizer import ParameterGroup
from ltg_mdlm.core.random import permutation, stream_key
from ltg_mdlm.core.terminal import Advance
from ltg_mdlm.data.tokenizer import BOS, PAD, Tokenizer
from ltg_mdlm.evaluation.finetune_tasks import Example, FinetuneSettings, FinetuneTask, Label, MetricName, scores
from ltg_mdlm.inference.trained_model import TrainedModel
from ltg_mdlm.model.transformer import Transformer
from ltg_mdlm.model.visibility import block_visibility
from ltg_mdlm.training.assembly import tokens_per_micro_batch
from ltg_mdlm.training.optimizers import AdamW, learning_rate_factor


@dataclass(frozen=True)
class EncodedExamples:
    """The examples of one file as token ids.

    Attributes:
        ids: tokens of every row: `<s> first <s> second`, or `<s> first`.
        labels: index of the class of every item.
        truncated: number of rows that were cut to fit.
        word_tokens: for every row the number of tokens of each of its words, which follow `<s>`; None if items are
            rows.
    """

    ids: list[list[int]]
    labels: list[int]
    truncated: int
    word_tokens: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def items(self) -> list[range]:
        """The items of every row."""
        counts = [1] * len(self.ids) if self.word_tokens is None else map(len, self.word_tokens)
        ends = list(accumulate(counts, initial=0))
        return [range(start, end) for start, end in pairwise(ends)]


@dataclass(frozen=True)
class EncodedTask:
    """A task, the labels of its classes, and the examples of its splits; only tagging has a split for tests."""

    task: FinetuneTask
    classes: Sequence[Label]
    train: EncodedExamples
    valid: EncodedExamples
    test: EncodedExamples | None = None

    @property
    def selects(self) -> MetricName:
        """The metric that selects the best epoch and ends training; F1 for two classes of the multilingual track."""
        return "f1" if self.task.classes is None and len(self.classes) == 2 else self.task.selects


@dataclass(frozen=True)
class Epoch:
    """Results of one pass over the training file.

    Attributes:
        loss: mean cross-entropy of the training items, in nats.
        metrics: metrics on the validation items.
        predictions: predicted class of every validation item.
        test_predictions: predicted class of every test item.
    """

    loss: float
    metrics: Mapping[MetricName, float]
    predictions: list[int]
    test_predictions: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class FinetuneRun:
    """All epochs of one seed."""

    seed: int
    epochs: list[Epoch]
    best: int
    """Index of the epoch that counts."""
    seconds: float

    @property
    def best_epoch(self) -> Epoch:
        return self.epochs[self.best]


def finetune_once(
    trained: TrainedModel,
    data: EncodedTask,
    settings: FinetuneSettings,
    seed: int,
    *,
    advance: Advance = lambda amount: None,
) -> FinetuneRun:
    """Fine-tune a copy of the model with one seed; `advance` is told about finished parts of `work_per_seed`.

    As in the official suite, the best epoch is selected on the validation file, and its metrics on the same file are
    reported. They are therefore slightly higher than the metrics on held-out text would be. With `keep="last"`, the
    last epoch counts, and `patience` decides which one is the last.

    Raises UserError if a loss or gradient is not finite.
    """
    start = time.monotonic()
    finetuning = Finetuning(trained, data, settings, seed)
    epochs: list[Epoch] = []
    highest, waited = -math.inf, 0
    for number in range(settings.epochs):
        epochs.append(finetuning.epoch(number, advance))
        value = epochs[-1].metrics[data.selects]
        waited = 0 if value > highest + 0.001 else waited + 1
        highest = max(highest, value)
        if waited == settings.patience:
            break
    first_best = max(range(len(epochs)), key=lambda number: epochs[number].metrics[data.selects])
    best = first_best if settings.keep == "best" else len(epochs) - 1
    return FinetuneRun(seed, epochs, best, time.monotonic() - start)


def steps_per_epoch(data: EncodedTask, settings: FinetuneSettings) -> int:
    """As in the official scripts, rows that do not fill a step are dropped, different ones in every epoch.

    In tagging they are the last step.
    """
    if data.task.tags_words:
        return math.ceil(len(data.train) / settings.batch_rows)
    return max(1, len(data.train) // settings.batch_rows)


def work_per_seed(data: EncodedTask, settings: FinetuneSettings) -> int:
    """Forward passes of rows in all epochs; a row that is trained on counts as three, for its backward pass."""
    trained = min(steps_per_epoch(data, settings) * settings.batch_rows, len(data.train))
    evaluated = len(data.valid) + (len(data.test) if data.test else 0)
    return settings.epochs * (3 * trained + evaluated)


class Finetuning:
    """A classifier in training."""

    def __init__(self, trained: TrainedModel, data: EncodedTask, settings: FinetuneSettings, seed: int) -> None:
        """Copies the model, which is not changed."""
        self._data, self._settings, self._seed = data, settings, seed
        self._value_for_rate = trained.value_for_rate
        self._device = trained.model.output_weight_VD.device
        self._bf16 = bf16_for(settings.precision, self._device)
        self._budget = tokens_per_micro_batch(self._device)
        # For the initial weights of the head and for dropout; the order of the rows has its own random stream.
        torch.manual_seed(stream_key(seed, "fine-tuning", data.task.name)[0])
        encoder = trainable_copy(trained.model, settings.dropout)
        self._classifier: SequenceClassifier | WordTagger
        if data.task.tags_words:
            self._classifier = WordTagger(
                encoder, len(data.classes), settings.head_dropout, block_length=trained.block_length
            )
        else:
            self._classifier = SequenceClassifier(
                encoder,
                len(data.classes),
                settings.head_dropout,
                pooling=settings.pooling,
                block_length=trained.block_length,
            )
        self._classifier.to(self._device)
        trainable = {name: p for name, p in self._classifier.named_parameters() if p.requires_grad}
        self._optimizer = AdamW(
            [ParameterGroup(trainable, settings.weight_decay)],
            betas=settings.betas,
            eps=settings.eps,
            max_norm=settings.clip or math.inf,
        )
        self._steps_per_epoch = steps_per_epoch(data, settings)
        self._next_step = 0

    def epoch(self, number: int, advance: Advance) -> Epoch:
        """Train for one epoch and evaluate. Raises UserError if a loss or gradient was not finite."""
        self._classifier.train()
        total = torch.zeros((), device=self._device)
        trained_items = 0
        for chosen in self._batches(number):
            total += self._step(chosen)
            trained_items += sum(len(self._data.train.items[row]) for row in chosen)
            advance(3 * len(chosen))
        valid = self._data.valid
        if refused := int(self._optimizer.refused_total):
            raise UserError(
                f"{self._data.task.name}, seed {self._seed}: {refused} updates of epoch {number + 1} were not finite;"
                f" try a lower lr than {self._settings.lr:g}, or --set clip=1"
            )
        predictions = self._predict(valid, advance)
        return Epoch(
            float(total) / trained_items,
            scores(valid.labels, predictions, len(self._data.classes)),
            predictions,
            self._predict(self._data.test, advance) if self._data.test else [],
        )

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        """The training rows of every step."""
        rows, per_step = len(self._data.train), self._settings.batch_rows
        key = stream_key(self._seed, "fine-tuning rows", self._data.task.name, epoch)
        order = permutation(key, rows, torch.device("cpu")).tolist()
        for step in range(self._steps_per_epoch):
            yield order[step * per_step : (step + 1) * per_step]

    def _step(self, chosen: list[int]) -> Tensor:
        """Update on the mean loss of the items of the chosen rows; returns their summed loss, on the device."""
        total = torch.zeros((), device=self._device)
        items = sum(len(self._data.train.items[row]) for row in chosen)
        for batch in micro_batches(self._data.train, chosen, self._budget, self._device, self._settings.pooling):
            loss = cross_entropy(self._logits(batch), batch.label_N, reduction="sum")
            (loss / items).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        settings, max_steps = self._settings, self._steps_per_epoch * self._settings.epochs
        if settings.schedule == "cosine":
            factor = learning_rate_factor(
                self._next_step, max_steps, warmup=settings.warmup, cooldown=0, final=settings.final_factor
            )
        else:
            factor = linear_factor(self._next_step, max_steps, settings.warmup)
        self._optimizer.step(settings.lr * factor, ok=total.isfinite())
        self._optimizer.zero_grad()
        self._next_step += 1
        return total

    @torch.no_grad()
    def _predict(self, examples: EncodedExamples, advance: Advance) -> list[int]:
        """The most likely class of every item; `advance` is told the number of rows that are done."""
        self._classifier.eval()
        predictions = torch.zeros(len(examples.labels), dtype=torch.int64, device=self._device)
        for batch in micro_batches(examples, range(len(examples)), self._budget, self._device, self._settings.pooling):
            predictions[batch.item_N] = self._logits(batch).argmax(-1)
            advance(len(batch.ids_BT))
        return [int(label) for label in predictions.tolist()]

    def _logits(self, batch: LabelledBatch) -> Tensor:
        # Mask rate 0, as when an exported model is fine-tuned: nothing is masked.
        conditioning_B = self._value_for_rate(torch.zeros(len(batch.ids_BT), device=self._device))
        inputs = (batch.ids_BT, batch.document_BT, conditioning_B)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            logits_NL: Tensor = self._classifier(*inputs, *([] if batch.tokens_N is None else [batch.tokens_N]))
        return logits_NL


def linear_factor(step: int, max_steps: int, warmup: float) -> float:
    """Learning-rate factor that rises linearly during the first share `warmup` of the steps, and then falls to 0."""
    rising = int(warmup * max_steps)
    return (step + 1) / rising if step < rising else (max_steps - step) / (max_steps - rising)


class SequenceClassifier(nn.Module):
    """The classifier of the BabyLM evaluation suite, on the hidden state of the last or of the first position.

    LayerNorm, Linear, GELU, LayerNorm (both without affine parameters), dropout, Linear; default initialisation. A
    dropout of None is that of the hidden states of the encoder. As in exported models, tokens of a model in blocks
    (`block_length`) attend to their own and earlier blocks, except with pooling of the first position.
    """

    def __init__(
        self,
        encoder: Transformer,
        labels: int,
        dropout: float | None,
        *,
        pooling: Literal["last", "first"],
        block_length: int = 0,
    ) -> None:
        super().__init__()
        self._block_length = block_length if pooling == "last" else 0
        self._position = -1 if pooling == "last" else 0
        if dropout is None:
            dropout = encoder.config.hidden_dropout_prob
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

    def forward(self, ids_BT: Tensor, document_BT: Tensor, conditioning_B: Tensor | None) -> Tensor:
        """Logits, float32 [B, L]; the arguments are those of `Transformer`, without a causal mask."""
        visibility = block_visibility(document_BT, self._block_length) if self._block_length else None
        hidden_BTD = self.encoder(ids_BT, document_BT, conditioning_B=conditioning_B, visibility=visibility)
        return cast(Tensor, self.head(hidden_BTD[:, self._position])).float()


class WordTagger(nn.Module):
    """The tagger of the multilingual track: dropout and Linear on the mean of the hidden states of a word's tokens.

    `block_length` as in `SequenceClassifier`.
    """

    def __init__(self, encoder: Transformer, labels: int, dropout: float | None, *, block_length: int = 0) -> None:
        super().__init__()
        self._block_length = block_length
        self.encoder = encoder
        dropout = encoder.config.hidden_dropout_prob if dropout is None else dropout
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(encoder.config.hidden_size, labels))

    def forward(self, ids_BT: Tensor, document_BT: Tensor, conditioning_B: Tensor | None, tokens_N: Tensor) -> Tensor:
        """Logits, float32 [N, L], of the words of all rows.

        Args:
            document_BT: 0, and -1 at padding.
            tokens_N: number of tokens of every word; together, all tokens except the first one of every row.
        """
        visibility = block_visibility(document_BT, self._block_length) if self._block_length else None
        hidden_BTD = self.encoder(ids_BT, document_BT, conditioning_B=conditioning_B, visibility=visibility)
        present_BT = document_BT >= 0
        of_words_BT = present_BT & (present_BT.cumsum(1) > 1)  # all but `<s>`
        hidden_ND = torch.segment_reduce(hidden_BTD[of_words_BT].float(), "mean", lengths=tokens_N)
        return cast(Tensor, self.head(hidden_ND)).float()


def trainable_copy(model: Transformer, dropout: float | None) -> Transformer:
    """A copy with trainable weights, except for the vocabulary head, which a classifier does not use.

    `dropout` applies to hidden states and attention; None keeps that of `model`.
    """
    config = model.config
    if dropout is not None:
        config = replace(config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    embedding = None if config.cond_dim is None else copy.deepcopy(model.sigma_map)
    copied = Transformer(config, embedding).to(model.output_weight_VD.device)
    copied.load_state_dict(model.state_dict())
    copied.requires_grad_(True).classifier.requires_grad_(False)
    return copied


def encode(examples: Sequence[Example], tokenizer: Tokenizer, seq_len: int) -> EncodedExamples:
    """Token ids of texts or pairs of texts, cut to `seq_len`; in a pair, the longer text is cut first."""
    firsts, seconds = (
        [code.ids for code in tokenizer.backend.encode_batch(texts, add_special_tokens=False)]
        for texts in ([e.first for e in examples], [e.second or "" for e in examples])
    )
    ids, truncated = [], 0
    for example, first, second in zip(examples, firsts, seconds, strict=True):
        if example.second is None:
            kept_first, kept_second = min(len(first), seq_len - 1), 0
            ids.append([BOS, *first[:kept_first]])
        else:
            kept_first, kept_second = truncate(len(first), len(second), seq_len - 2)
            ids.append([BOS, *first[:kept_first], BOS, *second[:kept_second]])
        truncated += kept_first + kept_second < len(first) + len(second)
    return EncodedExamples(ids, [example.label for example in examples], truncated)


def truncate(first: int, second: int, room: int) -> tuple[int, int]:
    """Numbers of tokens of two texts that are kept: the longer text is cut first (`longest_first` of `tokenizers`)."""
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (short, room - short) if first <= second else (room - short, short)


class LabelledBatch(NamedTuple):
    """Rows of one forward pass, padded to the longest of them: on the left to pool the last position."""

    ids_BT: Tensor
    document_BT: Tensor
    """0, and -1 at padding"""
    label_N: Tensor
    item_N: Tensor
    """Indices of the items in the file"""
    tokens_N: Tensor | None = None
    """Number of tokens of every word; None if items are rows"""


def micro_batches(
    examples: EncodedExamples,
    chosen: Iterable[int],
    token_budget: int,
    device: torch.device,
    pooling: Literal["last", "first"],
) -> Iterator[LabelledBatch]:
    """The chosen rows by length, in batches of at most `token_budget` tokens with padding, and at least one row."""
    parts: list[list[int]] = []
    for row in sorted(chosen, key=lambda row: len(examples.ids[row])):
        if not parts or (len(parts[-1]) + 1) * len(examples.ids[row]) > token_budget:
            parts.append([])
        parts[-1].append(row)
    for part in parts:
        longest = len(examples.ids[part[-1]])
        ids_BT = torch.full((len(part), longest), PAD)
        document_BT = torch.full((len(part), longest), -1, dtype=torch.int32)
        for ids_T, document_T, ids in zip(ids_BT, document_BT, (examples.ids[row] for row in part), strict=True):
            start = longest - len(ids) if pooling == "last" else 0
            ids_T[start : start + len(ids)] = torch.tensor(ids)
            document_T[start : start + len(ids)] = 0
        items = [item for row in part for item in examples.items[row]]
        columns = [ids_BT, document_BT, torch.tensor([examples.labels[item] for item in items]), torch.tensor(items)]
        if examples.word_tokens is not None:
            columns.append(torch.tensor([count for row in part for count in examples.word_tokens[row]]))
        if device.type == "cuda":  # copies from other memory wait for the GPU
            columns = [column.pin_memory() for column in columns]
        yield LabelledBatch(*(column.to(device, non_blocking=True) for column in columns))
