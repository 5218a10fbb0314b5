"""slurm/sync.sh, with a stand-in for wandb that writes down what it is asked to upload."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "slurm" / "sync.sh"
WANDB = """#!/bin/sh
if [ "$2" = --help ]; then echo "{help}"; else echo "$@" >> {record}; fi
"""


@pytest.fixture
def sync(tmp_path: Path):
    """Runs the script on the sweep folder, with a wandb whose help says this; returns the arguments that wandb got."""
    record = tmp_path / "record"

    def call(help_text: str = "") -> list[list[str]]:
        wandb = tmp_path / "bin" / "wandb"
        wandb.parent.mkdir(exist_ok=True)
        wandb.write_text(WANDB.format(help=help_text, record=record))
        wandb.chmod(0o755)
        environment = os.environ | {"PATH": f"{wandb.parent}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run([SCRIPT, tmp_path / "sweep"], env=environment, check=True, capture_output=True)
        return [line.split() for line in record.read_text().splitlines()] if record.exists() else []

    return call


def make_part(run: Path, started: str, *, uploaded: bool = False) -> str:
    """What wandb leaves of one start of a run."""
    part = run / "wandb" / f"offline-run-{started}-abc"
    part.mkdir(parents=True)
    (part / "run-abc.wandb").touch()
    if uploaded:
        (part / "run-abc.wandb.synced").touch()
    return str(part)


def test_parts_that_are_new_are_uploaded_in_the_order_of_their_starts(tmp_path, sync):
    run = tmp_path / "sweep" / "a-s0"
    second = make_part(run, "20260102_000000")
    first = make_part(run, "20260101_000000")
    make_part(tmp_path / "sweep" / "b-s0", "20260101_000000", uploaded=True)
    assert sync() == [["sync", first, second]]


def test_versions_that_would_overwrite_a_run_with_its_next_part_are_told_to_append(tmp_path, sync):
    part = make_part(tmp_path / "sweep" / "a-s0", "20260101_000000")
    assert sync("  --append / --no-append") == [["sync", "--append", part]]


def test_nothing_is_uploaded_twice(tmp_path, sync):
    make_part(tmp_path / "sweep" / "a-s0", "20260101_000000", uploaded=True)
    assert sync() == []
