"""One cluster for all tests of a session; without Slurm they are skipped."""

from collections.abc import Iterator

import pytest
from support.slurm import Cluster, missing_programs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A running cluster of two nodes."""
    if missing := missing_programs():
        pytest.skip(f"no Slurm here: {', '.join(missing)} not found (Debian: slurmctld slurmd slurm-client munge)")
    started = Cluster(tmp_path_factory.mktemp("slurm"), nodes=2, cpus_per_node=8)
    try:
        started.start()
        yield started
    finally:
        started.stop()
