"""The distributions in `plugins/examples/`, found as if they were installed in editable mode."""

import os
import site
import tempfile
import zipfile
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from hatchling.build import build_editable

EXAMPLES = Path(__file__).parents[2] / "plugins" / "examples"
DISTRIBUTIONS = sorted(path.parent for path in EXAMPLES.glob("*/pyproject.toml"))


@cache
def find_distributions() -> None:
    """Make the distributions of this repository importable, with their entry points, until this process ends."""
    missing = [folder for folder in DISTRIBUTIONS if not is_installed(folder.name)]
    if missing:
        site_packages = tempfile.TemporaryDirectory()
        _kept.append(site_packages)
        for folder in missing:
            install_editable(folder, Path(site_packages.name))
        site.addsitedir(site_packages.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []
"""Folders that vanish with the process."""


def is_installed(name: str) -> bool:
    """Whether the environment has that distribution."""
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


def install_editable(folder: Path, site_packages: Path) -> None:
    """What `pip install --no-deps -e` does: metadata, and a file that names the sources' folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        wheel = build_editable(str(site_packages))
    finally:
        os.chdir(before)
    with zipfile.ZipFile(site_packages / wheel) as unpacked:
        unpacked.extractall(site_packages)
