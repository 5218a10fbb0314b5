"""The command line: one file per group of commands."""

import sys

if sys.platform == "win32":  # which has neither the file locks (fcntl) nor the signals of job schedulers
    sys.exit(
        "error: ltg-mdlm runs on Linux and macOS"
        "\n  on Windows, use it in WSL 2: https://learn.microsoft.com/windows/wsl/install"
    )

from ltg_mdlm.core.preemption import end_on_ctrl_c

# Before anything else is imported, which takes a second.
end_on_ctrl_c()


def main() -> None:
    """Entry point of the `ltg-mdlm` script; editable installations of older checkouts call it under this name."""
    from ltg_mdlm.cli.app import main as run

    run()
