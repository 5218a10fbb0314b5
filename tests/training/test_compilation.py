"""Compiled layers: the same numbers, few graphs for a whole training, and eager execution where the compiler fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor
from support.runs import TINY, Outcome, launch_quietly, losses
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.storage.checkpoint import Checkpoints
from ltg_mdlm.testing.ranks import run_on_ranks
from ltg_mdlm.training import compilation
from ltg_mdlm.training.assembly import build_run
from ltg_mdlm.training.compilation import resolve_compile
from ltg_mdlm.training.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch deprecates
ON = "training.compile=true"
SMALL = ("model.dropout=0", "validation.every=99", "logging.every=99", "training.micro_batch_rows=3")
TWO_STAGES_AND_A_RAMP = (
    "training.seq_len_schedule=[[0, 16], [0.5, 32]]",
    "training.batch_ramp.start=0.25",
    "training.global_batch_rows=16",
)


def trained(*sets: str, plugin: str = "gpt_bert", signal: str | None = None) -> tuple[torch.Tensor, list[str]]:
    """Weights after a tiny training, and the reports about compilation; `signal` has come before."""
    reports: list[str] = []
    stop = StopRequest()
    stop.signal_name = signal
    settings = load_settings((), [*TINY, *SMALL, *sets], [plugin])
    host = Host(settings.config, settings.sources)
    the_run = resolve_compile(build_run(host, open_corpus(host.config), Ranks.alone()))
    checkpoints = Checkpoints(Path(), every=99, keep=1, writes=False)
    trainer = Trainer(the_run, checkpoints, [], stop, lambda text, facts: reports.append(f"{text} {facts}"))
    for step in trainer.steps():
        trainer.train_step(step)
    return torch.cat([p.detach().flatten() for p in the_run.loss.model.parameters()]), reports


@pytest.mark.parametrize(
    ("plugin", "sets"), [("gpt_bert", ()), ("block_diffusion", ("training.activation_checkpointing=true",))]
)
def test_a_whole_training_compiles_two_graphs_for_every_row_length(plugin, sets, monkeypatch):
    """Over a batch ramp, micro-batches of all numbers of rows, both modes and both stages."""
    counted = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compilation, "BACKEND", counted)
    compiled, reports = trained(ON, *TWO_STAGES_AND_A_RAMP, *sets, plugin=plugin)
    assert [text.partition(",")[0] for text in reports] == [
        f"compile: layers for 3 rows of {length}" for length in (16, 32)
    ]
    assert counted.frame_count == 4
    plain, _ = trained(*TWO_STAGES_AND_A_RAMP, *sets, plugin=plugin)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def broken(*_):
    raise RuntimeError("no compiler\n  is installed")


BROKEN_LATER = aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=broken)


@pytest.mark.parametrize("backend", [broken, BROKEN_LATER], ids=["forward", "backward"])
def test_a_run_trains_without_compiled_layers_where_the_compiler_fails(backend, monkeypatch):
    monkeypatch.setattr(compilation, "BACKEND", backend)
    weights, reports = trained(ON)
    assert len(reports) == 1
    assert reports[0].startswith("compile: off, since it failed for 3 rows of 32: ")
    assert "no compiler is installed" in reports[0]
    assert "'enabled': False" in reports[0]
    assert torch.equal(weights, trained()[0])


def test_a_compiler_that_a_stop_signal_ended_is_tried_again_in_the_next_start(monkeypatch):
    """Slurm and torchrun send TERM to the processes of the compiler, too."""
    monkeypatch.setattr(compilation, "BACKEND", broken)
    _, reports = trained(ON, signal="SIGTERM")
    assert "'enabled': False" in reports[0]
    assert "'retry': True" in reports[0]


def compile_facts(out: Path) -> list[dict]:
    return [start["compile"] for start in json.loads((out / "environment.json").read_text())["starts"]]


def launch_on_rank(rank, backend, out, sets, faults):
    compilation.BACKEND = broken if backend == "broken on rank 1" and rank == 1 else "aot_eager"
    return launch_quietly(rank, str(out), "uniform_mdlm", (*TINY, *SHORT, *sets), faults, "auto", ())


def on_two_ranks(out: Path, *sets: str, backend: str = "aot_eager", faults: tuple[dict, ...] = ()) -> list[Outcome]:
    return run_on_ranks(launch_on_rank, 2, backend, out, sets, faults, joined=False, timeout=300)


SHORT = ("training.max_steps=4", "model.dropout=0", "checkpoint.every=2")


def test_all_ranks_go_without_compiled_layers_if_one_cannot_compile(tmp_path):
    outcomes = on_two_ranks(tmp_path / "broken", ON, backend="broken on rank 1")
    assert "compile: off, since it failed for 3 rows of 32: another process failed" in outcomes[0].output
    assert compile_facts(tmp_path / "broken") == [{"enabled": False, "reason": "another process failed"}]
    on_two_ranks(tmp_path / "plain")
    assert losses(tmp_path / "broken") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_compiled_layers_train_under_data_parallelism_and_resume_bitwise(tmp_path):
    outcomes = on_two_ranks(tmp_path / "whole", ON)
    assert ["compile: layers for" in outcome.output for outcome in outcomes] == [True, False]
    stop = ({"at": "step 2", "do": "SIGTERM"},)
    assert on_two_ranks(tmp_path / "resumed", ON, faults=stop)[0].code == 75
    on_two_ranks(tmp_path / "resumed", ON)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    assert [facts["enabled"] for facts in compile_facts(tmp_path / "resumed")] == [True, True]
    on_two_ranks(tmp_path / "plain")
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "stored", "before", "compiles"),
    [
        ("auto", None, {}, True),
        ("auto", {"compile": "auto"}, {"compile": {"enabled": True}}, True),
        ("auto", {"compile": "auto"}, {"compile": {"enabled": False}}, False),
        ("auto", {"compile": "auto"}, {"compile": {"enabled": False, "retry": True}}, True),
        ("auto", {"compile": False}, {}, False),
        ("auto", {}, {}, True),
        ("false", {"compile": True}, {}, False),
        ("true", {"compile": False}, {"compile": {"enabled": False}}, True),
    ],
)
def test_auto_keeps_what_a_run_was_started_with(setting, stored, before, compiles):
    """On GPUs."""
    settings = load_settings((), [*TINY, f"training.compile={setting}"], ["uniform_mdlm"])
    host = Host(settings.config, settings.sources)
    the_run = build_run(host, open_corpus(host.config), Ranks.alone())
    on_gpu = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cuda", 0))
    object.__setattr__(the_run, "ranks", on_gpu)
    resolved = resolve_compile(the_run, stored, before)
    assert resolved.loss.compiled == compiles
    kept = (stored or {}).get("compile", "auto") if setting == "auto" else the_run.config.training.compile
    assert resolved.config.training.compile == kept


def test_deterministic_runs_do_not_pad_matrices_by_measurement(monkeypatch):
    monkeypatch.setattr(inductor, "shape_padding", True)
    settings = load_settings((), [*TINY, "training.compile=true", "training.deterministic=true"], ["uniform_mdlm"])
    host = Host(settings.config, settings.sources)
    resolve_compile(build_run(host, open_corpus(host.config), Ranks.alone()), None, None)
    assert inductor.shape_padding is False
