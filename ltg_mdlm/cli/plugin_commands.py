"""`ltg-mdlm plugins`: list, show, check and create plugins."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ltg_mdlm.cli.errors import EXIT_USER_ERROR
from ltg_mdlm.cli.options import Configs, Plugins, Sets
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.terminal import print_table
from ltg_mdlm.scaffold import Kind

if TYPE_CHECKING:
    from ltg_mdlm.cli.plugin_help import PluginDescription

plugins_app = typer.Typer(no_args_is_help=True, help="Look at the installed plugins, and begin one.")


@plugins_app.command("list")
def plugins_list(
    plugin: Plugins = None,
    config: Configs = None,
    set_: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the installed plugins, read from metadata alone: nothing is imported.

    With --plugin, --config or --set: the slots of such a run, and which plugin, distribution, version and file fills
    each.

    The environment variable LTG_MDLM_PLUGINS decides which plugins every command considers: `off` only those that are
    built in (the metadata of others is not even read), `name,name` only these besides the built-in ones; unset or
    empty, all that are installed.
    """
    if plugin or config or set_:
        from ltg_mdlm.core.settings import load_settings
        from ltg_mdlm.training.check import resolve

        provenance = resolve(load_settings(config or (), set_ or (), plugin or ())).components.provenance
        rows = [{"slot": slot, **provider.model_dump()} for slot, provider in provenance.items()]
    else:
        from ltg_mdlm.host.discovery import installed_plugins

        found = [plugin for same_name in installed_plugins().values() for plugin in same_name]
        rows = [
            {"name": p.name, "distribution": p.distribution, "version": p.version, "target": p.target} for p in found
        ]
    _print_plugins(rows, as_json=as_json)


def _print_plugins(rows: Sequence[Mapping[str, str]], *, as_json: bool) -> None:
    from ltg_mdlm.host.discovery import Restriction

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
    name: Annotated[str, typer.Argument(help="Plugin to show.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Draw its noise schedule and masking (also .pdf, .svg)."),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", metavar="DIR", help="With --plot: the corpus to measure masking on.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="With --plot: override one setting (repeatable)."),
    ] = None,
) -> None:
    """Show a plugin's options with types and defaults, its hooks, its file, its version; --plot draws what it does."""

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
    else:
        _print_plugin(shown)


@plugins_app.command("check")
def plugins_check(
    name: Annotated[str, typer.Argument(help="Plugin to check.")],
    set_: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Check that a plugin keeps its promises: masks, labels, weights, bounds, resume, micro-batches, processes.

    Trains tiny models for a few seconds; writes nothing. Exit code 2 if a check fails.
    """
    from ltg_mdlm.testing.check_report import examine, failures, summary, to_json, verdict_table

    verdicts = examine(name, set_ or ())
    if as_json:
        typer.echo(json.dumps(to_json(verdicts), indent=2))
    else:
        print_table(verdict_table(verdicts))
        typer.echo(f"{failures(verdicts)}\n{summary(name, verdicts)}")
    if any(verdict.outcome == "failed" for verdict in verdicts):
        raise typer.Exit(EXIT_USER_ERROR)


def _print_plugin(shown: PluginDescription) -> None:
    console = Console()
    console.print(f"[bold]{shown.name}[/]  {shown.distribution} {shown.version}  (plugin API {shown.api_version})")
    console.print(escape(shown.summary))
    console.print(f"file: {escape(shown.file)}", soft_wrap=True)
    console.print(f"hooks: {', '.join(shown.hooks)}\n", soft_wrap=True)
    table = Table("option", "type", "default", "description", box=None, pad_edge=False)
    for option in shown.options:
        table.add_row(option.name, escape(option.type), escape(str(option.default)), escape(option.description))
    console.print(table)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin, for example `late_masking`.")],
    kind: Annotated[Kind, typer.Option("--kind", help="What it provides.")] = "masking",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New or empty folder; default ltg-mdlm-<name>.")
    ] = None,
) -> None:
    """Write a plugin's distribution: a working plugin with options, its tests, README, licence and CI file.

    It installs, passes its tests and trains as it is; what is yours is to replace the mathematics.
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
        f"\n  ltg-mdlm train --plugin {names.plugin} --out runs/{names.plugin}"
        f"\n  ltg-mdlm train --plugin freq_mdlm --out runs/freq_mdlm"
        f"\n  ltg-mdlm report runs"
    )
