"""For all tests: one thread each, since they share the cores, and no deadline that a busy machine would miss.

Every session sees the same plugins, those of the distributions in this repository included.
"""

import os
import sys

import pytest
from hypothesis import settings
from support.distributions import find_distributions

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("shared_machine", deadline=None)
settings.load_profile("shared_machine")
find_distributions()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slurm's jobs come first: they mostly wait, which other tests can use, but not if they are the last ones."""
    items.sort(key=lambda item: "slurm" not in item.path.parts)


def pytest_collection_finish() -> None:
    """Imports torch here, since the process that only hands tests out to others would do it before they begin."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""
    from ltg_mdlm.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ltg-mdlm", *arguments])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call
