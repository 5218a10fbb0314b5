"""A trained run to measure on: the model with its averaged weights, its corpus and its recipe."""

from pathlib import Path

import torch

from ltg_mdlm.build import Run, build_run, open_corpus
from ltg_mdlm.config import load_settings
from ltg_mdlm.distributed import Ranks
from ltg_mdlm.host import Host


def load_run(folder: Path) -> Run:
    """The run on one CPU thread.  Raises UserError if the folder holds no run with a checkpoint."""
    settings = load_settings([str(folder / "config.yaml")], [f"run.init_from={folder}"])
    host = Host(settings.config, settings.sources)
    torch.set_num_threads(1)
    ranks = Ranks.alone()
    return build_run(host, open_corpus(host.config), ranks)
