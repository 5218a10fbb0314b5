"""environment.json: what a paper must state about a run, for every start."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import runs
from support.runs import killed, run

from ltg_mdlm import __version__
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.storage import run_folder
from ltg_mdlm.storage.run_folder import RunFolder
from ltg_mdlm.training import attention_choice, environment, resource_use
from ltg_mdlm.training.attention_choice import choose_attention
from ltg_mdlm.training.environment import checkout_commit, previous_start
from ltg_mdlm.training.resource_use import EnergyCounter, ResourceMeter

STOP = ({"at": "step 5", "do": "SIGTERM"},)


def starts(out) -> list[dict]:
    return json.loads((out / "environment.json").read_text())["starts"]


def test_every_start_of_a_run_is_listed_with_its_machine_and_choices(tmp_path):
    run(tmp_path / "run", processes=2, faults=STOP)
    assert run(tmp_path / "run")[0].code == 0
    first, second = starts(tmp_path / "run")
    assert (first["step"], first["processes"], first["machines"][0]["processes"]) == (0, 2, 2)
    assert (second["step"], second["processes"], second["machines"][0]["processes"]) == (6, 1, 1)
    assert first["versions"]["torch"] == torch.__version__
    assert first["versions"]["ltg_mdlm"] == __version__
    assert {"host", "cpu", "threads", "memory_bytes"} <= first["machines"][0].keys()
    choices = first["precision"], first["attention"]["kernel"], first["compile"]
    assert choices == ("fp32", "library", {"enabled": False})
    for start in (first, second):  # the first one was preempted
        assert start["command"]
        assert 0 < start["cpu_seconds"] < 2 * start["processes"] * start["wall_seconds"]
        assert start["device_seconds"] == 0


def test_a_killed_start_keeps_the_sums_of_its_last_checkpoint(tmp_path):
    killed(tmp_path / "run", faults=({"at": "step 6", "do": "SIGKILL"},))
    [start] = starts(tmp_path / "run")
    assert start["wall_seconds"] > 0


def launch_with_a_full_disk(rank, *arguments):
    """`launch_quietly`; environment.json can only be written at the start, and from the third time on."""
    write, written = run_folder.write_text, []

    def write_text(file, text):
        written.append(file.name)
        if file.name == "environment.json" and written.count(file.name) == 2:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(file))
        write(file, text)

    run_folder.write_text = write_text
    return runs.launch_quietly(rank, *arguments)


def test_facts_that_cannot_be_written_do_not_end_the_run(tmp_path, monkeypatch):
    original = runs.run_on_ranks
    monkeypatch.setattr(
        runs, "run_on_ranks", lambda _, *rest, **options: original(launch_with_a_full_disk, *rest, **options)
    )
    (done,) = run(tmp_path / "run")
    assert done.code == 0
    assert re.search(r"warning: .*environment\.json: the disk quota is used up; .*\n  training continues", done.output)
    assert starts(tmp_path / "run")[0]["compile"] == {"enabled": False}
    assert starts(tmp_path / "run")[0]["wall_seconds"] > 0


def git(folder, *arguments):
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *author, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_dirty_if_its_program_was_changed(tmp_path, monkeypatch):
    package = tmp_path / "ltg_mdlm" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(environment.ltg_mdlm, "__file__", str(package))
    assert checkout_commit() is None
    git(tmp_path, "init", "-q")
    assert checkout_commit() is None  # no commit yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text("{}")
    assert checkout_commit() == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    package.write_text("changed = True\n")
    assert checkout_commit()["dirty"]


def test_energy_counters_that_start_again_are_added_up():
    values = iter([90.0, 98.0, 3.0, 10.0])
    counter = EnergyCounter(lambda: next(values), limit=100.0)
    assert [counter.joules() for _ in range(4)] == [8.0, 13.0, 20.0, 20.0]  # at last it cannot be read


def test_the_energy_of_processors_is_read_from_the_files_of_the_kernel(tmp_path, monkeypatch):
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("262143328850\n")
        (tmp_path / name / "energy_uj").write_text("5000000\n")
    monkeypatch.setattr(resource_use, "POWERCAP", tmp_path)
    with ResourceMeter(Ranks.alone()) as meter:
        for name in ("intel-rapl:0", "intel-rapl:0:0"):
            (tmp_path / name / "energy_uj").write_text("9500000\n")
        assert meter.facts()["energy_joules"] == {"cpu": 4.5}


@pytest.mark.parametrize("damaged", ['{"starts": [{"ti', "[]", '{"starts": [1]}', "", "\xff"])
def test_a_damaged_file_gives_one_warning_and_is_written_anew(damaged, tmp_path):
    folder = RunFolder(tmp_path)
    folder.environment_file.write_bytes(damaged.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"environment.json.*what it said about earlier starts is lost") as warned:
        folder.add_to_environment({"step": 3}, new_start=True)
    folder.add_to_environment({"compile": {"enabled": True}})  # any other warning is an error
    assert len(warned) == 1
    assert starts(tmp_path) == [{"step": 3, "compile": {"enabled": True}}]


def test_facts_are_added_to_the_newest_start(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (0, 7):
        folder.add_to_environment({"step": step}, new_start=True)
    RunFolder(tmp_path).add_to_environment({"seconds": 2.5})
    assert starts(tmp_path) == [{"step": 0}, {"step": 7, "seconds": 2.5}]


def test_a_resumed_run_finds_the_choices_of_its_last_start_on_such_a_device(tmp_path):
    folder, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    for made in (folder, other):
        made.path.mkdir()
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    for step, device in enumerate(("cuda", "cuda", "cpu")):
        folder.add_to_environment({"step": step, "device": device}, new_start=True)
    assert previous_start(folder, None, gpu)["step"] == 1
    assert previous_start(folder, None, cpu)["step"] == 2
    checkpoint = folder.checkpoints / "step_0000004"
    assert previous_start(other, checkpoint, gpu)["step"] == 1
    assert previous_start(other, None, gpu) == {}


def test_auto_keeps_the_attention_kernel_that_a_run_was_started_with(monkeypatch):
    monkeypatch.setattr(attention_choice, "measured", lambda *_, **__: 1 / 0)

    def chosen(before: str, excess: float) -> str:
        monkeypatch.setattr(attention_choice, "largest_excess", lambda *_: excess)
        gpu = torch.device("cuda", 0)
        return choose_attention("auto", None, gpu, torch.bfloat16, rows=2, length=16, before=before).kernel

    assert chosen("library", 0.0) == "library"
    assert chosen("fused", 0.5) == "fused"
    assert chosen("fused", 1.5) == "library"  # it has become wrong, on another GPU or with another compiler


def test_the_energy_of_a_gpu_is_that_of_its_own_counter(monkeypatch):
    millijoules = iter([1_000_000, 1_250_000])
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-12ab": "handle"}[uuid],
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(millijoules),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12ab"))
    monkeypatch.setattr(resource_use, "POWERCAP", Path("/nowhere"))
    meter = ResourceMeter(Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cuda", 0)))
    facts = meter.facts()
    assert facts["energy_joules"] == {"gpu": 250.0}
    assert facts["device_seconds"] == facts["wall_seconds"]


def test_processes_that_each_see_one_gpu_as_the_first_have_as_many_gpus(monkeypatch):
    ids = iter("ab")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=next(ids)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(resource_use, "POWERCAP", Path("/nowhere"))
    ranks = Ranks(rank=0, world_size=2, local_rank=0, device=torch.device("cuda", 0))
    mine = []
    monkeypatch.setattr(Ranks, "gather_objects", lambda self, facts: mine.append(facts) or list(mine))
    meter = ResourceMeter(ranks)
    meter.facts()
    facts = meter.facts()
    assert facts["device_seconds"] == pytest.approx(2 * facts["wall_seconds"], abs=0.002)
