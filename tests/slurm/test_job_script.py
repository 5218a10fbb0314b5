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
        ("preempted", True, "USR1", "requeue"),
        ("preempted", False, "USR1", "exit 1"),
        ("", False, "TERM", "requeue"),
        ("failed", False, "TERM", "requeue"),
    ],
)
def test_a_run_that_was_stopped_or_lost_a_process_is_requeued_unless_that_cannot_help(
    tmp_path, status, saves, signal, ends
):
    """What always fails at the same step is tried twice, and what saves nothing within the time limit ends."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step_0000004\n")
    if status:
        RunFolder(tmp_path).write_status(Status(status, 8))
    training = f"echo step_0000008 > {tmp_path}/checkpoints/latest;" if saves else ""
    functions = (
        f"on_all_nodes() {{ {training} stop_signal={signal}; return 1; }}; requeue() {{ echo requeue; exit 0; }}"
        "; seconds_left() { echo 170; }"
    )
    printed = bash(f"{functions}; (train_and_requeue {tmp_path} -m x) || echo exit $?", SLURM_JOB_NODELIST="here")
    assert ends in printed.splitlines()
    assert ("requeue" in printed.splitlines()) == (ends == "requeue")


@pytest.mark.parametrize(
    ("code", "signal", "ends"), [(0, "", "exit 0"), (3, "", "exit 3"), (0, "USR1", "requeue"), (250, "", "requeue")]
)
def test_an_evaluation_goes_back_to_the_queue_whoever_was_told_to_stop(code, signal, ends):
    """A user's USR1, long before the time limit."""
    functions = f"on_all_nodes() {{ stop_signal={signal}; return {code}; }}; requeue() {{ echo requeue; exit 0; }}"
    commands = (
        f"{functions}; seconds_left() {{ echo 9000; }}; code=0; (run_and_requeue none -m x) || code=$?; echo exit $code"
    )
    printed = bash(commands, SLURM_JOB_NODELIST="here").splitlines()
    assert (printed[-2] if printed[-2] == "requeue" else printed[-1]) == ends


@pytest.mark.parametrize(("finished", "ends"), [(True, "requeue"), (False, "exit 1")])
def test_an_evaluation_that_is_longer_than_the_time_limit_is_not_repeated_for_ever(finished, ends, tmp_path):
    (tmp_path / "results").mkdir()
    part = f"touch {tmp_path}/results/summary.json;" if finished else ""
    functions = f"on_all_nodes() {{ {part} stop_signal=USR1; return 137; }}; requeue() {{ echo requeue; exit 0; }}"
    commands = f"{functions}; seconds_left() {{ echo 50; }}; (run_and_requeue {tmp_path}/results -m x) || echo exit $?"
    assert bash(commands, SLURM_JOB_NODELIST="here").splitlines()[-1] == ends


def test_a_process_that_hangs_is_killed_shortly_before_the_time_limit():
    """srun kills its processes when it gets TERM."""
    stubs = "kill() { echo kill $*; [ $1 != -TERM ]; }; sleep() { :; }; seconds_left() { echo 40; }"
    printed = bash(f"{stubs}; srun_pid=5; forward").splitlines()
    assert (printed[0], printed[-1]) == ("kill -USR1 5", "kill -TERM 5")


@pytest.mark.parametrize(
    ("end", "left"), [("2100-01-01T00:00:00", True), ("Unknown", True), ("2001-01-01T00:00:00", False)]
)
def test_the_time_that_is_left_is_that_of_slurm_if_there_is_a_limit(end, left):
    shown = f"JobId=7 JobState=RUNNING StartTime=2000-01-01T00:00:00 EndTime={end} Deadline=N/A"
    assert (int(bash(f"scontrol() {{ echo '{shown}'; }}; seconds_left")) >= 45) == left


def test_options_that_name_a_folder_are_those_of_the_sweep_without_resume(tmp_path):
    """`sweep folder` has no --resume."""
    (tmp_path / "python3").write_text('#!/bin/bash\nprintf "%s|" "$@" >> called; echo folder\n')
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "job.sh").write_text(
        "prepare_environment() { :; }; train_and_requeue() { printf '%s|' \"$@\" > trained; }\n"
    )
    arguments = ["--set", "a=b c", "--resume", "x", "--out-root", "d"]
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LTG_MDLM_SLURM": str(tmp_path),
        "SLURM_ARRAY_TASK_ID": "3",
    }
    script = ["bash", str(SCRIPT.with_name("array.sbatch")), "sweep", *arguments]
    subprocess.run(script, env=os.environ | variables, cwd=tmp_path, check=True)
    assert (tmp_path / "called").read_text() == "-m|ltg_mdlm|sweep|folder|sweep|3|--set|a=b c|--out-root|d|"
    given = "|".join(["folder", "-m", "ltg_mdlm", "sweep", "run", "sweep", "3", *arguments])
    assert (tmp_path / "trained").read_text() == f"{given}|"


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
