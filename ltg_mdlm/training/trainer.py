"""The training loop.

What a step trains on is a function of (seed, step): its rows, modes, noise and masks are the same for any number of
ranks and any split into micro-batches.  The loss is a sum over loss groups of a global sum over a global denominator,
and the denominators are known before the first backward pass, so there is never a mean of means.

Sums of one training step, kept on the device and read only when the step is logged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ltg_mdlm.core.batch import Step
from ltg_mdlm.core.host_memory import HostCopy
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.core.random import stream_key
from ltg_mdlm.host.result_checks import watched
from ltg_mdlm.storage.checkpoint import Checkpoints, TrainingState
from ltg_mdlm.storage.named_tensors import copy_named
from ltg_mdlm.training.assembly import Run
from ltg_mdlm.training.metric_sinks import Row, Sink
from ltg_mdlm.training.optimizers import learning_rate_factor
from ltg_mdlm.training.recipe import LossOutput, MicroBatch


class NonFiniteTraining(Exception):
    """Too many updates in a row had a non-finite loss or gradient."""


class Trainer:
    """Runs the remaining steps of a run, from its newest checkpoint or from the start."""

    def __init__(self, run: Run, checkpoints: Checkpoints, sinks: Sequence[Sink], stop: StopRequest) -> None:
        self.run, self.config, self.recipe, self.ranks = run, run.config, run.recipe, run.ranks
        self.checkpoints, self.sinks, self.stop = checkpoints, sinks, stop
        self.device = run.ranks.device
        self.loss = self._parallel(run.loss)
        self.next_step = 0
        # One flag per step since the last logged one, read together with the metrics.
        self._refused_steps = torch.zeros(self.config.logging.every, dtype=torch.bool, device=self.device)
        self._stop_agreed: HostCopy | None = None
        self._clock = (time.monotonic(), 0)

    def _parallel(self, loss: nn.Module) -> nn.Module:
        if self.ranks.world_size == 1:
            return loss
        on_cuda = self.device.type == "cuda"
        return DistributedDataParallel(
            loss, device_ids=[self.device.index] if on_cuda else None, gradient_as_bucket_view=True
        )

    def train(self) -> bool:
        """Run to the last step; False when a stop signal ended it early, with everything saved.

        Raises NonFiniteTraining after `training.max_refused_updates` refused updates in a row, and UserError when a
        checkpoint cannot be written, or a component's first results have not the types and shapes they must have.
        """
        if not self.ranks.all_agree(not self.stop.requested):
            return False
        with watched(self.recipe.components) as first_results:
            self.checkpoints.reserve(self.state())
            if self.next_step == 0:
                self.validate()
            self._clock = (time.monotonic(), self.run.loader.tokens_seen(self.next_step - 1))
            for step in self.steps():
                self.train_step(step)
                first_results.close()
                self.validate()
                stopping = self.stop_agreed()
                words_seen = self.run.loader.words_seen(step.step)
                if stopping or self.is_last or self.checkpoints.due(self.next_step, words_seen):
                    self.save()
                if stopping:
                    break
        self.checkpoints.finish()
        return self.is_last

    def train_step(self, step: Step) -> None:
        """One update from one global batch."""
        run, recipe = self.run, self.recipe
        torch.manual_seed(stream_key(step.seed, step.step, self.ranks.rank, "dropout")[0])
        micro_batches = [recipe.corrupt(batch, step) for batch in run.loader.micro_batches(step.step)]
        denominators_K = self.agree(recipe.denominators(micro_batches))
        tally = self.tally_if_logged(step)
        for micro_batch, synchronised in self.accumulate(micro_batches):
            with synchronised:
                output = self.loss(micro_batch, denominators_K, step)
                self.backward(output.loss)
            recipe.observe(step, micro_batch, output)
            if tally is not None:
                tally.add(micro_batch, output)
        update = run.optimizer.step(self.learning_rate(step))
        run.optimizer.zero_grad()
        run.ema.update(refused=update.refused)
        recipe.step_end(step)
        self._refused_steps[step.step % len(self._refused_steps)] = update.refused
        self.next_step = step.step + 1
        if tally is not None:
            self.log(step, tally.read(denominators_K, self.ranks.sum_over_ranks), update.grad_norm)

    @property
    def is_last(self) -> bool:
        """No step is left."""
        return self.next_step == self.run.schedule.max_steps

    def is_due(self, every: int | None) -> bool:
        """Before the first step, every so many (None: never in between), and after the last one."""
        return self.is_last or self.next_step % (every or self.run.schedule.max_steps) == 0

    def steps(self) -> Iterator[Step]:
        """The steps that are left."""
        schedule = self.run.schedule
        for index in range(self.next_step, schedule.max_steps):
            yield self.recipe.begin(
                Step(
                    seed=self.config.seed,
                    step=index,
                    progress=index / schedule.max_steps,
                    epoch=self.run.loader.epoch(index),
                    rows=schedule.rows(index),
                    first_row=schedule.first_row(index),
                ),
                self.device,
            )

    def agree(self, denominators_K: Tensor) -> Tensor:
        """Sum the denominators over ranks, and with the same message whether any rank was asked to stop."""
        stop = denominators_K.new_full((1,), float(self.stop.requested))
        agreed = self.ranks.sum_over_ranks(torch.cat([denominators_K, stop]))
        self._stop_agreed = HostCopy(agreed[-1:])
        # A group without positions in this step has a sum of zero, whatever it is divided by.
        return agreed[:-1].clamp(min=torch.finfo(torch.float32).tiny)

    def stop_agreed(self) -> bool:
        """Whether the ranks agreed to stop, at the beginning of this step; its answer has long arrived."""
        return self._stop_agreed is not None and bool(self._stop_agreed.get() > 0)

    def accumulate(
        self, micro_batches: Sequence[MicroBatch]
    ) -> Iterator[tuple[MicroBatch, AbstractContextManager[None]]]:
        """Every micro-batch, with gradients reduced over ranks on the last one only."""
        for i, micro_batch in enumerate(micro_batches):
            last = i + 1 == len(micro_batches)
            wait = isinstance(self.loss, DistributedDataParallel) and not last
            yield micro_batch, self.loss.no_sync() if wait else nullcontext()  # type: ignore[operator]

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients.

        Data parallelism averages over ranks, where ours are shares of one sum.  A loss that is not finite makes its
        gradients not finite either, on every rank, so that the update is refused.
        """
        (loss * (self.ranks.world_size + 0 * loss.detach())).backward()  # type: ignore[no-untyped-call]

    def learning_rate(self, step: Step) -> float:
        """The published curve, at this step."""
        settings = self.config.optimizer
        return settings.lr * learning_rate_factor(
            step.step,
            self.run.schedule.max_steps,
            warmup=settings.warmup,
            cooldown=settings.cooldown,
            final=settings.final_factor,
        )

    def tally_if_logged(self, step: Step) -> StepTally | None:
        """A tally for the first step, the last, and every `logging.every`-th; others are not counted at all."""
        done = step.step + 1
        if done not in (1, self.run.schedule.max_steps) and done % self.config.logging.every:
            return None
        return StepTally(self.recipe.components.objective.group_names, self.device, is_bound=self.recipe.is_bound)

    def log(self, step: Step, measured: dict[str, float], grad_norm: Tensor) -> None:
        """Write one row; the only place in a step that waits for the device."""
        loader, now = self.run.loader, time.monotonic()
        before, tokens_before = self._clock
        tokens = loader.tokens_seen(step.step)
        self._clock = (now, tokens)
        if "bound" in measured:
            train = self.run.corpus.train
            measured["bits_per_byte"] = measured["bound"] * train.num_tokens / train.text_bytes / math.log(2)
        self.write(
            {
                "step": step.step + 1,
                "epoch": round(step.epoch, 6),
                "words_seen": loader.words_seen(step.step),
                "tokens_seen": tokens,
                **measured,
                "lr": self.learning_rate(step),
                "grad_norm": float(grad_norm),
                "tokens_per_second": round((tokens - tokens_before) / max(now - before, 1e-9), 1),
                **self.recipe.metrics(),
            }
        )
        self.report_refused()
        self.require_finite()

    def report_refused(self) -> None:
        """Write down the updates that were refused since the last report, each with its rows; waits for the device."""
        schedule, last = self.run.schedule, self.next_step - 1
        for place in self._refused_steps.nonzero().flatten().tolist():
            index = last - (last - place) % len(self._refused_steps)
            first = schedule.first_row(index)
            end = first + schedule.rows(index)
            self.write({"step": index + 1, "event": "refused_update", "first_row": first, "end_row": end})
        self._refused_steps.zero_()

    def require_finite(self) -> None:
        """Raises NonFiniteTraining after too many refused updates in a row."""
        in_a_row = int(self.run.optimizer.refused_in_a_row)
        if in_a_row >= self.config.training.max_refused_updates:
            raise NonFiniteTraining(
                f"{in_a_row} updates in a row had a non-finite loss or gradient, the last at step {self.next_step};"
                " they were not applied (metrics.jsonl lists them as refused_update).  Start a run in another folder"
                " with a lower optimizer.lr or optimizer.clip, or with training.precision=fp32"
            )

    def validate(self) -> None:
        """Evaluate the averaged weights on what is due; leaves the training curve as it is."""
        run, settings = self.run, self.config.validation
        validator = run.validator if self.is_due(settings.every) else None
        pairs = run.pairs if self.is_due(settings.pairs_every) else None
        if validator is None and pairs is None:
            return
        started = time.monotonic()
        measured: dict[str, float] = {}
        with run.ema.swap():
            if validator is not None:
                measured |= validator(self.next_step / run.schedule.max_steps, run.loader.epoch(self.next_step))
            if pairs is not None:
                measured |= pairs()
        words = run.loader.words_seen(self.next_step - 1)
        self.write({"step": self.next_step, "words_seen": words, **measured})
        # Time spent here does not count as training time.
        self._clock = (self._clock[0] + time.monotonic() - started, self._clock[1])

    def write(self, row: Row) -> None:
        """Send a row to every sink; other ranks than the first have none."""
        for sink in self.sinks:
            sink.write(row)

    def save(self) -> None:
        """Save the state, and report first what a resumed run would know nothing of."""
        self.report_refused()
        self.checkpoints.save(self.state())

    def close(self) -> None:
        """Leave nothing half written."""
        self.checkpoints.close()
        for sink in self.sinks:
            sink.close()

    def state(self) -> TrainingState:
        """Everything a later process needs to go on as if nothing had happened."""
        run = self.run
        return TrainingState(
            step=self.next_step,
            words_seen=run.loader.words_seen(self.next_step - 1),
            model=run.loss.model.state_dict(),
            ema=run.ema.state_dict(),
            optimizer=run.optimizer.state_dict(),
            components=self.recipe.state_dict(),
        )

    def restore(self, state: TrainingState) -> None:
        """Continue from a checkpoint."""
        run = self.run
        copy_named(run.loss.model.state_dict(), state.model, "the model's weights")
        run.ema.load_state_dict(state.ema)
        run.optimizer.load_state_dict(state.optimizer)
        self.recipe.load_state_dict(state.components)
        self.next_step = state.step


class StepTally:
    """Adds up a step's micro-batches; `read` reduces over ranks and waits for the device."""

    def __init__(self, group_names: Sequence[str], device: torch.device, *, is_bound: bool) -> None:
        self._names, self._is_bound = tuple(group_names), is_bound
        self._terms_K = torch.zeros(len(group_names), dtype=torch.float64, device=device)
        self._counts = torch.zeros(8, dtype=torch.float64, device=device)

    def add(self, micro_batch: MicroBatch, output: LossOutput) -> None:
        """Add one micro-batch; launches a handful of small kernels and does not wait for them."""
        causal_N = output.supervised.causal_N
        masked_N = ~causal_N
        maskable_BT = micro_batch.batch.maskable_BT & ~micro_batch.corrupted.causal_B.unsqueeze(1)
        self._terms_K += output.terms_K
        self._counts += torch.stack(
            [
                maskable_BT.sum().double(),
                micro_batch.corrupted.masked_BT.sum().double(),
                masked_N.sum().double(),
                (output.correct_N & masked_N).sum().double(),
                (output.nll_N * masked_N).sum().double(),
                causal_N.sum().double(),
                (output.correct_N & causal_N).sum().double(),
                (output.nll_N * causal_N).sum().double(),
            ]
        )

    def read(self, denominators_K: Tensor, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """loss, bound (only where the objective is one), mask_rate, and accuracy and nll per mode."""
        terms_K = sum_over_ranks(self._terms_K)
        maskable, masked, masked_n, masked_ok, masked_nll, causal_n, causal_ok, causal_nll = sum_over_ranks(
            self._counts
        ).tolist()
        row = {"loss": float((terms_K / denominators_K).sum())}
        if self._is_bound and not causal_n:
            row["bound"] = float(terms_K.sum()) / max(maskable, 1)
        if maskable:
            row |= {"mask_rate": masked / maskable}
        if masked_n:
            row |= {"accuracy": masked_ok / masked_n, "masked_nll": masked_nll / masked_n}
        if causal_n:
            row |= {"causal_accuracy": causal_ok / causal_n, "causal_nll": causal_nll / causal_n}
        if len(self._names) > 1:
            row |= {
                f"loss_{n}": float(v) for n, v in zip(self._names, (terms_K / denominators_K).tolist(), strict=True)
            }
        return row
