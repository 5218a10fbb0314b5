"""The command `ltg-mdlm`: its groups of commands, and the commands `train`, `check` and `bench`.

Commands import what they need when they run, so that `ltg-mdlm --help` does not import torch.
"""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer
from rich.console import Console

from ltg_mdlm import __version__
from ltg_mdlm.cli.command_classes import Command, CommandApp
from ltg_mdlm.cli.corpus_commands import corpus_app, prepare
from ltg_mdlm.cli.error_output import report_errors
from ltg_mdlm.cli.eval_commands import eval_app
from ltg_mdlm.cli.eval_harness import download, harness
from ltg_mdlm.cli.generate_command import generate
from ltg_mdlm.cli.look_commands import report, reproduce, watch
from ltg_mdlm.cli.model_commands import export, finetune, import_, push
from ltg_mdlm.cli.options import AsJson, Configs, Plugins, Resume, RunOut, Sets
from ltg_mdlm.cli.plugin_commands import plugins_app
from ltg_mdlm.cli.submit_command import submit
from ltg_mdlm.cli.sweep_commands import sweep_app
from ltg_mdlm.core.json_files import json_text

app = CommandApp(pretty_exceptions_enable=False, rich_markup_mode="markdown")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ltg-mdlm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of user errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train masked language models from plugins: masking, objective, noise schedule, time conditioning."""
    if debug:
        os.environ["LTG_MDLM_DEBUG"] = "1"


@app.command()
def train(
    plugin: Plugins = None, config: Configs = None, set_: Sets = None, out: RunOut = None, resume: Resume = "auto"
) -> None:
    """Train a model in one process.

    Use `torchrun ... -m ltg_mdlm.train`, with the same options, for several processes.
    """
    from ltg_mdlm.core.settings import load_settings
    from ltg_mdlm.training.launch import exit_code, launch

    settings = load_settings(config or (), set_ or (), plugin or (), out)
    raise typer.Exit(exit_code(launch(settings, resume)))


@app.command()
def check(
    plugin: Plugins = None,
    config: Configs = None,
    set_: Sets = None,
    as_json: AsJson = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare every file of the corpus with its recorded SHA-256.")
    ] = False,
) -> None:
    """Validate settings and print them resolved, with parameters, steps, rows and tokens. Nothing is trained."""
    from ltg_mdlm.core.settings import load_settings
    from ltg_mdlm.training.check import describe_run

    report = describe_run(load_settings(config or (), set_ or (), plugin or ()), verify=verify, measure=True)
    typer.echo(json_text(report.to_json()) if as_json else report.to_text())


@app.command()
def bench(
    plugin: Plugins = None,
    config: Configs = None,
    set_: Sets = None,
    rows: Annotated[
        int | None,
        typer.Option("--rows", min=1, help="Rows of a global batch; default: training.global_batch_rows."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=3, help="Maximum number of timed steps.")] = 10,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Stop after this time.")] = 120,
    as_json: AsJson = False,
) -> None:
    """Measure training speed: tokens per second, time of every part of a step, memory, share of the peak FLOP/s.

    Nothing is written. For several processes: `torchrun --nproc-per-node 2 -m ltg_mdlm bench`.
    """
    from ltg_mdlm.core.settings import load_settings
    from ltg_mdlm.training.bench import bench as measure
    from ltg_mdlm.training.bench import print_report

    report = measure(load_settings(config or (), set_ or (), plugin or ()), rows=rows, steps=steps, seconds=seconds)
    if report is None:  # the other ranks of torchrun
        return
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        print_report(report, Console())


class ManyTasks(Command):
    """A command whose `--tasks` takes all names up to the next option, as that of lm-eval does."""

    repeated = "--tasks"


class ManyValid(Command):
    """A command whose `--valid` takes all paths up to the next option.

    A shell expands `--valid dev/*.dev` to several arguments. Without this, all but the first would be training files.
    """

    repeated = "--valid"


app.command(cls=ManyValid)(prepare)
for command in (finetune, generate, report, reproduce, watch, export, push, submit):
    app.command()(command)
app.command("import")(import_)
app.add_typer(corpus_app, name="corpus")
app.add_typer(sweep_app, name="sweep")
eval_app.command(cls=ManyTasks, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(harness)
eval_app.command()(download)
app.add_typer(eval_app, name="eval")
app.add_typer(plugins_app, name="plugins")


def main() -> None:
    """Entry point of `ltg-mdlm`."""
    report_errors(app)
