"""Fine-tuning on one task with one seed: a pure function of weights, rows, settings and seed.

Suffixes: B rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ltg_mdlm.build import TOKENS_PER_MICRO_BATCH, bf16_for
from ltg_mdlm.errors import UserError
from ltg_mdlm.finetune.classifier import SequenceClassifier, trainable_copy
from ltg_mdlm.finetune.rows import MicroBatch, Rows, micro_batches
from ltg_mdlm.finetune.scores import scores
from ltg_mdlm.finetune.settings import FinetuneSettings
from ltg_mdlm.finetune.tasks import MetricName, Task
from ltg_mdlm.optim import AdamW, ParameterGroup, learning_rate_factor
from ltg_mdlm.random import permutation, stream_key
from ltg_mdlm.trained_model import TrainedModel


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
