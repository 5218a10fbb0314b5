"""Training steps of a tiny model with a plugin, which take about a second."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.host.slots import Components
from ltg_mdlm.storage.checkpoint import Checkpoints
from ltg_mdlm.testing.plugin_under_test import PluginUnderTest
from ltg_mdlm.training.assembly import build_run
from ltg_mdlm.training.metric_sinks import Row
from ltg_mdlm.training.trainer import Trainer


class Rows:
    """A metric sink that keeps the logged rows."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def write(self, row: Row) -> None:
        """Keep a row."""
        self.rows.append(row)

    def close(self) -> None:
        """Does nothing."""


@contextmanager
def trainer_of(subject: PluginUnderTest, *sets: str, ranks: Ranks | None = None) -> Iterator[tuple[Trainer, Rows]]:
    """The trainer of a tiny run with the plugin, and the rows it logs. Its checkpoints are deleted at the end."""
    ranks = ranks or Ranks.alone()
    host = subject.host(*sets)
    rows = Rows()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), every=1, keep=1, by_words=False, writes=ranks.is_main)
        trainer = Trainer(build_run(host, open_corpus(host.config), ranks), checkpoints, [rows], StopRequest())
        try:
            yield trainer, rows
        finally:
            trainer.close()


def take_steps(trainer: Trainer, count: int) -> None:
    """Train the next steps."""
    steps = trainer.steps()
    for _ in range(count):
        trainer.train_step(next(steps))


@dataclass(frozen=True)
class Steps:
    """The result of a few training steps."""

    rows: tuple[Row, ...]
    """The logged rows, as in metrics.jsonl, one per step."""
    components: Components
    """The components after the last step."""
    state: dict[str, Tensor]
    """Their state as in a checkpoint, by `<slot>/<key>`."""

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return [float(row["loss"]) for row in self.rows]


def train_steps(
    plugin: PluginUnderTest, *sets: str, steps: int = 5, ranks: Ranks | None = None, dropout: bool = True
) -> Steps:
    """Train a tiny model for `steps` steps. `sets` are further settings, `key.path=value`.

    Without `dropout`, neither the model nor learned parts have any. It is drawn per micro-batch and rank, so runs that
    split their rows differently can only be compared without it.
    """
    sets = sets if dropout else (*sets, "model.dropout=0")
    with trainer_of(plugin, *sets, ranks=ranks) as (trainer, rows):
        if not dropout:
            for module in trainer.run.loss.modules():  # learned parts included
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.p = 0.0
        take_steps(trainer, steps)
        recipe = trainer.recipe
        state = {key: value.detach().clone() for key, value in recipe.state_dict().items()}
        return Steps(tuple(rows.rows), recipe.components, state)
