"""`python -m ltg_mdlm.train`: training in one process, or in all processes that torchrun starts."""

from __future__ import annotations

import os
from typing import Annotated

# First, so that Ctrl-C during the other imports ends with one line.
from ltg_mdlm.cli.error_output import report_errors  # isort: skip

import typer

from ltg_mdlm.cli.command_classes import CommandApp
from ltg_mdlm.cli.options import Configs, Plugins, Resume, RunOut, Sets

command = CommandApp(
    no_args_is_help=False, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)


@command.command()
def main(
    plugin: Plugins = None,
    config: Configs = None,
    set_: Sets = None,
    out: RunOut = None,
    resume: Resume = "auto",
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of user errors.")] = False,
) -> None:
    """Train a model. Without arguments: a small uniform MDLM on the built-in corpus."""
    if debug:
        os.environ["LTG_MDLM_DEBUG"] = "1"
    from ltg_mdlm.core.settings import load_settings
    from ltg_mdlm.training.launch import exit_code, launch

    settings = load_settings(config or (), set_ or (), plugin or (), out)
    raise typer.Exit(exit_code(launch(settings, resume)))


if __name__ == "__main__":
    report_errors(command)
