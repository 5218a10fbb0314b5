"""Atomic writes: a file or folder is complete or absent, even if the process is killed or the machine loses power.

Everything is written under a temporary name in the folder it belongs to, forced to disk (`fsync`), and renamed.
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
"""Prefix of the name of every file and folder that is not finished."""

_SPARE_BYTES = 16 << 20
"""Free space to leave on the disk."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission to write there",
    errno.EROFS: "the disk is read-only",
    errno.ENOTEMPTY: "another process made this folder meanwhile",
    errno.EEXIST: "another process made this folder meanwhile",
    errno.ENOTDIR: "not a folder",
}


@contextmanager
def written_folder(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to fill.  It is renamed to `final` on exit, or deleted after an exception.

    Creates the parent folders, and deletes what killed processes of this machine left of earlier attempts.

    Args:
        final: name of the finished folder
        replace: replace an existing folder; otherwise `final` must be absent or an empty folder

    Raises OSError, which `write_errors` turns into a message.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers_of(final)
    folder = temporary_name(final)
    outdated = folder.with_name(f"{folder.name}-outdated")
    try:
        folder.mkdir()
        yield folder
        for path in folder.rglob("*"):
            sync(path)
        sync(folder)
        if replace and final.exists():
            # A folder cannot be renamed onto a folder with content, so `final` is absent for a moment.
            final.rename(outdated)
            try:
                folder.rename(final)
            except BaseException:
                outdated.rename(final)
                raise
            shutil.rmtree(outdated)
        else:
            folder.rename(final)
        sync(final.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def written_file(final: Path) -> Iterator[Path]:
    """A temporary path to write a file to.  It replaces `final` on exit, or is deleted after an exception.

    Raises OSError, which `write_errors` turns into a message.
    """
    path = temporary_name(final)
    try:
        yield path
        sync(path)
        path.replace(final)
        sync(final.parent)
    finally:
        path.unlink(missing_ok=True)


def write_text(final: Path, text: str) -> None:
    """Write or replace a small UTF-8 file.  Raises OSError."""
    with written_file(final) as path:
        path.write_text(text, encoding="utf-8")


@contextmanager
def write_errors(path: Path, advice: str = "") -> Iterator[None]:
    """Turn an OSError within the context into a UserError that names `path` and the reason, such as a full disk."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or str(error)
        raise UserError(f"{path}: {reason}; nothing was written{advice}") from error


def temporary_name(path: Path) -> Path:
    """A name in the same folder that only this process writes to."""
    return path.with_name(f"{_prefix()}{os.getpid()}-{path.name}")


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete all unfinished files and folders; the caller must be the only process that writes in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        _delete(path)


def require_writable(folder: Path) -> None:
    """Raises UserError if `folder` cannot be created.  Call it before hours of work, not after."""
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UserError(f"{folder}: cannot be written: {above} is not a folder that may be written to")


def require_free_space(folder: Path, needed: int) -> None:
    """Raises UserError unless the disk of `folder` has room for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise UserError(
            f"{folder.parent}: {free / 1e6:,.0f} MB free, but {needed / 1e6:,.0f} MB are needed; nothing was written"
        )


def _prefix() -> str:
    return f"{TEMPORARY}{socket.gethostname()}-"


def _remove_leftovers_of(final: Path) -> None:
    """Delete the temporary folders for `final` whose processes have ended.

    Process numbers mean nothing on another machine, so the folders of other machines stay.
    """
    for path in final.parent.glob(f"{TEMPORARY}*"):
        process, _, name = path.name.removeprefix(_prefix()).partition("-")
        if name.removesuffix("-outdated") == final.name and process.isdigit() and not _is_running(int(process)):
            _delete(path)


def _is_running(process: int) -> bool:
    """Whether another process of this number is running; this one has no folder yet."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
