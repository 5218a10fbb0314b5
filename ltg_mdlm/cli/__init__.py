"""The command line: one file per group of commands."""

from ltg_mdlm.core.preemption import end_on_ctrl_c

# Before anything else is imported, which takes a second.
end_on_ctrl_c()


def main() -> None:
    """Entry point of the `ltg-mdlm` script; editable installations of older checkouts call it under this name."""
    from ltg_mdlm.cli.app import main as run

    run()
