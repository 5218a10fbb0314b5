"""The job scripts, on a real Slurm: whatever ends a job early, its run goes on and comes to the same end."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from support.runs import TINY, losses, train
from support.slurm import Cluster, wait_until

SCRIPTS = Path(__file__).parents[2] / "slurm"
PATIENCE = 300.0
"""Seconds that anything may take on a busy machine."""
LONG = ("training.max_steps=60", "checkpoint.every=1000", "validation.every=1000")
"""Long enough to be stopped on the way; a run that has to begin again instead of going on would log other steps twice."""


class Jobs:
    """Submits this repository's scripts from an empty folder, as a user would from a folder of their own."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """The job's id."""
        variables = {
            "LTG_MDLM_SLURM": str(SCRIPTS),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{self.cluster.environment['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        output = ("--output", str(self.folder / "%x-%j.log"))
        return self.cluster.submit(*output, *options, str(SCRIPTS / script), *arguments, cwd=self.folder, **variables)

    def status(self, run: Path) -> str | None:
        """What the run's status.json says."""
        path = run / "status.json"
        return json.loads(path.read_text())["status"] if path.is_file() else None

    def await_step(self, run: Path, step: int) -> None:
        """Until the run has logged a step beyond `step`."""
        self._await(lambda: last_step(run) > step, f"a step after {step} in {run}")

    def await_end(self, job: str) -> None:
        """Until no task of the job is left; one that waits to run again is spared the wait."""

        def ended() -> bool:
            states = self.cluster.queued(job)
            if "PENDING" in states and "RUNNING" not in states:
                self.cluster.start_now(job)
            return not states

        self._await(ended, f"the end of job {job}")

    def _await(self, condition, what: str) -> None:
        try:
            wait_until(condition, what, PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def logs(self) -> str:
        """What the jobs printed."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-5000:]}" for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path) -> Jobs:
    return Jobs(cluster, tmp_path)


def last_step(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def settings(*sets: str) -> list[str]:
    return [part for text in (*TINY, *sets) for part in ("--set", text)]


def test_a_job_on_two_nodes_ends_with_the_same_weights_however_it_was_requeued(jobs: Jobs, tmp_path: Path):
    """Once as Slurm preempts (TERM to everything), once by the signal that comes before the time limit."""
    run = tmp_path / "run"
    job = jobs.submit("train.sbatch", str(run), *settings(*LONG), options=("--nodes=2",))
    jobs.await_step(run, 0)
    jobs.cluster("scontrol", "requeue", job)
    jobs.cluster.start_now(job)
    first = last_step(run)
    jobs.await_step(run, first)
    jobs.cluster("scancel", "--signal=USR1", "--batch", job)
    jobs.await_end(job)

    train(tmp_path / "undisturbed", sets=LONG, processes=2)
    assert jobs.status(run) == "finished", jobs.logs() + jobs.cluster("scontrol", "show", "job", job)
    assert jobs.logs().count("going on from step") == 2, jobs.logs()
    assert losses(run) == losses(tmp_path / "undisturbed")
    weights = [folder / "checkpoints" / "step_0000060" / "model.safetensors" for folder in (run, tmp_path / "undisturbed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
