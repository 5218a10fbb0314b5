"""Exceptions that reach the user: mistakes of the user, and failures of plugins during training."""

from __future__ import annotations

import errno
import os
import sys
import traceback

_FILE_ERRORS = {
    errno.ENAMETOOLONG: "the name is too long; a file name has at most 255 bytes",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "is a folder, not a file",
    errno.EEXIST: "exists already",
    errno.EACCES: "no permission to read or write it",
    errno.EPERM: "no permission to read or write it",
    errno.EROFS: "the disk is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.ELOOP: "a link that leads to itself",
    errno.EIO: "the disk reports an error",
    errno.ESTALE: "the network disk no longer has it",
}


class UserError(Exception):
    """A mistake in a file, an option or a setting, which the user must correct.

    The message is shown without a traceback, so it says what is wrong, where it came from and what to do.  Errors of
    the program itself are assertions.
    """

    only_here: bool | None = None
    """Whether only this process reports the error; None if the processes could not be asked."""


def file_error(error: OSError) -> UserError | None:
    """The message for a file or folder that cannot be used; None for other errors of the operating system."""
    reason = _FILE_ERRORS.get(error.errno or 0)
    if reason is not None and error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return UserError(f"the output cannot be written: {reason}")
    if reason is None or not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    name = os.fsdecode(error.filename)
    return UserError(f"{name if len(name) <= 1000 else name[:1000] + '...'}: {reason}")


class ResultError(Exception):
    """A component's method returned a value of the wrong type or shape; the message starts with the method's name."""


class PluginFailure(Exception):
    """A component of a plugin raised an exception during training, which is the `__cause__`."""

    @property
    def reason(self) -> str:
        """The plugin and the exception, in one line."""
        return f"{self} with {text_of(self.__cause__)}" if self.__cause__ else str(self)

    def report(self) -> None:
        """Print the traceback of the exception, then the plugin."""
        traceback.print_exception(self.__cause__)
        print(f"error: {self}", file=sys.stderr, flush=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is exhausted, of a GPU or of the machine.  On CPUs torch raises a RuntimeError."""
    torch = sys.modules.get("torch")  # importing it takes a second, and only torch raises its own error
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error))
    )


def text_of(error: BaseException) -> str:
    """Type and message of an exception."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
