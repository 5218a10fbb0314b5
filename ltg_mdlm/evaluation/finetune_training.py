"""Fine-tuning on one task with one seed: a pure function of weights, rows, settings and seed.

Suffixes: B rows.

A sequence classifier: a trained model, and a head on its first position.

Suffixes: B rows, T tokens per row, D width, L labels.

Pairs of texts as rows of tokens, and rows as the batches of a forward pass.

Suffixes: B rows, T tokens per row.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.machine import bf16_for
from ltg_mdlm.core.random import permutation, stream_key
from ltg_mdlm.data.tokenizer import BOS, PAD, Tokenizer
from ltg_mdlm.evaluation.finetune_tasks import Example, FinetuneSettings, MetricName, Task, scores
from ltg_mdlm.inference.trained_model import TrainedModel
from ltg_mdlm.model.transformer import Transformer
from ltg_mdlm.training.assembly import TOKENS_PER_MICRO_BATCH
from ltg_mdlm.training.optimizers import AdamW, ParameterGroup, learning_rate_factor


@dataclass(frozen=True)
class TaskRows:
    """A task and its two files, as the model reads them."""

    task: Task
    train: Rows
    valid: Rows


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training file came to.

    Attributes:
        loss: mean cross-entropy of its training rows, in nats.
        metrics: of the validation rows.
        predictions: class of every validation row.
    """

    loss: float
    metrics: Mapping[MetricName, float]
    predictions: list[int]


@dataclass(frozen=True)
class FinetuneRun:
    """One seed: every epoch, and which of them counts."""

    seed: int
    epochs: list[Epoch]
    best: int
    """Index of the first epoch with the highest validation metric."""
    seconds: float

    @property
    def best_epoch(self) -> Epoch:
        return self.epochs[self.best]


def steps_per_epoch(rows: TaskRows, settings: FinetuneSettings) -> int:
    """As in the official suite, rows that do not fill a step are left out, other ones in every epoch."""
    return max(1, len(rows.train) // settings.batch_rows)


class Finetuning:
    """A classifier in training."""

    def __init__(self, trained: TrainedModel, rows: TaskRows, settings: FinetuneSettings, seed: int) -> None:
        """Copies the model, which stays as it is."""
        self._rows, self._settings, self._seed = rows, settings, seed
        self._value_for_rate = trained.value_for_rate
        self._device = trained.model.output_weight_VD.device
        self._bf16 = bf16_for(settings.precision, self._device)
        self._budget = TOKENS_PER_MICRO_BATCH[self._device.type]
        # Initial weights of the head and dropout; the order of the rows has its own stream.
        torch.manual_seed(stream_key(seed, "fine-tuning", rows.task.name)[0])
        encoder = trainable_copy(trained.model, settings.dropout)
        self._classifier = SequenceClassifier(encoder, rows.task.labels, settings.head_dropout).to(self._device)
        self._optimizer = self._build_optimizer()
        self._steps_per_epoch = steps_per_epoch(rows, settings)
        self._next_step = 0

    def _build_optimizer(self) -> AdamW:
        settings = self._settings
        trainable = {name: p for name, p in self._classifier.named_parameters() if p.requires_grad}
        return AdamW(
            [ParameterGroup(trainable, settings.weight_decay)],
            betas=settings.betas,
            eps=settings.eps,
            max_norm=settings.clip or math.inf,
        )

    def epoch(self, number: int, step_done: Callable[[], None]) -> Epoch:
        """Train for one pass and measure.  Raises UserError if a loss or gradient was not finite."""
        self._classifier.train()
        total = torch.zeros((), device=self._device)
        trained_rows = 0
        for chosen in self._batches(number):
            total += self._step(chosen)
            trained_rows += len(chosen)
            step_done()
        self._refuse_non_finite(number)
        predictions = self._predict(self._rows.valid)
        return Epoch(
            float(total) / trained_rows, scores(self._rows.task, self._rows.valid.labels, predictions), predictions
        )

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        rows, per_step = len(self._rows.train), self._settings.batch_rows
        key = stream_key(self._seed, "fine-tuning rows", self._rows.task.name, epoch)
        order = permutation(key, rows, torch.device("cpu")).tolist()
        for step in range(self._steps_per_epoch):
            yield order[step * per_step : (step + 1) * per_step]

    def _step(self, chosen: list[int]) -> Tensor:
        """Update on the mean loss of the chosen rows; returns their summed loss, on the device."""
        total = torch.zeros((), device=self._device)
        for batch in micro_batches(self._rows.train, chosen, self._budget, self._device):
            loss = cross_entropy(self._logits(batch), batch.label_B, reduction="sum")
            (loss / len(chosen)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        settings, max_steps = self._settings, self._steps_per_epoch * self._settings.epochs
        factor = learning_rate_factor(
            self._next_step, max_steps, warmup=settings.warmup, cooldown=0, final=settings.final_factor
        )
        self._optimizer.step(settings.lr * factor, ok=total.isfinite())
        self._optimizer.zero_grad()
        self._next_step += 1
        return total

    def _logits(self, batch: MicroBatch) -> Tensor:
        # As exported models are fine-tuned: told that nothing is masked.
        value_B = self._value_for_rate(torch.zeros(len(batch.row_B), device=self._device))
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            logits_BL: Tensor = self._classifier(batch.ids_BT, batch.document_BT, value_B)
        return logits_BL

    @torch.no_grad()
    def _predict(self, rows: Rows) -> list[int]:
        """The most likely class of every row."""
        self._classifier.eval()
        predictions = torch.zeros(len(rows), dtype=torch.int64, device=self._device)
        for batch in micro_batches(rows, range(len(rows)), self._budget, self._device):
            predictions[batch.row_B] = self._logits(batch).argmax(-1)
        return [int(label) for label in predictions.tolist()]

    def _refuse_non_finite(self, epoch: int) -> None:
        if refused := int(self._optimizer.refused_total):
            raise UserError(
                f"{self._rows.task.name}, seed {self._seed}: {refused} updates of epoch {epoch + 1} were not finite;"
                f" try a lower lr than {self._settings.lr:g}, or --set clip=1"
            )


def finetune_once(
    trained: TrainedModel,
    rows: TaskRows,
    settings: FinetuneSettings,
    seed: int,
    *,
    step_done: Callable[[], None] = lambda: None,
) -> FinetuneRun:
    """Fine-tune a copy of the model with one seed.

    The epoch that counts is chosen on the validation file, as in the official suite, whose figures are therefore those
    of the best epoch: somewhat above what held-out text would give.

    Raises UserError if a loss or gradient was not finite.
    """
    start = time.monotonic()
    finetuning = Finetuning(trained, rows, settings, seed)
    epochs = [finetuning.epoch(number, step_done) for number in range(settings.epochs)]
    best = max(range(len(epochs)), key=lambda number: epochs[number].metrics[rows.task.selects])
    return FinetuneRun(seed, epochs, best, time.monotonic() - start)


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


_SEPARATORS = 2
"""`<s>` before either text."""


@dataclass(frozen=True)
class Rows:
    """The examples of one file, as the model reads them.

    Attributes:
        ids: tokens of every row: `<s> first <s> second`.
        labels: class of every row.
        truncated: how many rows were cut to fit.
    """

    ids: list[list[int]]
    labels: list[int]
    truncated: int

    def __len__(self) -> int:
        return len(self.ids)


class MicroBatch(NamedTuple):
    """Rows of one forward pass, padded to the longest of them."""

    ids_BT: Tensor
    document_BT: Tensor
    """0, and -1 at padding"""
    label_B: Tensor
    row_B: Tensor
    """which rows of the file these are"""


def encode(examples: Sequence[Example], tokenizer: Tokenizer, seq_len: int) -> Rows:
    """Tokens of pairs of texts, cut to `seq_len` as `truncate` does."""
    firsts, seconds = (
        [code.ids for code in tokenizer.backend.encode_batch(texts, add_special_tokens=False)]
        for texts in ([e.first for e in examples], [e.second for e in examples])
    )
    room = seq_len - _SEPARATORS
    ids, truncated = [], 0
    for first, second in zip(firsts, seconds, strict=True):
        kept_first, kept_second = truncate(len(first), len(second), room)
        ids.append([BOS, *first[:kept_first], BOS, *second[:kept_second]])
        truncated += kept_first + kept_second < len(first) + len(second)
    return Rows(ids, [example.label for example in examples], truncated)


def truncate(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept: the longer one loses its end first (`longest_first` of `tokenizers`)."""
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (short, room - short) if first <= second else (room - short, short)


def micro_batches(rows: Rows, chosen: Iterable[int], token_budget: int, device: torch.device) -> Iterator[MicroBatch]:
    """The chosen rows by length, in as many parts as keep each, padded, within `token_budget` (or at one row)."""
    part: list[int] = []
    for row in sorted(chosen, key=lambda row: len(rows.ids[row])):
        if part and (len(part) + 1) * len(rows.ids[row]) > token_budget:
            yield _micro_batch(rows, part, device)
            part = []
        part.append(row)
    if part:
        yield _micro_batch(rows, part, device)


def _micro_batch(rows: Rows, part: Sequence[int], device: torch.device) -> MicroBatch:
    longest = max(len(rows.ids[row]) for row in part)
    ids_BT = torch.tensor([rows.ids[row] + [PAD] * (longest - len(rows.ids[row])) for row in part])
    length_B = torch.tensor([len(rows.ids[row]) for row in part])
    document_BT = -(torch.arange(longest) >= length_B[:, None]).int()
    label_B = torch.tensor([rows.labels[row] for row in part])
    return MicroBatch(*(x.to(device) for x in (ids_BT, document_BT, label_B, torch.tensor(part))))
