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
    "uniform_mdlm": [5.440, 7.339, 5.250, 5.900, 6.502, 6.692, 6.538, 7.307, 6.233, 7.225, 5.527, 6.700],
    "freq_mdlm": [5.440, 7.339, 5.250, 5.900, 6.561, 6.692, 6.538, 7.323, 6.292, 7.296, 5.618, 6.819],
    "freq_mdlm exact": [5.427, 7.322, 5.238, 5.887, 6.547, 6.677, 6.454, 7.307, 5.919, 7.374, 5.603, 6.806],
    "gpt_bert": [6.695, 6.555, 7.555, 6.444, 6.355, 7.458, 6.210, 7.517, 6.227, 6.185, 7.263, 6.231],
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
