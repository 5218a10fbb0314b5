"""Loads a trained run for measurements: the model with averaged weights, the corpus and the recipe."""

from pathlib import Path

import torch

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.training.assembly import Run, build_run


def load_run(folder: Path, *sets: str) -> Run:
    """Load a run, with other settings, and use one CPU thread.

    Raises UserError if the folder has no run with a checkpoint.
    """
    settings = load_settings([str(folder / "config.yaml")], [f"run.init_from={folder}", *sets])
    host = Host(settings.config, settings.sources)
    torch.set_num_threads(1)
    return build_run(host, open_corpus(host.config), Ranks.alone())
