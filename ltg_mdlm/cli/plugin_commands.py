"""`ltg-mdlm plugins`: list, show, check and create plugins."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ltg_mdlm.cli.command_classes import Command, CommandApp
from ltg_mdlm.cli.error_output import EXIT_USER_ERROR
from ltg_mdlm.cli.options import AsJson, Configs, Plugins, Sets
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.terminal import print_table
from ltg_mdlm.scaffold import Kind

plugins_app = CommandApp(help="List, inspect, check and create plugins.")


@plugins_app.command("list")
def plugins_list(plugin: Plugins = None, config: Configs = None, set_: Sets = None, as_json: AsJson = False) -> None:
    """List the installed plugins. They are read from metadata; nothing is imported.

    With --plugin, --config or --set: list the slots of such a run, and the plugin, distribution, version and file that
    fill each of them.

    The environment variable LTG_MDLM_PLUGINS restricts the plugins that all commands use: `off` allows only built-in
    plugins (metadata of others is not read), `name,name` allows these and the built-in ones. If it is unset or empty,
    all installed plugins are allowed.
    """
    from ltg_mdlm.host.discovery import Restriction, installed_plugins

    if plugin or config or set_:
        from ltg_mdlm.core.settings import load_settings
        from ltg_mdlm.training.check import resolve

        provenance = resolve(load_settings(config or (), set_ or (), plugin or ())).components.provenance
        rows = [{"slot": slot, **provider.model_dump()} for slot, provider in provenance.items()]
    else:
        found = [plugin for same_name in installed_plugins().values() for plugin in same_name]
        rows = [
            {"name": p.name, "distribution": p.distribution, "version": p.version, "target": p.target} for p in found
        ]
    if not rows:
        raise UserError("no plugins are installed, not even the built-in ones\n  pip install -e . in the checkout")
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        headings = {"name": "plugin", "target": "defined in"}
        table = Table(*(headings.get(key, key) for key in rows[0]), box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(escape, row.values()))
        print_table(table)
    for note in Restriction.of_environment().notes():
        typer.echo(note, err=True)


@plugins_app.command("show")
def plugins_show(
    name: Annotated[str, typer.Argument(help="Name of the plugin.")],
    as_json: AsJson = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Draw its noise schedule and masking (also .pdf, .svg)."),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", metavar="DIR", help="With --plot: corpus on which masking is measured.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="With --plot: override one setting (repeatable)."),
    ] = None,
) -> None:
    """Show the options of a plugin with types and defaults, its hooks, file and version; --plot draws a picture."""
    from ltg_mdlm.cli.plugin_help import describe_plugin

    if plot is None and (corpus or set_):
        raise UserError("--corpus and --set only change the picture\n  add --plot FILE.png")
    if plot is not None:
        from ltg_mdlm.reporting.plugin_pictures import plot_plugin

        plot_plugin(name, plot, corpus=corpus, sets=set_ or ())
        typer.echo(f"picture: {plot}\n", err=True)
    shown = describe_plugin(name)
    if as_json:
        typer.echo(json.dumps(shown.to_json(), indent=2))
        return
    console = Console()
    console.print(f"[bold]{shown.name}[/]  {shown.distribution} {shown.version}  (plugin API {shown.api_version})")
    console.print(escape(shown.summary))
    console.print(f"file: {escape(shown.file)}", soft_wrap=True)
    console.print(f"hooks: {', '.join(shown.hooks)}\n", soft_wrap=True)
    table = Table("option", "type", "default", "description", box=None, pad_edge=False)
    for option in shown.options:
        table.add_row(option.name, escape(option.type), escape(str(option.default)), escape(option.description))
    console.print(table)


class CheckCommand(Command):
    """A command whose help ends with the list of all checks, which is read only when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        from ltg_mdlm.testing.check_report import check_table

        super().format_help(ctx, formatter)
        print_table(check_table())


@plugins_app.command("check", cls=CheckCommand)
def plugins_check(
    name: Annotated[str, typer.Argument(help="Name of the plugin.")],
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="CHECK",
            help="Run one check, and those that it requires (repeatable). Names are below; write them in quotes, or"
            " with underscores.",
        ),
    ] = None,
    set_: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Run the conformance checks: masks, labels, weights, bounds, resume, micro-batches, processes.

    Trains tiny models for a few seconds on a toy corpus, which is kept in the user's cache, and writes nothing else.
    The exit code is 2 if a check fails.
    """
    from ltg_mdlm.testing.rank_server import start_server

    if not only:
        start_server()  # it imports torch while this process does
    from ltg_mdlm.testing.check_report import examine, failures, summary, to_json, verdict_table

    verdicts = examine(name, set_ or (), only or ())
    if as_json:
        typer.echo(json.dumps(to_json(verdicts), indent=2))
    else:
        print_table(verdict_table(verdicts))
        typer.echo(f"{failures(verdicts)}\n{summary(name, verdicts)}")
    if any(verdict.outcome == "failed" for verdict in verdicts):
        raise typer.Exit(EXIT_USER_ERROR)


@plugins_app.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin, for example `late_masking`.")],
    kind: Annotated[Kind, typer.Option("--kind", help="Component or order that it provides.")] = "masking",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="New or empty folder; default: `ltg-mdlm-<name>`."),
    ] = None,
) -> None:
    """Write the distribution of a new plugin: a working plugin with options, tests, README, license and CI file.

    It installs, passes its tests and trains without changes. Replace its mathematics with yours.
    """
    from ltg_mdlm.scaffold.write_distribution import write_distribution

    names, folder = write_distribution(name, kind, out)
    typer.echo(
        f"plugin {names.plugin} ({kind}) in {folder}: edit src/{names.module}/plugin.py; next commands:\n"
        f"\n  cd {shlex.quote(str(folder))}"
        f"\n  pip install -e '.[test]'"
        f"\n  ltg-mdlm plugins show {names.plugin}"
        f"\n  ltg-mdlm plugins check {names.plugin}"
        f"\n  pytest"
        + (
            f"\n  ltg-mdlm train --plugin uniform_mdlm --out runs/uniform_mdlm"
            f"\n  ltg-mdlm generate runs/uniform_mdlm --plugin {names.plugin} --sampler {names.plugin}"
            if kind == "order"
            else f"\n  ltg-mdlm train --plugin {names.plugin} --out runs/{names.plugin}"
            f"\n  ltg-mdlm train --plugin freq_mdlm --out runs/freq_mdlm"
            f"\n  ltg-mdlm report runs"
        )
    )
