"""Atomic writes: a file or folder is complete or absent, even if the process is killed or the machine loses power.

Everything is written under a temporary name in the folder it belongs to, forced to disk (`fsync`), and renamed.
A temporary file or folder is always created new (`O_EXCL`), so that a link that somebody else placed there is never
followed.  What killed processes of this machine left is removed by the next process that writes to the same folder.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ltg_mdlm.core.errors import UserError

TEMPORARY = ".tmp-"
"""Prefix of the name of every file and folder that is not finished."""

_LONGEST_NAME = 255 - len("-outdated")
"""Bytes of a temporary name; file systems allow 255."""

_ABANDONED_SECONDS = 24 * 3600
"""Age at which an unfinished file is a leftover if its name does not say which machine wrote it."""

_SPARE_BYTES = 16 << 20
"""Free space to leave on the disk."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the disk is read-only",
    errno.ENOTEMPTY: "another process made this folder meanwhile",
    errno.EEXIST: "another process made this folder meanwhile",
    errno.ENOTDIR: "not a folder",
    errno.EISDIR: "is a folder, not a file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "a symbolic link that leads to itself, or that was placed where a new file belongs",
}


@contextmanager
def written_folder(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to fill.  It is renamed to `final` on exit, or deleted after an exception.

    Creates the parent folders, and deletes what killed processes of this machine left there.

    Args:
        final: name of the finished folder
        replace: replace an existing folder; otherwise `final` must be absent or an empty folder

    Raises OSError, which `write_errors` turns into a message.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_name(final)
    outdated = folder.with_name(f"{folder.name}-outdated")
    _remove_leftovers_for(final, folder, outdated)
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
    """A path to write a file to: a temporary one, which replaces `final` on exit and is deleted after an exception.

    If `final` is a device or a pipe, which must not be replaced, it is `final` itself.

    Raises OSError, which `write_errors` turns into a message, and UserError for /dev/stdout that is redirected.
    """
    if os.path.abspath(final).startswith(("/dev/", "/proc/")) and final.is_file():
        raise UserError(f"{final} is redirected to a file, which would be replaced\n  name the file itself")
    if final.exists() and not (final.is_file() or final.is_dir()):  # a terminal, or a pipe
        yield final
        return
    path = temporary_name(final)
    _remove_leftovers_for(final, path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        yield path
        # The file is kept open, so that no other file can have its number.
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        sync(path)
        path.replace(final)
        sync(final.parent)
    finally:
        os.close(descriptor)
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
        raise UserError(f"{path}: {reason_of(error)}; nothing was written{advice}") from error


def reason_of(error: OSError) -> str:
    """Why the file system refused, in words for the user."""
    return _REASONS.get(error.errno or 0) or str(error)


def temporary_name(path: Path) -> Path:
    """A name in the same folder that only this process writes to.  Raises OSError for a folder such as `.`."""
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    name = os.fsencode(f"{_prefix()}{os.getpid()}-{path.name}")[:_LONGEST_NAME]
    return path.with_name(name.decode(errors="ignore"))


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
        delete(path)


def require_writable(path: Path, *, inside: bool = False) -> None:
    """Raises UserError if `path` cannot be created or replaced; with `inside`, if nothing can be created in it.

    Call it before hours of work, not after.
    """
    absolute = path.absolute()
    above = next(place for place in (*[absolute] * inside, *absolute.parents) if place.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UserError(f"{path}: cannot be written: {above} is not a folder that may be written to")


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and in all folders below it.  Links are followed, and hidden folders are left out.

    Raises OSError if a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    visited: set[str] = set()
    roots = [folder]
    while roots:
        links: list[Path] = []
        # Links come after all real folders: one that leads to such a folder must not take its place.
        for place, folders, files in os.walk(roots.pop(0), onerror=refuse):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "lost+found")
            if (real := os.path.realpath(place)) in visited:  # links may lead back
                folders.clear()
                continue
            visited.add(real)
            links += [path for name in folders if (path := Path(place, name)).is_symlink()]
            found += [path for name in files if (path := Path(place, name)).is_file()]
        roots += links
    return found


def require_free_space(folder: Path, needed: int) -> None:
    """Raises UserError unless the disk of `folder` has room for `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise UserError(
            f"{folder.parent}: {free / 1e6:,.0f} MB free, but {needed / 1e6:,.0f} MB are needed; nothing was written"
        )


def _prefix() -> str:
    return f"{TEMPORARY}{socket.gethostname()}-"


def _remove_leftovers_for(final: Path, *own: Path) -> None:
    """Delete the unfinished files and folders beside `final` whose processes have ended, and this process's `own`.

    Process numbers mean nothing on another machine, so the leftovers of other machines stay.  Old versions named their
    folders `.NAME.MACHINE-PROCESS`, or without the machine `.tmp-PROCESS-NAME`; the latter are deleted when they are a
    day old, and so is everything unfinished in the cache of built-in corpora.
    """
    for path in own:
        delete(path)
    host, old = re.escape(socket.gethostname()), rf"builtin-[0-9a-f]+|{re.escape(final.name)}"
    here = re.compile(rf"{re.escape(TEMPORARY)}{host}-([0-9]+)-.*|\.(?:{old})\.{host}-([0-9]+)", re.DOTALL)
    anywhere = re.compile(rf"{re.escape(TEMPORARY)}([0-9]+)-.*", re.DOTALL)
    with os.scandir(final.parent) as entries:
        found = [entry.name for entry in entries if entry.name.startswith(".")]
    for name in found:
        path = final.with_name(name)
        if match := here.fullmatch(name):
            ended = not is_running(int(match[1] or match[2]))
        elif match := anywhere.fullmatch(name):
            ended = not is_running(int(match[1])) and _is_abandoned(path)
        else:
            ended = name.startswith(".builtin-") and final.name.startswith("builtin-") and _is_abandoned(path)
        if ended:
            with suppress(OSError):  # of another user, who may delete it
                delete(path)


def is_running(process: int) -> bool:
    """Whether a process of this number is running on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > _ABANDONED_SECONDS
    except OSError:
        return False


def delete(path: Path) -> None:
    """Delete a file, a link (not what it points to) or a folder; nothing if it is absent."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
