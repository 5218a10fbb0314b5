"""`ltg-mdlm`: every command, thin; heavy imports happen inside the commands that need them."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from ltg_mdlm.core.errors import PluginFailure, UserError

if TYPE_CHECKING:
    pass


EXIT_FAILURE, EXIT_USER_ERROR = 1, 2


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)


def report_errors(run: Callable[[], None]) -> None:
    """Call a typer app; a user's mistake becomes one message and exit code 2, without a traceback.

    A plugin's becomes its traceback, the plugin's name below it, and exit code 1.
    """
    warnings.showwarning = _show_warning
    try:
        run()
    except UserError as error:
        if os.environ.get("LTG_MDLM_DEBUG"):
            traceback.print_exc()
        # Every process of a torchrun job meets the same mistake; one message is enough, or one of each machine.
        first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        if first_here if error.only_here is None else error.only_here:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except PluginFailure as error:
        error.report()
        sys.exit(EXIT_FAILURE)
