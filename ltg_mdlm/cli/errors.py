"""How errors and warnings are printed, and the exit codes of failures."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TextIO

from ltg_mdlm.core.errors import PluginFailure, UserError

EXIT_FAILURE, EXIT_USER_ERROR = 1, 2


def report_errors(run: Callable[[], None]) -> None:
    """Call a typer app and exit with a message if it fails.

    A `UserError` is printed without a traceback, and the exit code is 2. An exception of a plugin is printed with its
    traceback and the name of the plugin, and the exit code is 1.
    """
    warnings.showwarning = _show_warning
    try:
        run()
    except UserError as error:
        if os.environ.get("LTG_MDLM_DEBUG"):
            traceback.print_exc()
        # All processes of a torchrun job meet the same error, so one message per machine is enough.
        first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        if first_here if error.only_here is None else error.only_here:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except PluginFailure as error:
        error.report()
        sys.exit(EXIT_FAILURE)


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
