"""`ltg-mdlm bench`: the speed of a run's training step, the time that its parts take, and the use of the machine."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.parallel import DistributedDataParallel

from ltg_mdlm.core.batch import IGNORE, Step
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.machine import describe_machine, keep_freed_memory, matrix_peak, peak_memory, synchronise
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.core.settings import Settings
from ltg_mdlm.core.terminal import busy, clock
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import batch_schedule, open_corpus
from ltg_mdlm.model.flops import flops_per_token
from ltg_mdlm.storage.checkpoint import Checkpoints
from ltg_mdlm.training.assembly import Run, build_run
from ltg_mdlm.training.attention_choice import resolve_attention
from ltg_mdlm.training.compilation import resolve_compile
from ltg_mdlm.training.cpu_kernel_choice import resolve_cpu_kernels
from ltg_mdlm.training.precision import resolve_precision
from ltg_mdlm.training.trainer import Trainer

T = TypeVar("T")

WARM_UP_STEPS = 2

MIN_STEPS = 3


@dataclass(frozen=True)
class Spread:
    """Seconds per step, over several steps."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class BenchReport:
    """What `ltg-mdlm bench` measured.  Times, memory and shares are those of the first process."""

    machine: str
    versions: str
    precision: str
    processes: int
    threads: int
    parameters: int
    seq_len: int
    global_batch_rows: int
    micro_batch_rows: int
    """Rows of the process' largest micro-batch."""
    steps: int
    non_pad_share: float
    supervised_share: float
    step_seconds: Spread
    phase_seconds: dict[str, float]
    """Median seconds by part of the step, from separate steps that wait for the device after each part."""
    waiting_for_gradients: float | None
    """Share of the step that the all-reduce of the gradients adds; None for one process."""
    peak_memory_bytes: int
    peak_flops: float
    """Measured rate of a square matrix product, in FLOP per second of one process."""
    flops_per_token: float

    @property
    def padded_tokens_per_second(self) -> float:
        """Tokens per second of all processes together, padding included."""
        return self.global_batch_rows * self.seq_len / self.step_seconds.median

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all processes together, without padding."""
        return self.padded_tokens_per_second * self.non_pad_share

    @property
    def share_of_peak(self) -> float:
        """Model FLOP utilisation, relative to the measured peak of all processes."""
        return self.padded_tokens_per_second * self.flops_per_token / (self.peak_flops * self.processes)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        derived = ("padded_tokens_per_second", "tokens_per_second", "share_of_peak")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def bench(settings: Settings, *, rows: int | None = None, steps: int = 10, seconds: float = 120) -> BenchReport | None:
    """Measure training steps as `train` would run them; writes nothing.

    Args:
        settings: settings of the run
        rows: rows of a global batch, instead of `training.global_batch_rows`
        steps: number of steps to time, at most
        seconds: time fewer steps, but at least 3, if they would take longer than this

    Returns None on all ranks but the first.  Raises UserError as `train` would.
    """
    config = steady(settings.config, rows, max_steps=WARM_UP_STEPS + 3 * max(steps, MIN_STEPS))
    host = Host(config, settings.sources)
    with Ranks.setup(threads=host.config.training.threads) as ranks:
        if ranks.device.type == "cpu":
            keep_freed_memory()
        with busy("preparing the steps to measure", show=ranks.is_main):
            corpus = open_corpus(config)
            run, _ = resolve_precision(build_run(host, corpus, ranks))
            resolve_attention(run)
            run = resolve_compile(run)
            run = resolve_cpu_kernels(run, None, steps=batch_schedule(settings.config, corpus).max_steps)
        report = measure(run, steps, seconds)
        return report if ranks.is_main else None


def steady(config: RunConfig, rows: int | None, max_steps: int) -> RunConfig:
    """The settings with `max_steps` equal steps: full global batches, rows of the first length, and no curriculum."""
    changes = {
        "global_batch_rows": rows or config.training.global_batch_rows,
        "batch_ramp": None,
        "seq_len": config.training.stages[0][1],
        "seq_len_schedule": None,
        "max_steps": max_steps,
        "epochs": None,
    }
    training, data = config.training.model_copy(update=changes), config.data.model_copy(update={"curriculum": None})
    return config.model_copy(update={"training": training, "data": data})


def measure(run: Run, steps: int, seconds: float) -> BenchReport:
    """Time whole steps, then the parts of as many steps, then steps without the all-reduce of the gradients."""
    device, length = run.ranks.device, run.config.training.seq_len
    trainer = Trainer(run, Checkpoints(Path(), every=1, keep=1, writes=False), [], StopRequest())
    upcoming = trainer.steps()

    first = next(trainer.steps())
    batches = run.loader.micro_batches(first.step)
    micro_batches = [view for batch in batches for view in run.recipe.corrupt(batch, first)]
    positions = sum(m.batch.document_BT.numel() for m in micro_batches)
    tokens = sum(int((m.batch.document_BT >= 0).sum()) for m in micro_batches)
    columns, views = micro_batches[0].columns, len(micro_batches) // len(batches)
    supervised = sum(int((m.corrupted.labels_BT != IGNORE).sum()) for m in micro_batches) / positions
    largest = max(len(m.batch.document_BT) for m in micro_batches)
    del micro_batches

    warm_up = step_seconds(trainer, upcoming, WARM_UP_STEPS)
    steps = run.ranks.broadcast_object(max(MIN_STEPS, int(min(steps, seconds / warm_up[-1] / 2))))
    if run.ranks.is_main:  # a line and no spinner, which would take time from the steps
        left = clock(2 * steps * warm_up[-1])
        print(f"timing {steps} steps, and {steps} more with their parts: about {left}", file=sys.stderr, flush=True)
    whole = step_seconds(trainer, upcoming, steps)
    phases = PhaseClock(device)
    with phases.attached(trainer):
        for _ in range(steps):
            phases.time_step(trainer, next(upcoming))
    waiting = None
    if run.ranks.world_size > 1:
        assert isinstance(trainer.loss, DistributedDataParallel)
        no_sync = trainer.loss.no_sync
        with replaced(trainer, "accumulate", lambda micro_batches: ((m, no_sync()) for m in micro_batches)):
            waiting = max(0.0, 1 - statistics.median(step_seconds(trainer, upcoming, steps)) / statistics.median(whole))

    memory = peak_memory(device)  # before the large matrices of the peak
    return BenchReport(
        machine=describe_machine(device),
        versions=f"Python {platform.python_version()}, torch {torch.__version__}",
        precision="bf16" if run.loss.bf16 else "fp32",
        processes=run.ranks.world_size,
        threads=torch.get_num_threads(),
        parameters=run.parameters,
        seq_len=length,
        global_batch_rows=run.schedule.rows(0),
        micro_batch_rows=largest,
        steps=steps,
        non_pad_share=tokens / positions,
        supervised_share=supervised,
        step_seconds=Spread(statistics.median(whole), min(whole), max(whole)),
        phase_seconds=phases.medians(),
        waiting_for_gradients=waiting,
        peak_memory_bytes=memory,
        peak_flops=matrix_peak(device, bf16=run.loss.bf16),
        flops_per_token=views * flops_per_token(run.loss.model.config, length, supervised, columns).training,
    )


def step_seconds(trainer: Trainer, upcoming: Iterator[Step], count: int) -> list[float]:
    """Seconds of each of the next `count` steps, with the device idle between them."""
    times = []
    for _ in range(count):
        step = next(upcoming)
        start = time.perf_counter()
        trainer.train_step(step)
        synchronise(trainer.device)
        times.append(time.perf_counter() - start)
    return times


class PhaseClock:
    """Adds up the seconds of the parts of a step; waits for the device before and after each part."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.now: dict[str, float] = defaultdict(float)
        """Seconds by part of the current step."""
        self.steps: list[dict[str, float]] = []
        """Seconds by part of every step so far."""

    @contextmanager
    def attached(self, trainer: Trainer) -> Iterator[None]:
        """Time the parts of the trainer's steps inside the block."""
        run = trainer.run
        parts: tuple[tuple[str, object, str], ...] = (
            ("data", run.loader, "micro_batches"),
            ("masking", run.recipe, "corrupt"),
            ("forward", trainer.loss, "forward"),
            ("backward", trainer, "backward"),
            ("optimizer", run.optimizer, "step"),
            ("EMA", run.ema, "update"),
        )
        with ExitStack() as stack:
            for phase, owner, name in parts:
                stack.enter_context(replaced(owner, name, self.timed(phase, getattr(owner, name))))
            yield

    def timed(self, phase: str, function: Callable[..., T]) -> Callable[..., T]:
        """Wrap a function so that its seconds are added to the phase."""

        def call(*arguments: Any, **named: Any) -> T:
            synchronise(self._device)
            start = time.perf_counter()
            result = function(*arguments, **named)
            synchronise(self._device)
            self.now[phase] += time.perf_counter() - start
            return result

        return call

    def time_step(self, trainer: Trainer, step: Step) -> None:
        """Run one step; the time that belongs to no part is `other`."""
        self.now = defaultdict(float)
        start = time.perf_counter()
        trainer.train_step(step)
        synchronise(self._device)
        self.now["other"] = time.perf_counter() - start - sum(self.now.values())
        self.steps.append(self.now)

    def medians(self) -> dict[str, float]:
        """Median seconds by phase."""
        return {phase: statistics.median(step[phase] for step in self.steps) for phase in self.steps[0]}


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace a method of one object inside the block."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


def print_report(report: BenchReport, console: Console) -> None:
    """Print the report as two tables, every figure with its unit."""
    step, processes = report.step_seconds, report.processes
    lines = {
        "machine": f"{report.machine}; {processes} process(es), {report.threads} thread(s) each; {report.versions}",
        "model": f"{report.parameters:,} parameters, {report.precision}",
        "batch": f"{report.global_batch_rows} rows of {report.seq_len} tokens,"
        f" at most {report.micro_batch_rows} in a micro-batch",
        "step": f"{1000 * step.median:,.1f} ms, median of {report.steps}"
        f" ({1000 * step.least:,.1f} to {1000 * step.most:,.1f})",
        "tokens/s": f"{report.tokens_per_second:,.0f} without padding, {report.padded_tokens_per_second:,.0f} with"
        f" ({report.non_pad_share:.1%} are tokens)",
        "peak memory": f"{report.peak_memory_bytes / 2**30:.2f} GiB{' per process' if processes > 1 else ''}",
        "FLOP per token": f"{report.flops_per_token / 1e6:,.1f} M forward and backward"
        f" ({report.supervised_share:.1%} of the positions supervised)",
        "matrix peak": f"{report.peak_flops / 1e12:,.3f} TFLOP/s per process, measured",
        "share of peak": f"{report.share_of_peak:.1%}",
    }
    if report.waiting_for_gradients is not None:
        lines["waiting for gradients"] = f"{report.waiting_for_gradients:.1%} of the step"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    for name, value in lines.items():
        table.add_row(name, value)
    console.print(table, highlight=False)
    split = Table("part of the step", "ms", "share", box=None, pad_edge=False)
    whole = sum(report.phase_seconds.values())
    for phase, seconds in report.phase_seconds.items():
        split.add_row(phase, f"{1000 * seconds:,.1f}", f"{seconds / whole:.1%}")
    console.print()
    console.print(split, highlight=False)
