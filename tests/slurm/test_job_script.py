"""Functions of slurm/job.sh, called as a job's script would, where no Slurm is needed."""

import os
import subprocess
from pathlib import Path

import pytest

from ltg_mdlm.storage.run_folder import RunFolder, Status

SCRIPT = Path(__file__).parents[2] / "slurm" / "job.sh"


def bash(commands: str, **variables: str) -> str:
    """What the commands print after job.sh was sourced in job 7."""
    environment = os.environ | {"SLURM_JOB_ID": "7"} | variables
    done = subprocess.run(
        ["bash", "-c", f"source {SCRIPT}; {commands}"], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_task_of_an_array_is_named_so_that_the_array_is_not_meant():
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert [bash('echo "$job"'), bash('echo "$job"', **task)] == ["7\n", "7_3\n"]


@pytest.mark.parametrize("status", ["running", "preempted", "finished", "failed"])
def test_the_status_is_read_from_the_run_folder(tmp_path, status):
    RunFolder(tmp_path).write_status(Status(status, 3, 'it said "status": no'))
    assert bash(f"status_of {tmp_path}") == f"{status}\n"


def test_a_run_that_never_started_has_no_status(tmp_path):
    assert bash(f"status_of {tmp_path}") == ""


@pytest.mark.parametrize(
    ("status", "saves", "signal", "ends"),
    [
        ("finished", True, "", "exit 1"),
        ("failed", True, "", "requeue"),
        ("failed", False, "", "exit 1"),
        ("running", True, "", "requeue"),
        ("running", False, "", "exit 1"),
        ("running", False, "TERM", "requeue"),
        ("preempted", False, "USR1", "requeue"),
    ],
)
def test_a_run_that_lost_a_process_is_requeued_only_if_it_has_saved_since_the_job_started(
    tmp_path, status, saves, signal, ends
):
    """So that what always fails at the same step is tried twice and not for ever."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step_0000004\n")
    RunFolder(tmp_path).write_status(Status(status, 8))
    training = f"echo step_0000008 > {tmp_path}/checkpoints/latest;" if saves else ""
    functions = f"on_all_nodes() {{ {training} stop_signal={signal}; return 1; }};requeue() {{ echo requeue; exit 0; }}"
    printed = bash(f"{functions}; (train_and_requeue {tmp_path} -m x) || echo exit $?", SLURM_JOB_NODELIST="here")
    assert ends in printed.splitlines()
    assert ("requeue" in printed.splitlines()) == (ends == "requeue")


@pytest.mark.parametrize("chosen", ["", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_memory_of_gpus_is_in_segments_that_can_grow_unless_the_user_chose_otherwise(chosen):
    commands = (
        'scontrol() { echo node; }; prepare_environment; echo "${PYTORCH_CUDA_ALLOC_CONF-}|${PYTORCH_ALLOC_CONF-}"'
    )
    unset = {"PYTORCH_CUDA_ALLOC_CONF": "", "PYTORCH_ALLOC_CONF": "", "SLURM_JOB_NODELIST": "node"}
    found = bash(commands, **unset | ({chosen: "mine"} if chosen else {}))
    assert (
        found
        == {
            "": "expandable_segments:True|\n",
            "PYTORCH_CUDA_ALLOC_CONF": "mine|\n",
            "PYTORCH_ALLOC_CONF": "|mine\n",
        }[chosen]
    )
