"""The job scripts, on a real Slurm: whatever ends a job early, its run goes on and comes to the same end."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from support import runs
from support.runs import TINY, faulty_environment, losses, saved_bits
from support.slurm import Cluster
from support.submissions import SMALL, accept, write_data
from support.trained import write_run
from support.waiting import wait_until

from ltg_mdlm.reporting.run_table import find_runs, read_run, report_table
from ltg_mdlm.storage.run_folder import Owner

SCRIPTS = Path(__file__).parents[2] / "slurm"
PATIENCE = 1800.0
"""Seconds that anything may take on a busy machine."""


class Jobs:
    """Submits this repository's scripts from an empty folder, as a user would from a folder of their own."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = (), faults: tuple[dict, ...] = ()) -> str:
        """The job's id; `faults` are those of the plugin `faulty`, if it is selected."""
        variables = {
            **faulty_environment(*faults),
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

    def await_file(self, path: Path) -> None:
        """Until it exists."""
        self._await(path.exists, str(path))

    def await_end(self, job: str) -> None:
        """Until no task of the job is left."""
        self._await(lambda: not self.cluster.is_queued(job), f"the end of job {job}")

    def _await(self, condition, what: str) -> None:
        try:
            wait_until(condition, what, PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}") from None

    def output(self) -> str:
        """What the jobs printed."""
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path) -> Jobs:
    return Jobs(cluster, tmp_path)


def as_options(*sets: str) -> list[str]:
    return [part for text in sets for part in ("--set", text)]


def test_a_job_on_two_nodes_ends_with_the_same_weights_however_it_was_requeued(jobs: Jobs, tmp_path: Path):
    """Once as Slurm preempts (TERM to everything), once by the signal that comes before the time limit.

    The first rank waits for each of them, so that the run need not be long.
    """
    run, undisturbed, preempted, warned = (tmp_path / name for name in ("run", "undisturbed", "TERM", "USR1"))
    waits = (
        {"at": "step 3", "do": "wait", "until": "SIGTERM", "once": str(preempted)},
        {"at": "step 7", "do": "wait", "until": "SIGUSR1", "once": str(warned)},
    )
    settings = ("--plugin", "faulty", *as_options(*TINY))
    job = jobs.submit("train.sbatch", str(run), *settings, options=("--nodes=2",), faults=waits)
    jobs.await_file(preempted)
    jobs.cluster("scontrol", "requeue", job)
    jobs.await_file(warned)
    jobs.cluster("scancel", "--signal=USR1", "--batch", job)
    jobs.await_end(job)

    runs.run(undisturbed, plugin="faulty", processes=2)
    assert jobs.status(run) == "finished", jobs.output()
    assert "resuming from step 4 of 12" in jobs.output(), jobs.output()
    assert "resuming from step 8 of 12" in jobs.output(), jobs.output()
    assert losses(run) == losses(undisturbed)
    assert saved_bits(run, 12) == saved_bits(undisturbed, 12)


SWEEP = """
configs: [laptop]
grid:
  plugins.freq_mdlm.power: [0, 0.02]
  plugins.faulty.adapt: [false]
  training.max_steps: [4, 10]
seeds: [0, 1]
exclude:
  - {plugins.freq_mdlm.power: 0, training.max_steps: 10}
  - {plugins.freq_mdlm.power: 0, seed: 1}
  - {plugins.freq_mdlm.power: 0.02, training.max_steps: 4}
"""
KILLED = 2
"""A long point, and the task whose job id is that of the whole array."""


def test_an_array_trains_every_point_of_a_sweep_and_a_killed_task_goes_on(jobs: Jobs, tmp_path: Path):
    """The long points wait in their eighth step until one of them has been killed."""
    (tmp_path / "powers.yaml").write_text(SWEEP)
    common = as_options(*(text for text in TINY if not text.startswith("training.max_steps")))
    waits = ({"at": "step 8", "do": "wait", "after": str(tmp_path / "killed")},)
    job = jobs.submit("array.sbatch", "powers.yaml", *common, options=("--array=0-2",), faults=waits)
    killed = tmp_path / "runs/powers/power=0.02-max_steps=10-s1"
    jobs.await_file(killed / "checkpoints" / "latest")
    owner = Owner.parse((killed / "lock").read_text())
    trainer = owner.process
    os.kill(trainer, signal.SIGKILL)
    (tmp_path / "killed").touch()
    jobs.await_end(job)

    table = report_table([read_run(folder) for folder in find_runs([tmp_path / "runs" / "powers"])])
    points = {(row["power"], row["max_steps"], row["seed"]): row for row in table}
    assert points.keys() == {(0, 4, 0), (0.02, 10, 0), (0.02, 10, 1)}
    assert {row["status"] for row in table} == {"finished"}, jobs.output()
    assert all(row["validated"] == row["step"] == steps for (_, steps, _), row in points.items())
    assert all(row["bound"] > 0 for row in table)
    assert sorted(losses(killed)) == list(range(1, 11))
    assert jobs.output().count("resuming from step 4 ") == 1
    assert jobs.output().count(" start 0 of ") == 3
    assert jobs.output().count(" start 1 of ") == 1


def test_an_array_evaluates_every_run_of_a_folder(jobs: Jobs, tmp_path: Path):
    for plugin in ("freq_mdlm", "gpt_bert"):
        write_run(tmp_path / "runs" / plugin, plugin)
    (tmp_path / "runs" / "notes").mkdir()
    pairs = tmp_path / "data" / "blimp_fast" / "pairs.jsonl"
    pairs.parent.mkdir(parents=True)
    pairs.write_text(
        json.dumps({"sentence_good": "The dogs run.", "sentence_bad": "The dogs runs.", "UID": "a"}) + "\n"
    )
    data = ("--data", str(tmp_path / "data"))
    job = jobs.submit("eval.sbatch", "runs", *data, options=("--array=0-2",))
    jobs.await_end(job)

    results = tmp_path / "results"
    models = {json.loads(path.read_text())["model"] for path in results.glob("*/main/suite.json")}
    assert models == {"freq_mdlm", "gpt_bert"}, jobs.output()
    assert {path.parts[-4] for path in results.glob("**/blimp_fast/items.jsonl")} == {"mlm", "mntp"}
    assert "runs has no run number 2" in jobs.output()


def test_an_array_builds_a_submission_although_its_tasks_are_stopped(jobs: Jobs, tmp_path: Path):
    """One as Slurm preempts, the other by the signal before the time limit."""
    write_run(tmp_path / "tiny", words_seen=[i * 1_000_000 for i in range(1, 9)])
    data = write_data(tmp_path / "evaluation_data")
    where = ("--data", str(data), "--out", "submission.json", "--partial")
    quick = as_options("epochs=1", "batch_rows=8", "seq_len=64")
    job = jobs.submit("submit.sbatch", "tiny", "--track", "strict-small", *where, *quick, options=("--array=0-1",))
    jobs.await_file(tmp_path / "results" / "tiny" / "chck_2M")
    jobs.cluster("scontrol", "requeue", f"{job}_1")
    jobs.cluster("scancel", "--signal=USR1", "--batch", f"{job}_0")
    jobs.await_end(job)

    assert (tmp_path / "submission.json").is_file(), jobs.output()
    accept(json.loads((tmp_path / "submission.json").read_text()), SMALL)
    assert jobs.output().count(" start 1 of ") == 2, jobs.output()
