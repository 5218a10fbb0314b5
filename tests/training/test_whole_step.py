"""A step of the real trainer from data to moving average: what waits for the device, and what a GPU makes of it."""

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
from ltg_mdlm.testing.host_reads import cuda_waits_are_errors, no_host_reads_in_a_step
from ltg_mdlm.training.assembly import build_run
from ltg_mdlm.training.trainer import Trainer

PLUGINS = ("uniform_mdlm", "freq_mdlm", "gpt_bert", "amlm", "dual")
SETS = (*TINY, "logging.every=100", "training.micro_batch_rows=3")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, gpu])]


def make_trainer(plugin: str, device: str, *sets: str) -> Trainer:
    settings = load_settings((), [*SETS, *sets], [plugin])
    host = Host(settings.config, settings.sources)
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device(device, 0 if device == "cuda" else None))
    run = build_run(host, open_corpus(host.config), ranks)
    return Trainer(run, Checkpoints(Path(), every=1, keep=1, writes=False), [], StopRequest())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_step_that_is_not_logged_never_waits_for_the_device(plugin, device):
    """Rule 5: but for the count of supervised positions, which was copied a micro-batch ahead."""
    trainer = make_trainer(plugin, device)
    steps = trainer.steps()
    trainer.train_step(next(steps))  # the first is logged
    watch = cuda_waits_are_errors() if device == "cuda" else no_host_reads_in_a_step()
    step = next(steps)
    with watch:
        trainer.train_step(step)


def weights_after(trainer: Trainer, steps: int) -> torch.Tensor:
    upcoming = trainer.steps()
    for _ in range(steps):
        trainer.train_step(next(upcoming))
    return torch.cat([p.detach().flatten() for p in trainer.run.loss.model.parameters()]).cpu()


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_gpu_trains_what_a_cpu_trains(plugin):
    on_cpu, on_gpu = (weights_after(make_trainer(plugin, device), 3) for device in ("cpu", "cuda"))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("setting", ["training.compile=true", "training.activation_checkpointing=true"])
def test_what_makes_a_gpu_faster_or_smaller_does_not_change_what_it_trains(setting):
    plain, changed = (weights_after(make_trainer("freq_mdlm", "cuda", *sets), 3) for sets in ((), (setting,)))
    torch.testing.assert_close(changed, plain, rtol=1e-3, atol=1e-4)
