"""Files and folders that are complete or absent, whenever the process is killed or the machine loses power.

Everything is written under a temporary name in the folder it belongs to, forced to disk, and renamed.

Folders that are complete or absent: written under another name beside their place, then renamed.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltg_mdlm.core.errors import UserError

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


_SPARE_BYTES = 16 << 20


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `out` at the end of the context, or is deleted after an exception.

    What a killed process on this machine left behind is deleted too. Raises UserError if the disk is full, the
    place is not writable, or something appeared at `out` meanwhile.
    """
    prefix = f".{out.name}.{socket.gethostname()}-"
    folder = out.parent / f"{prefix}{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _delete_leftovers(out.parent, prefix)
        folder.mkdir()
        yield folder
        _sync(folder)
        folder.rename(out)
        _sync_folder(out.parent)
    except OSError as error:
        raise _explained(error, out) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_free_space(folder: Path, needed: int) -> None:
    """Raise UserError unless the disk of `folder` has room for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise UserError(
            f"{folder.parent}: {free / 1e6:,.0f} MB free, but {needed / 1e6:,.0f} MB are needed; nothing was written"
        )


def _explained(error: OSError, out: Path) -> Exception:
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EACCES: "no permission to write there",
        errno.EROFS: "the disk is read-only",
        errno.ENOTEMPTY: "another process made this folder meanwhile",
        errno.EEXIST: "another process made this folder meanwhile",
        errno.ENOTDIR: "not a folder",
    }
    reason = reasons.get(error.errno or 0)
    return UserError(f"{out}: {reason}; nothing was written") if reason else error


def _delete_leftovers(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        process = folder.name.removeprefix(prefix)
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()  # this process has made nothing yet


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
