"""The one exception that means: the user must change something."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class UserError(Exception):
    """A mistake in what the user gave: a file, an option, a config value.

    The message is shown as it is, without a traceback, so it says what is wrong, where it came from and
    what to do. Mistakes of the program itself are assertions, never this class.
    """

    only_here: bool | None = None
    """Whether no other process reports the same; None where nobody could ask them."""


class PluginFailure(Exception):
    """A plugin's component raised while the trainer called it; the cause has the traceback."""

    @property
    def reason(self) -> str:
        """Who failed, and with what, in one line."""
        return f"{self} with {text_of(self.__cause__)}" if self.__cause__ else str(self)

    def report(self) -> None:
        """Print the traceback of the cause, and below it who failed."""
        traceback.print_exception(self.__cause__)
        print(f"error: {self}", file=sys.stderr, flush=True)


def text_of(error: BaseException) -> str:
    """Type and message of an exception."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
