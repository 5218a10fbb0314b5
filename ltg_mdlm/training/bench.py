"""`ltg-mdlm bench`: how fast a run's training step is, where its time goes, and how much of the machine it uses."""

from __future__ import annotations

import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from ltg_mdlm.core.batch import IGNORE, Step
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.machine import describe_machine, matrix_peak, peak_memory, synchronise
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.core.settings import Settings
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.model.flops import flops_per_token
from ltg_mdlm.storage.checkpoint import Checkpoints
from ltg_mdlm.training.assembly import Run, build_run, use_bf16
from ltg_mdlm.training.recipe import MicroBatch
from ltg_mdlm.training.trainer import Trainer

T = TypeVar("T")


WARM_UP_STEPS = 2


MIN_STEPS = 3


@dataclass(frozen=True)
class Spread:
    """Seconds of a step over several steps."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class BenchReport:
    """What `ltg-mdlm bench` found; times are of one process, the first."""

    machine: str
    versions: str
    precision: str
    processes: int
    threads: int
    parameters: int
    seq_len: int
    global_batch_rows: int
    micro_batch_rows: int
    """The largest of this process."""
    steps: int
    non_pad_share: float
    supervised_share: float
    step_seconds: Spread
    phase_seconds: dict[str, float]
    """Median seconds by part of the step, measured in steps of their own, waiting for the device after each part."""
    waiting_for_gradients: float | None
    """Share of the step by which the all-reduce makes it longer; None for one process."""
    peak_memory_bytes: int
    peak_flops: float
    """Measured rate of a square matrix product, FLOP per second of one process."""
    flops_per_token: float

    @property
    def padded_tokens_per_second(self) -> float:
        """Of all processes together."""
        return self.global_batch_rows * self.seq_len / self.step_seconds.median

    @property
    def tokens_per_second(self) -> float:
        """The same without padding."""
        return self.padded_tokens_per_second * self.non_pad_share

    @property
    def share_of_peak(self) -> float:
        """Model FLOP utilisation, against the measured peak of all processes."""
        return self.padded_tokens_per_second * self.flops_per_token / (self.peak_flops * self.processes)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        derived = ("padded_tokens_per_second", "tokens_per_second", "share_of_peak")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def bench(settings: Settings, *, rows: int | None = None, steps: int = 10, seconds: float = 120) -> BenchReport | None:
    """Measure training steps as `train` would make them; nothing is written.

    Args:
        settings: of the run
        rows: rows of a global batch, instead of `training.global_batch_rows`
        steps: steps to time, at most
        seconds: time fewer steps, but at least 3, if they would take longer

    Returns None on every rank but the first.  Raises UserError as `train` would.
    """
    config = steady(settings.config, rows, max_steps=WARM_UP_STEPS + 3 * max(steps, MIN_STEPS))
    host = Host(config, settings.sources)
    with Ranks.setup(threads=host.config.training.threads) as ranks:
        peak_flops = matrix_peak(ranks.device, bf16=use_bf16(config, ranks.device))
        report = measure(build_run(host, open_corpus(config), ranks), steps, seconds, peak_flops)
        return report if ranks.is_main else None


def steady(config: RunConfig, rows: int | None, max_steps: int) -> RunConfig:
    """The settings with so many equal steps: full global batches, and rows of the first length."""
    changes = {
        "global_batch_rows": rows or config.training.global_batch_rows,
        "batch_ramp": None,
        "seq_len": config.training.stages[0][1],
        "seq_len_schedule": None,
        "max_steps": max_steps,
        "epochs": None,
    }
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def measure(run: Run, steps: int, seconds: float, peak_flops: float) -> BenchReport:
    """Time whole steps, then the parts of as many more, then steps without reduction of gradients."""
    trainer = Trainer(run, Checkpoints(Path(), every=1, keep=1, writes=False), [], StopRequest())
    upcoming = trainer.steps()
    seen = Seen()
    with seen.looking_at(run):
        warm_up = step_seconds(trainer, upcoming, WARM_UP_STEPS)
    steps = run.ranks.broadcast_object(max(MIN_STEPS, min(steps, int(seconds / warm_up[-1] / 2))))
    whole = step_seconds(trainer, upcoming, steps)
    clock = PhaseClock(run.ranks.device)
    with clock.attached(trainer):
        for _ in range(steps):
            clock.time_step(trainer, next(upcoming))
    waiting = None
    if run.ranks.world_size > 1:
        with gradients_apart(trainer):
            apart = statistics.median(step_seconds(trainer, upcoming, steps))
        waiting = max(0.0, 1 - apart / statistics.median(whole))
    sizes = run.loss.model.config
    length = run.config.training.seq_len
    supervised = seen.supervised / seen.positions
    return BenchReport(
        machine=describe_machine(run.ranks.device),
        versions=f"Python {platform.python_version()}, torch {torch.__version__}",
        precision="bf16" if run.loss.bf16 else "fp32",
        processes=run.ranks.world_size,
        threads=torch.get_num_threads(),
        parameters=run.parameters,
        seq_len=length,
        global_batch_rows=run.schedule.rows(0),
        micro_batch_rows=seen.micro_batch_rows,
        steps=steps,
        non_pad_share=seen.tokens / seen.positions,
        supervised_share=supervised,
        step_seconds=Spread(statistics.median(whole), min(whole), max(whole)),
        phase_seconds=clock.medians(),
        waiting_for_gradients=waiting,
        peak_memory_bytes=peak_memory(run.ranks.device),
        peak_flops=peak_flops,
        flops_per_token=flops_per_token(sizes, length, supervised).training,
    )


def step_seconds(trainer: Trainer, upcoming: Iterator[Step], count: int) -> list[float]:
    """Seconds of the next steps, the device idle between them."""
    times = []
    for _ in range(count):
        step = next(upcoming)
        start = time.perf_counter()
        trainer.train_step(step)
        synchronise(trainer.device)
        times.append(time.perf_counter() - start)
    return times


class Seen:
    """Counts of this rank's rows in the steps looked at."""

    def __init__(self) -> None:
        self.positions = self.tokens = self.supervised = self.micro_batch_rows = 0

    @contextmanager
    def looking_at(self, run: Run) -> Iterator[None]:
        """Count what is corrupted inside the block."""
        corrupt = run.recipe.corrupt

        def counted(*arguments: Any) -> MicroBatch:
            micro_batch = corrupt(*arguments)
            self.add(micro_batch)
            return micro_batch

        with replaced(run.recipe, "corrupt", counted):
            yield

    def add(self, micro_batch: MicroBatch) -> None:
        """Take in one micro-batch."""
        document_BT = micro_batch.batch.document_BT
        self.positions += document_BT.numel()
        self.tokens += int((document_BT >= 0).sum())
        self.supervised += int((micro_batch.corrupted.labels_BT != IGNORE).sum())
        self.micro_batch_rows = max(self.micro_batch_rows, len(document_BT))


class PhaseClock:
    """Adds up the seconds of a step's parts, waiting for the device at their ends."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.now: dict[str, float] = defaultdict(float)
        """Seconds by part since the last whole step."""
        self.steps: list[dict[str, float]] = []

    @contextmanager
    def attached(self, trainer: Trainer) -> Iterator[None]:
        """Time the parts of the trainer's steps inside the block."""
        run = trainer.run
        parts: Sequence[tuple[str, object, str]] = (
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
        """The function, its seconds added to the phase."""

        def call(*arguments: Any, **named: Any) -> T:
            synchronise(self._device)
            start = time.perf_counter()
            result = function(*arguments, **named)
            synchronise(self._device)
            self.now[phase] += time.perf_counter() - start
            return result

        return call

    def time_step(self, trainer: Trainer, step: Step) -> None:
        """Make one step; what belongs to no part is `other`."""
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
def gradients_apart(trainer: Trainer) -> Iterator[None]:
    """No gradient leaves its process inside the block: what is left of a step without the all-reduce."""

    def accumulate(micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, Any]]:
        for micro_batch in micro_batches:
            yield micro_batch, trainer.loss.no_sync()  # type: ignore[operator]

    with replaced(trainer, "accumulate", accumulate):
        yield


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """An attribute of one object, for the time of the block."""
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


def print_report(report: BenchReport, console: Console) -> None:
    """As a table for people."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    for name, value in described(report).items():
        table.add_row(name, value)
    console.print(table, highlight=False)
    split = Table("part of the step", "ms", "share", box=None, pad_edge=False)
    whole = sum(report.phase_seconds.values())
    for phase, seconds in report.phase_seconds.items():
        split.add_row(phase, f"{1000 * seconds:,.1f}", f"{seconds / whole:.1%}")
    console.print()
    console.print(split, highlight=False)


def described(report: BenchReport) -> dict[str, str]:
    """Every figure with its unit."""
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
    return lines
