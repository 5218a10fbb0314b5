"""The command line: one file per group of commands."""

from __future__ import annotations

import os
import sys
from types import TracebackType

EXIT_INTERRUPTED = 130


def end_on_ctrl_c() -> None:
    """From now on, a Ctrl-C that nothing catches, such as one during imports, ends the process with one line."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            previous(kind, error, trace)
            return
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(EXIT_INTERRUPTED)  # Python would end the process by the signal, without an exit code

    sys.excepthook = hook


# Before anything else is imported, which takes a second.
end_on_ctrl_c()


def main() -> None:
    """Entry point of the `ltg-mdlm` script; editable installations of older checkouts call it under this name."""
    from ltg_mdlm.cli.app import main as run

    run()
