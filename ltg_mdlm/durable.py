"""Files and folders that are complete or absent, whenever the process is killed or the machine loses power.

Everything is written under a temporary name in the folder it belongs to, forced to disk, and renamed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ltg_mdlm.errors import UserError

TEMPORARY = ".tmp-"
"""Begins the name of everything that is not finished."""


def temporary_name(path: Path) -> Path:
    """A name beside `path` that only this process writes to."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def write_text(path: Path, text: str) -> None:
    """Replace a small file."""
    aside = temporary_name(path)
    write_file(aside, text)
    aside.replace(path)
    sync(path.parent)


def write_file(path: Path, text: str) -> None:
    """Write a file of a folder that is to be published, or that has its temporary name, and force it to disk."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def publish_folder(aside: Path, final: Path) -> None:
    """Give a finished folder its name, in place of an older one; its files are already on disk."""
    sync(aside)
    if final.exists():
        # A folder cannot be renamed onto another, so for a moment there is none.
        outdated = temporary_name(final.with_name(final.name + "-outdated"))
        final.rename(outdated)
        aside.rename(final)
        shutil.rmtree(outdated)
    else:
        aside.rename(final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left unfinished; the caller must be the only one who writes in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def require_writable(folder: Path) -> None:
    """Raises UserError if `folder` could not be made: better before hours of training than after."""
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UserError(f"{folder}: cannot be written: {above} is not a folder that may be written to")
