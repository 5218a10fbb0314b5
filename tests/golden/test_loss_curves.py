"""Losses of short runs, written down: a change that moves them changes results, and has to say so.

Made by `PYTHONPATH=tests python tests/golden/test_loss_curves.py`; processors round differently, hence the tolerance.
"""

from pathlib import Path

import pytest
import torch
from support.runs import TINY

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.storage.checkpoint import Checkpoints
from ltg_mdlm.training.assembly import build_run
from ltg_mdlm.training.trainer import Trainer

CURVES = {
    "uniform_mdlm": [5.870, 7.464, 5.394, 6.088, 6.865, 6.935, 6.670, 7.268, 6.283, 7.139, 5.933, 7.235],
    "freq_mdlm": [5.870, 7.464, 5.328, 6.088, 6.865, 6.935, 6.767, 7.268, 6.285, 7.139, 6.209, 7.295],
    "freq_mdlm exact": [5.856, 7.447, 5.315, 6.074, 6.847, 6.919, 6.612, 7.183, 6.088, 7.121, 6.189, 7.277],
    "gpt_bert": [6.540, 6.477, 7.731, 6.295, 6.350, 7.381, 6.313, 7.357, 6.442, 6.191, 7.611, 6.147],
}  # fmt: skip
EXACT = ("plugins.freq_mdlm.weighting=exact", "plugins.freq_mdlm.statistics=corpus")
RECIPES = {
    "uniform_mdlm": ("uniform_mdlm", ()),
    "freq_mdlm": ("freq_mdlm", ()),
    "freq_mdlm exact": ("freq_mdlm", EXACT),
    "gpt_bert": ("gpt_bert", ()),
}


class Losses:
    """A sink that keeps the training losses."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def write(self, row) -> None:
        if "loss" in row:
            self.values.append(row["loss"])

    def close(self) -> None:
        pass


def curve(name: str) -> list[float]:
    """Losses of twelve steps."""
    plugin, sets = RECIPES[name]
    settings = load_settings((), [*TINY, *sets], [plugin])
    host = Host(settings.config, settings.sources)
    ranks = Ranks.alone()
    run = build_run(host, open_corpus(host.config), ranks)
    losses = Losses()
    trainer = Trainer(run, Checkpoints(Path(), every=1, keep=1, writes=False), [losses], StopRequest())
    for step in trainer.steps():
        trainer.train_step(step)
    return losses.values


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_curve_is_the_one_written_down(name):
    assert curve(name) == pytest.approx(CURVES[name], abs=2e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for recipe in RECIPES:
        print(f'    "{recipe}": [{", ".join(f"{loss:.3f}" for loss in curve(recipe))}],')
