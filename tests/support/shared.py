"""What is expensive to make is made by one process, once, and used by all."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, filled by `make`, which is given another name for it, unless some process has filled it already."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
            make(aside)
            aside.rename(folder)
    return folder


def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
