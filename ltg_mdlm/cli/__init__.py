"""The command line: one file per group of commands."""


def main() -> None:
    """Entry point of the `ltg-mdlm` script; editable installations of older checkouts call it under this name."""
    from ltg_mdlm.cli.app import main as run

    run()
