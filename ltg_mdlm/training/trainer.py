"""The training loop.

The data, modes, noise and masks of a step are a function of (seed, step), so they are the same for any number of ranks
and any split into micro-batches.  The loss is the sum over loss groups of (global sum / global denominator).  The
denominators are known before the first forward pass, so that gradients of micro-batches and ranks are added, never
averaged.  Only logged steps synchronise with the device.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ltg_mdlm.core.batch import Step
from ltg_mdlm.core.host_memory import HostCopy
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.core.random import stream_key
from ltg_mdlm.storage.checkpoint import Checkpoints, TrainingState
from ltg_mdlm.storage.named_tensors import copy_named
from ltg_mdlm.training.assembly import Run
from ltg_mdlm.training.compilation import CompiledLayers, Report
from ltg_mdlm.training.metric_sinks import ConsoleSink, Row, Sink
from ltg_mdlm.training.optimizers import learning_rate_factor
from ltg_mdlm.training.recipe import MicroBatch, StepMetrics


class NonFiniteTraining(Exception):
    """Too many updates in a row had a non-finite loss or gradient."""


class Trainer:
    """Trains from step `next_step`, which is 0 unless `restore` was called, to the last step of the schedule."""

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        sinks: Sequence[Sink],
        stop: StopRequest,
        report: Report = lambda *_: None,
        record_use: Callable[[], None] = lambda: None,
    ) -> None:
        """`report` is told about the compilation of the layers.

        `record_use` is called on all ranks after every checkpoint and when training ends.
        """
        self.run, self.config, self.recipe, self.ranks = run, run.config, run.recipe, run.ranks
        self.checkpoints, self.sinks, self.stop = checkpoints, list(sinks), stop
        self.record_use = record_use
        self.console: ConsoleSink | None = None
        """Shows every step and what is done between steps; set, with `sinks`, after `restore` has succeeded."""
        self.device = run.ranks.device
        self.loss: nn.Module = run.loss
        if self.ranks.world_size > 1:
            device_ids = [self.device.index] if self.device.type == "cuda" else None
            self.loss = DistributedDataParallel(run.loss, device_ids=device_ids, gradient_as_bucket_view=True)
        self.compiled_layers = CompiledLayers(run.loss, run.ranks, report, self.busy, stop)
        self.next_step = 0
        # One flag per step since the last logged step, read together with the metrics.
        flags = min(self.config.logging.every, run.schedule.max_steps)
        self._refused_steps = torch.zeros(flags, dtype=torch.bool, device=self.device)
        self._requests = HostCopy(torch.zeros(2))
        self._has_warned = False
        # Time and tokens seen when the last logged step ended.
        self._clock = (time.monotonic(), 0)

    def train(self) -> bool:
        """Run the remaining steps.  Returns False if a stop signal ended training early, with the state saved.

        Raises NonFiniteTraining after `training.max_refused_updates` refused updates in a row.  Raises UserError if a
        checkpoint cannot be written, or if the first results of a component have wrong types or shapes.
        """
        if not self.ranks.all_agree(not self.stop.requested):
            self.record_use()
            return False
        self.checkpoints.reserve(self.state())
        if self.next_step == 0:
            self.validate()
        self._clock = (time.monotonic(), self.run.loader.tokens_seen(self.next_step - 1))
        for step in self.steps():
            self.train_step(step)
            if self.console is not None:
                self.console.step_done(self.next_step)
            self.validate()
            stopping, retrying = (self._requests.get() > 0).tolist()
            words_seen = self.run.loader.words_seen(step.step)
            if stopping or retrying or self.is_last or self.checkpoints.due(self.next_step, words_seen):
                self.save()
            if stopping:
                break
        with self.busy("waiting for the last checkpoint"):
            self.checkpoints.finish()
            self.ranks.barrier()
        self.record_use()
        return self.is_last

    def steps(self) -> Iterator[Step]:
        """The remaining steps."""
        schedule = self.run.schedule
        for index in range(self.next_step, schedule.max_steps):
            step = Step(
                seed=self.config.seed,
                step=index,
                progress=index / schedule.max_steps,
                epoch=self.run.loader.epoch(index),
                rows=schedule.rows(index),
                first_row=schedule.first_row(index),
                lr=self.learning_rate(index),
            )
            yield self.recipe.begin(step, self.device)

    def train_step(self, step: Step) -> None:
        """One optimiser update from one global batch."""
        run, recipe = self.run, self.recipe
        done, every = step.step + 1, self.config.logging.every
        is_logged = done in (1, run.schedule.max_steps) or done % every == 0
        torch.manual_seed(stream_key(step.seed, step.step, self.ranks.rank, "dropout")[0])

        micro_batches = [view for batch in run.loader.micro_batches(step.step) for view in recipe.corrupt(batch, step)]
        # Neither validation nor compilation counts as training time.
        self._clock = (self._clock[0] + self.compiled_layers.prepare(micro_batches), self._clock[1])
        denominators_K = self.reduce_denominators(recipe.denominators(micro_batches))
        metrics = StepMetrics(recipe, self.device)
        for micro_batch, gradient_sync in self.accumulate(micro_batches):
            with gradient_sync:
                output = self.loss(micro_batch, denominators_K, step)
                self.backward(output.loss)
            recipe.observe(step, micro_batch, output)
            if is_logged:
                metrics.update(micro_batch, output)

        update = run.optimizer.step(step.lr)
        run.optimizer.zero_grad()
        run.ema.update(refused=update.refused, step=step.step)
        recipe.step_end(step, update.refused)
        self._refused_steps[step.step % len(self._refused_steps)] = update.refused
        self.next_step = done
        if is_logged:
            self.log(step, metrics.compute(denominators_K, self.ranks.sum_over_ranks), update.grad_norm)

    def reduce_denominators(self, denominators_K: Tensor) -> Tensor:
        """float32[K]: the denominators of the global batch, at least the smallest normal float32.

        The same message tells every rank on how many ranks a stop signal has arrived, or a checkpoint could not be
        written, so that all ranks stop, or save, after this step.
        """
        requests = [
            denominators_K.new_full((1,), float(flag)) for flag in (self.stop.requested, self.checkpoints.failed)
        ]
        sums = self.ranks.sum_over_ranks(torch.cat([denominators_K, *requests]))
        self._requests = HostCopy(sums[-2:])
        # A group without positions in this step has the sum 0; the lower bound avoids 0 / 0.
        return sums[:-2].clamp(min=torch.finfo(torch.float32).tiny)

    def accumulate(
        self, micro_batches: Sequence[MicroBatch]
    ) -> Iterator[tuple[MicroBatch, AbstractContextManager[None]]]:
        """The micro-batches, with contexts in which only the last one reduces gradients over ranks."""
        for micro_batch in micro_batches[:-1]:
            parallel = isinstance(self.loss, DistributedDataParallel)
            yield micro_batch, self.loss.no_sync() if parallel else nullcontext()  # type: ignore[operator]
        yield micro_batches[-1], nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch.

        The factor `world_size` turns the mean over ranks that DistributedDataParallel computes into a sum.  The term
        `0 * loss` is 0 or NaN: a non-finite loss makes all gradients NaN on every rank, so the optimiser refuses the
        update without a synchronisation.
        """
        (loss * (self.ranks.world_size + 0 * loss.detach())).backward()  # type: ignore[no-untyped-call]

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step."""
        settings = self.config.optimizer
        return settings.lr * learning_rate_factor(
            step,
            self.run.schedule.max_steps,
            warmup=settings.warmup,
            cooldown=settings.cooldown,
            final=settings.final_factor,
        )

    def validate(self) -> None:
        """Evaluate the averaged weights if validation is due; never changes the training state."""
        run, settings = self.run, self.config.validation
        validator = run.validator if self.is_due(settings.every) else None
        pairs = run.pairs if self.is_due(settings.pairs_every) else None
        if validator is None and pairs is None:
            return
        started = time.monotonic()
        measured: dict[str, float] = {}
        with self.busy(f"validation at step {self.next_step}"), run.ema.swap():
            if validator is not None:
                measured |= validator(self.next_step / run.schedule.max_steps, run.loader.epoch(self.next_step))
            if pairs is not None and not self.recipe.own_visibility:
                measured |= pairs()
        if self.recipe.own_visibility and not self._has_warned and self.ranks.is_main:
            self._has_warned = True
            strategy = self.recipe.components.provenance["masking"]
            warnings.warn(
                f"valid/bound and valid/minimal_pairs are not measured: {strategy} trains with a custom visibility, and"
                " models can only be evaluated without one, or with blocks (block_length)",
                stacklevel=2,
            )
        if not measured:
            return
        words = run.loader.words_seen(self.next_step - 1)
        self.write({"step": self.next_step, "words_seen": words, **measured})
        self._clock = (self._clock[0] + time.monotonic() - started, self._clock[1])

    def busy(self, title: str) -> AbstractContextManager[None]:
        """Show what is done between two steps."""
        return nullcontext() if self.console is None else self.console.busy(title)

    @property
    def is_last(self) -> bool:
        """Whether no step is left."""
        return self.next_step == self.run.schedule.max_steps

    def is_due(self, every: int | None) -> bool:
        """True before the first step, after the last one, and after every `every` steps (None: not in between)."""
        return self.is_last or self.next_step % (every or self.run.schedule.max_steps) == 0

    def log(self, step: Step, measured: dict[str, float], grad_norm: Tensor) -> None:
        """Write the row of a step, and list updates that were refused.  Synchronises with the device.

        Raises NonFiniteTraining.
        """
        loader, now = self.run.loader, time.monotonic()
        before, tokens_before = self._clock
        tokens = loader.tokens_seen(step.step)
        self._clock = (now, tokens)
        if "bound" in measured:
            train = self.run.corpus.train
            tokens_of_text = train.maskable_tokens(end_of_document=self.config.data.end_of_document)
            measured["bits_per_byte"] = measured["bound"] * tokens_of_text / train.text_bytes / math.log(2)
        self.write(
            {
                "step": step.step + 1,
                "epoch": round(step.epoch, 6),
                "words_seen": loader.words_seen(step.step),
                "tokens_seen": tokens,
                **measured,
                "lr": step.lr,
                "grad_norm": float(grad_norm),
                "tokens_per_second": round((tokens - tokens_before) / max(now - before, 1e-9), 1),
                **self.recipe.metrics(),
            }
        )
        self.report_refused()
        in_a_row = int(self.run.optimizer.refused_in_a_row)
        if in_a_row >= self.config.training.max_refused_updates:
            self.record_use()
            raise NonFiniteTraining(
                f"{in_a_row} updates in a row had a non-finite loss or gradient, the last at step {self.next_step};"
                " they were not applied (metrics.jsonl lists them as refused_update).  Start a run in another folder"
                " with a lower optimizer.lr or optimizer.clip, or with training.precision=fp32"
            )

    def report_refused(self) -> None:
        """Write an event for every update that was refused since the last report.  Synchronises with the device."""
        schedule, last = self.run.schedule, self.next_step - 1
        for slot in self._refused_steps.nonzero().flatten().tolist():
            # Flags are stored at the step's remainder, so the step is the newest one with this remainder.
            index = last - (last - slot) % len(self._refused_steps)
            first = schedule.first_row(index)
            end = first + schedule.rows(index)
            self.write({"step": index + 1, "event": "refused_update", "first_row": first, "end_row": end})
        self._refused_steps.zero_()

    def write(self, row: Row) -> None:
        """Send a row to every sink; only the first rank has sinks."""
        for sink in self.sinks:
            sink.write(row)

    def save(self) -> None:
        """Save a checkpoint."""
        # The flags of refused updates are not part of a checkpoint.
        self.report_refused()
        self.checkpoints.save(self.state())
        # The first rank may wait for a slow disk.  The others wait here, where the time limit is longer than in a step.
        self.ranks.barrier()
        self.record_use()

    def close(self) -> None:
        """Wait for a checkpoint that is being written, close the sinks, and leave data parallelism."""
        # The reducer of DistributedDataParallel must not be the last owner of the process group: it would wait for
        # gloo's threads while it holds the interpreter's lock, which they need to free their tensors.
        self.loss = self.run.loss
        self.checkpoints.close()
        for sink in self.sinks:
            sink.close()

    def state(self) -> TrainingState:
        """Everything that a later process needs to resume bit-exactly; shares memory with the run."""
        run = self.run
        rows = run.loader.state_dict(self.next_step)
        return TrainingState(
            step=self.next_step,
            words_seen=run.loader.words_seen(self.next_step - 1),
            model=run.loss.model.state_dict(),
            ema=run.ema.state_dict(),
            optimizer=run.optimizer.state_dict(),
            components=self.recipe.state_dict() | {f"data/{key}": value for key, value in rows.items()},
        )

    def restore(self, state: TrainingState, *, same_epochs: bool = True) -> None:
        """Continue from a checkpoint.  Raises UserError if names or shapes of its tensors differ.

        Without `same_epochs`, the checkpoint has other settings, so a mixture or curriculum counts its epochs anew.
        """
        run = self.run
        copy_named(run.loss.model.state_dict(), state.model, "the model's weights")
        run.ema.load_state_dict(state.ema)
        copy_named(run.optimizer.state_dict(), state.optimizer, "the optimiser's state")
        self.recipe.load_state_dict(state.components)
        rows = {k.removeprefix("data/"): v for k, v in state.components.items() if k.startswith("data/")}
        if same_epochs or self.recipe.components.row_order is not None:
            run.loader.load_state_dict(rows)
        run.loader.words_before = state.words_seen - run.loader.words_seen(state.step - 1)
        self.next_step = state.step
