"""Functions of slurm/job.sh, called as a job's script would, where no Slurm is needed."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from ltg_mdlm.run_folder import SILENT_SECONDS, RunFolder, Status

SCRIPT = Path(__file__).parents[2] / "slurm" / "job.sh"


def bash(commands: str, **variables: str) -> str:
    """What the commands print after job.sh was sourced in job 7; they do not sleep."""
    environment = os.environ | {"SLURM_JOB_ID": "7"} | variables
    script = f"source {SCRIPT}; sleep() {{ echo sleeping; stop_signal=test; }}; {commands}"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
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
    ("owner", "seconds_ago", "restarts", "waits"),
    [
        ("elsewhere process 1", 20, "1", True),
        ("elsewhere process 1", 20, "", False),
        ("elsewhere process 1", SILENT_SECONDS + 1, "1", False),
        (f"{socket.gethostname()} process 1", 20, "1", False),
        ("", 20, "1", False),
    ],
)
def test_only_a_restart_waits_and_only_for_a_lock_that_the_trainer_would_respect(
    tmp_path, owner, seconds_ago, restarts, waits
):
    lock = tmp_path / "lock"
    lock.write_text(owner)
    then = time.time() - seconds_ago
    os.utime(lock, (then, then))
    assert ("sleeping" in bash(f"await_lock {lock}", SLURM_RESTART_COUNT=restarts)) == waits
