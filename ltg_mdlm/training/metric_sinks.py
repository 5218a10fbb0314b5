"""Destinations of metrics: metrics.jsonl, the console, wandb, TensorBoard."""

from __future__ import annotations

import importlib.util
import json
import math
import netrc
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ltg_mdlm.core.config import LoggingConfig
from ltg_mdlm.core.errors import UserError, text_of
from ltg_mdlm.core.files import reason_of
from ltg_mdlm.core.terminal import FIRST_SECONDS, LOG_SECONDS, busy, clock, is_live

Row = Mapping[str, float | int | str]
"""Values by name; `step` is always present."""


class Sink(Protocol):
    """A destination of metrics."""

    def write(self, row: Row) -> None:
        """Add one row."""

    def close(self) -> None:
        """Write what is left, and release resources."""


class JSONLines:
    """metrics.jsonl: one JSON object per line, written without a buffer."""

    def __init__(self, path: Path, require_folder: Callable[[], None] = lambda: None) -> None:
        """`require_folder` raises UserError if the run folder is no longer this process's; called before every row."""
        self._path, self._require_folder = path, require_folder
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {reason_of(error)}") from None

    def write(self, row: Row) -> None:
        """Append a row; numbers that are not finite become null, since JSON has no such numbers.

        Raises UserError if the line cannot be written; what was written of it is dropped when the run is resumed.
        """
        self._require_folder()
        if not self._is_in_place():
            raise UserError(
                f"{self._path} was deleted or replaced while the run wrote to it"
                "\n  nothing saved is lost; run the same command to resume"
            )
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        line = (json.dumps(clean) + "\n").encode()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise UserError(
                f"cannot write to {self._path}: {error.strerror}"
                "\n  nothing saved is lost; make room, then run the same command to resume"
            ) from error

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False
        except OSError:
            return True  # the file system is unavailable for a moment, and writing shows whether it still is

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ConsoleSink:
    """A progress bar on a terminal, lines elsewhere.

    In a log, logged steps are printed at most every `SECONDS_BETWEEN_LINES`.  If nothing was printed for `LOG_SECONDS`,
    or for `FIRST_SECONDS` before the first ETA, a line with the number of steps is printed.  The ETA is the
    mean time of all steps of this process but the first, which is slow, times the number of steps that are left.
    """

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, first_step: int, max_steps: int, console: Console) -> None:
        self._console, self._max_steps = console, max_steps
        # Step and time at the end of the first step of this process.
        self._started: tuple[int, float] | None = None
        self._last_row, self._last_line = -math.inf, time.monotonic()
        self._patience = FIRST_SECONDS
        self._training = ""
        self._progress: Progress | None = None
        if is_live(console):
            self._progress = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[status]}"),
                console=console,
            )
            self._task = self._progress.add_task("", total=max_steps, completed=first_step, status="")
            self._progress.start()

    def write(self, row: Row) -> None:
        """Show a training row; print events and validations."""
        step, now = int(row["step"]), time.monotonic()
        if "event" in row:
            self._print(f"step {step}: {str(row['event']).replace('_', ' ')}, see metrics.jsonl")
        elif "loss" not in row:
            self._print(_validation_line(row))
        else:
            self._training = f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  {row['tokens_per_second']:,.0f} tokens/s"
            if self._progress is None and (
                now - self._last_row >= self.SECONDS_BETWEEN_LINES or step == self._max_steps
            ):
                self._last_row = now
                self._print(f"step {step}/{self._max_steps}  {self._training}", self._eta(step, now))

    def step_done(self, step: int) -> None:
        """Show that the first `step` steps are done; called after every step, once its row is written."""
        now = time.monotonic()
        eta = self._eta(step, now)
        if self._progress is not None:
            status = f"{eta}  {self._training}".strip()
            self._progress.update(self._task, completed=float(step), status=status)
        elif eta and now - self._last_line >= self._patience and step < self._max_steps:
            self._print(f"step {step}/{self._max_steps}", eta)

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        """Show what is done between two steps."""
        if self._progress is None:
            with busy(title):
                yield
        else:
            status = self._progress.tasks[0].fields["status"]
            self._progress.update(self._task, status=title)
            try:
                yield
            finally:
                self._progress.update(self._task, status=status)

    def close(self) -> None:
        """Remove the progress bar."""
        if self._progress is not None:
            self._progress.stop()

    def _eta(self, step: int, now: float) -> str:
        """Time until the last step, or nothing in the first step of this process."""
        if self._started is None:
            self._started = step, now
        first_step, start = self._started
        if step == first_step:
            return ""
        return f"  ETA {clock((now - start) / (step - first_step) * (self._max_steps - step))}"

    def _print(self, text: str, eta: str = "") -> None:
        self._console.print(text + eta, highlight=False, soft_wrap=True)
        self._last_line = time.monotonic()
        if eta:
            self._patience = LOG_SECONDS


def _validation_line(row: Row) -> str:
    parts = []
    if "valid/loss" in row:
        parts.append(f"loss {row['valid/loss']:.4f}")
        if "valid/bound" in row:
            parts.append(f"bound {row['valid/bound']:.4f} ± {row['valid/bound_standard_error']:.4f} nats per token")
        if "valid/accuracy" in row:
            parts.append(f"accuracy {float(row['valid/accuracy']):.1%}")
    if "valid/causal_nll" in row:
        parts.append(f"causal {row['valid/causal_nll']:.4f}")
    if "valid/minimal_pairs" in row:
        error = row.get("valid/minimal_pairs_standard_error")
        plus_minus = "" if error is None else f" ± {float(error):.1%}"
        parts.append(f"minimal pairs {float(row['valid/minimal_pairs']):.1%}{plus_minus}")
    return f"validation at step {row['step']}: {', '.join(parts)}"


class WandbSink:
    """Copies every row to wandb, as one wandb run per run folder.

    If wandb fails, a warning says so, and training continues without it: metrics.jsonl is the record of a run.  Slurm,
    for example, sends its signals to wandb's own process as well, which ends before the trainer does.
    """

    def __init__(self, folder: Path, settings: LoggingConfig, mode: str, config: Mapping[str, Any]) -> None:
        self._run: Any = None
        with self._without_failing():
            import wandb

            self._run = wandb.init(
                project=settings.wandb_project,
                name=folder.name,
                id=run_id(folder),
                resume="allow",
                dir=str(folder),
                mode=mode,
                config=dict(config),
                settings=wandb.Settings(silent=True),
            )

    def write(self, row: Row) -> None:
        """Log the row at its step."""
        if self._run is not None:
            with self._without_failing():
                self._run.log(dict(row), step=int(row["step"]))

    def close(self) -> None:
        """Finish the wandb run."""
        if self._run is not None:
            with self._without_failing():
                self._run.finish()

    @contextmanager
    def _without_failing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: of wandb, of its process, or of the network
            self._run = None
            warnings.warn(f"wandb failed, and is not used any more: {text_of(error)}", stacklevel=3)


class TensorBoardSink:
    """Copies every number to event files of TensorBoard, in `tensorboard/` of the run folder."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        """TensorBoard hides what an earlier process wrote of steps from `purge_step` on, which are repeated."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

    def write(self, row: Row) -> None:
        """Add the numbers of the row at its step."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def require_tensorboard() -> None:
    """Raises UserError if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "logging.tensorboard=true needs TensorBoard\n  pip install 'ltg-mdlm[tensorboard]', or leave it out"
        )


def run_id(folder: Path) -> str:
    """The wandb id of a run folder, stored in it, so that a resumed run continues its wandb run."""
    path = folder / "wandb_id"
    if not path.exists():
        path.write_text(f"{folder.name}-{os.urandom(4).hex()}"[-64:], encoding="utf-8")
    return path.read_text(encoding="utf-8")


def wandb_mode(settings: LoggingConfig) -> str | None:
    """The wandb mode to use, or None for no wandb; asks neither the user nor the network."""
    if settings.wandb == "off":
        return None
    if importlib.util.find_spec("wandb") is None:
        if settings.wandb != "auto":
            print(
                f"note: logging.wandb={settings.wandb}, but wandb is not installed (pip install wandb)", file=sys.stderr
            )
        return None
    if settings.wandb != "auto":
        return settings.wandb
    if (chosen := os.environ.get("WANDB_MODE")) in ("offline", "disabled"):
        return "offline" if chosen == "offline" else None
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        logged_in = netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        logged_in = False
    return "online" if logged_in else "offline"
