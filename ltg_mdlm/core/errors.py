"""Exceptions that reach the user: mistakes of the user, and failures of plugins during training."""

from __future__ import annotations

import sys
import traceback


class UserError(Exception):
    """A mistake in a file, an option or a setting, which the user must correct.

    The message is shown without a traceback, so it says what is wrong, where it came from and what to do.  Errors of
    the program itself are assertions.
    """

    only_here: bool | None = None
    """Whether only this process reports the error; None if the processes could not be asked."""


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


def text_of(error: BaseException) -> str:
    """Type and message of an exception."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
