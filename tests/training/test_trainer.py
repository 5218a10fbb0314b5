"""The trainer in this process: synchronisation with the device, devices against each other, minimal pairs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.runs import SCORED, TINY

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.data.records import MinimalPair, write_minimal_pairs
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.storage.checkpoint import Checkpoints
from ltg_mdlm.testing.host_reads import cuda_waits_are_errors, no_host_reads_in_a_step
from ltg_mdlm.training import assembly
from ltg_mdlm.training.assembly import build_run, micro_batch_rows, tokens_per_micro_batch
from ltg_mdlm.training.compilation import resolve_compile
from ltg_mdlm.training.trainer import Trainer

PLUGINS = ("uniform_mdlm", "freq_mdlm", "gpt_bert", "amlm", "dual")
OTHERS = ("gidd", "complementary", "block_diffusion", "learned_schedule")
UNLOGGED = ("logging.every=100", "training.micro_batch_rows=3")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, gpu])]


class Rows(list):
    """A sink that keeps rows."""

    write = list.append

    def close(self) -> None:
        pass


def make_trainer(plugin: str, device: str, *sets: str, rows: Rows | None = None) -> Trainer:
    settings = load_settings((), [*TINY, "training.compile=false", *sets], [plugin])
    host = Host(settings.config, settings.sources)
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device(device, 0 if device == "cuda" else None))
    run = resolve_compile(build_run(host, open_corpus(host.config), ranks))
    sinks = [] if rows is None else [rows]
    return Trainer(run, Checkpoints(Path(), every=99, keep=1, writes=False), sinks, StopRequest())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("plugin", PLUGINS + OTHERS)
def test_a_step_that_is_not_logged_never_waits_for_the_device(plugin, device):
    """Except for the number of supervised positions, which was copied a micro-batch ahead."""
    trainer = make_trainer(plugin, device, *UNLOGGED)
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


@pytest.mark.parametrize(("gigabytes", "tokens"), [(141, 65536), (80, 65536), (24, 19660)])
def test_a_smaller_gpu_has_smaller_micro_batches(gigabytes, tokens, monkeypatch):
    memory = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert tokens_per_micro_batch(torch.device("cuda")) == tokens
    assert tokens_per_micro_batch(torch.device("cpu")) == 4096


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_gpu_trains_what_a_cpu_trains(plugin):
    on_cpu, on_gpu = (weights_after(make_trainer(plugin, device, *UNLOGGED), 3) for device in ("cpu", "cuda"))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@gpu
@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch deprecates
@pytest.mark.parametrize("setting", ["training.compile=true", "training.activation_checkpointing=true"])
def test_compilation_and_activation_checkpointing_do_not_change_the_weights(setting):
    plain, changed = (make_trainer("freq_mdlm", "cuda", *UNLOGGED, *sets) for sets in ((), (setting,)))
    torch.testing.assert_close(weights_after(changed, 3), weights_after(plain, 3), rtol=1e-3, atol=1e-4)
    assert changed.run.loss.compiled == ("compile" in setting), "the compiler failed"


def test_micro_batches_hold_about_as_many_tokens_at_any_row_length():
    config = load_settings((), ()).config
    sizes = [length * micro_batch_rows(config, torch.device("cpu"), length) for length in (32, 128)]
    assert sizes[0] == sizes[1]


def test_every_stage_has_micro_batches_of_its_own_size(monkeypatch):
    """Those of short rows are not limited by the memory that the longest rows need."""
    monkeypatch.setitem(assembly.TOKENS_PER_MICRO_BATCH, "cpu", 256)
    stages = "training.seq_len_schedule=[[0, 16], [0.5, 32]]"
    trainer = make_trainer("gpt_bert", "cpu", stages, "training.global_batch_rows=40")
    assert trainer.run.loader.micro_batch_rows == [16, 8]
    sizes = {tuple(batch.ids_BT.shape) for step in range(12) for batch in trainer.run.loader.micro_batches(step)}
    assert sizes == {(13, 16), (14, 16), (6, 32), (7, 32)}


PAIRS = [
    MinimalPair("The dog runs.", "The dog run.", "agreement"),
    MinimalPair("A cat saw it.", "Cat a saw it.", "order"),
]


def rows_of(*sets: str) -> Rows:
    rows = Rows()
    make_trainer("freq_mdlm", "cpu", *sets, rows=rows).train()
    return rows


@pytest.mark.parametrize(("every", "steps"), [("null", [0, 12]), ("4", [0, 4, 8, 12])])
def test_pairs_are_scored_before_and_after_training_and_every_so_many_steps(tmp_path, every, steps):
    write_minimal_pairs(tmp_path / "pairs.jsonl", PAIRS)
    rows = rows_of(f"validation.pairs={tmp_path / 'pairs.jsonl'}", f"validation.pairs_every={every}")
    assert [row["step"] for row in rows if "valid/minimal_pairs" in row] == steps
    assert [row["step"] for row in rows if "valid/loss" in row] == [0, 6, 12]


def test_scoring_pairs_does_not_change_training():
    plain = [row["loss"] for row in rows_of() if "loss" in row]
    scored = [row["loss"] for row in rows_of(*SCORED, "validation.pairs_every=1") if "loss" in row]
    assert plain == scored
    assert len(plain) == 12
