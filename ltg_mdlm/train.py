"""`python -m ltg_mdlm.train`, in one process or under torchrun."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ltg_mdlm.cli.errors import report_errors
from ltg_mdlm.cli.options import Configs, Out, Plugins, Resume, Sets
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.training.launch import launch

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
def main(
    plugin: Plugins = None,
    config: Configs = None,
    set_: Sets = None,
    out: Out = None,
    resume: Resume = "auto",
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of user errors, too.")] = False,
) -> None:
    """Train a model.  Without arguments: uniform MDLM at laptop size on the built-in corpus."""
    if debug:
        os.environ["LTG_MDLM_DEBUG"] = "1"
    raise typer.Exit(launch(load_settings(config or (), set_ or (), plugin or (), out), resume))


if __name__ == "__main__":
    report_errors(command)
