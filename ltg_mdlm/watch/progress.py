"""How far a run is, from its files."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import yaml

from ltg_mdlm.config import parse_yaml
from ltg_mdlm.metrics import clock
from ltg_mdlm.metrics_file import MetricsFile
from ltg_mdlm.report import run_status, shows_life
from ltg_mdlm.run_folder import RunFolder, Status

_RECENT = 20
"""Logged rows over which the throughput is averaged."""
_SHOWN = (("loss", "objective {:.4f}"), ("valid/bound", "held-out bound {:.4f}"), ("lr", "lr {:.2e}"))


class WatchedRun:
    """A run folder that is looked at again and again."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, RunFolder(path)
        self.metrics = MetricsFile(self.folder.metrics_file)
        self._training: dict[str, Any] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what is new."""
        self._training = self._training or self._read_training()
        self._status: Status | None = self.folder.read_status()
        self.state = run_status(self.folder) if self.path.is_dir() else "gone"
        self.ended = not shows_life(self.folder)
        self.metrics.refresh()

    def _read_training(self) -> dict[str, Any]:
        """The section `training` of its settings; empty before they are written, and if they are damaged."""
        try:
            return dict(parse_yaml(self.folder.read_config() or "")["training"])
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            return {}

    @property
    def step(self) -> int:
        """The last one that is known."""
        logged = self.metrics.last.get("step", 0.0)
        return max(int(logged), self._status.step if self._status else 0)

    @property
    def share(self) -> float | None:
        """Of training that is done; None if it is not known."""
        steps, epochs = self._training.get("max_steps"), self._training.get("epochs")
        if steps:
            return min(self.step / float(steps), 1.0)
        if epochs and "epoch" in self.metrics.last:
            return min(self.metrics.last["epoch"] / float(epochs), 1.0)
        return None

    @property
    def last_step(self) -> int:
        """Where training will end, as far as that can be told; else where it is."""
        return round(self.step / self.share) if self.share else max(self.step, 1)

    @property
    def throughput(self) -> float | None:
        """Tokens per second, lately."""
        curve = self.metrics.curves.get("tokens_per_second")
        known = [value for value in curve.values[-_RECENT:] if math.isfinite(value)] if curve else []
        return statistics.fmean(known) if known else None

    @property
    def seconds_left(self) -> float | None:
        """Of training alone, at the recent throughput."""
        seen = self.metrics.last.get("tokens_seen")
        if not (self.share and self.throughput and seen):
            return None
        return seen * (1 / self.share - 1) / self.throughput

    def lines(self) -> tuple[str, str]:
        """Where it is, and how it does."""
        done = f" of {self.last_step} ({self.share:.0%})" if self.share is not None else ""
        place = f"{self.path.name}  {self.state}  step {self.step}{done}"
        if not self.ended and self.seconds_left is not None:
            place += f"  ETA {clock(self.seconds_left)}"
        last = self.metrics.last
        figures = [form.format(last[key]) for key, form in _SHOWN if key in last]
        if self.throughput is not None:
            figures.append(f"{self.throughput:,.0f} tokens/s")
        if self.metrics.refused:
            figures.append(f"{self.metrics.refused} updates refused")
        if self._status is not None and self._status.reason:
            figures.append(self._status.reason)
        return place, "  ".join(figures) or "nothing logged yet"
