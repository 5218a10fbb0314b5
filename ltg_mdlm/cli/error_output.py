"""How errors and warnings are printed, and the exit codes of failures."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TextIO

from ltg_mdlm.core.errors import PluginFailure, UserError, file_error, is_out_of_memory, text_of
from ltg_mdlm.core.preemption import EXIT_INTERRUPTED

EXIT_FAILURE, EXIT_USER_ERROR = 1, 2


def report_errors(run: Callable[[], None]) -> None:
    """Call a typer app and exit with a message if it fails.

    A `UserError`, a file that cannot be read or written, and full memory are printed without a traceback, and the exit
    code is 2.
    An exception of a plugin is printed with its traceback and the name of the plugin, and the exit code is 1. After
    Ctrl-C, which typer turns into an exit, the exit code is 130.
    """
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Characters that the encoding of the terminal lacks are printed as question marks.
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            run()
        except OSError as error:
            if (readable := file_error(error)) is None:
                raise
            raise readable from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"{text_of(error)}\n  free memory of the GPU or machine, use a larger one, or smaller batches:"
                " --tokens-per-batch in scoring and generation, training.micro_batch_rows in training"
            ) from error
    except UserError as error:
        if os.environ.get("LTG_MDLM_DEBUG"):
            traceback.print_exc()
        # All processes of a torchrun job meet the same error, so one message per machine is enough.
        first_here = os.environ.get("LOCAL_RANK", "0") in ("0", "") or not os.environ["LOCAL_RANK"].isdecimal()
        if first_here if error.only_here is None else error.only_here:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except PluginFailure as error:
        error.report()
        sys.exit(EXIT_FAILURE)
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:
            print("interrupted", file=sys.stderr)
        raise


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
