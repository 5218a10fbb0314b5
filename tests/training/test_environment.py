"""environment.json: what a paper must state about a run, for every start."""

from __future__ import annotations

import json

import pytest
import torch
from support.runs import run

from ltg_mdlm import __version__
from ltg_mdlm.storage.run_folder import RunFolder
from ltg_mdlm.training import attention_choice
from ltg_mdlm.training.attention_choice import choose_attention
from ltg_mdlm.training.environment import previous_start

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
