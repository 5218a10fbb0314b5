"""`ltg-mdlm`: every command, thin; heavy imports happen inside the commands that need them."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand

from ltg_mdlm import __version__
from ltg_mdlm.blame import PluginFailure
from ltg_mdlm.cli_eval import eval_app
from ltg_mdlm.cli_generate import generate
from ltg_mdlm.cli_look import report, watch
from ltg_mdlm.cli_models import export, finetune, import_, push
from ltg_mdlm.cli_plugins import new
from ltg_mdlm.errors import UserError
from ltg_mdlm.tables import print_table

if TYPE_CHECKING:
    from ltg_mdlm.host import PluginDescription

EXIT_FAILURE, EXIT_USER_ERROR = 1, 2

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")
plugins_app = typer.Typer(no_args_is_help=True, help="Look at the installed plugins, and begin one.")
app.add_typer(plugins_app, name="plugins")
plugins_app.command()(new)
sweep_app = typer.Typer(no_args_is_help=True, help="Train a grid of settings x seeds, one run per point.")
app.add_typer(sweep_app, name="sweep")
app.add_typer(eval_app, name="eval")
app.command()(report)
app.command()(watch)
app.command()(finetune)
app.command()(generate)
app.command()(export)
app.command()(push)
app.command("import")(import_)

Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="NAME", help="Select an installed plugin (repeatable).")
]
Configs = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="NAME_OR_PATH", help="Named config or YAML file (repeatable, later wins)."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override one setting (repeatable, wins over files)."),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default runs/<config>-<plugins>-s<seed>.")
]
Resume = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="auto|never|PATH",
        help="auto: go on when the run folder holds a checkpoint; never: refuse to; PATH: go on from that checkpoint.",
    ),
]

SweepName = Annotated[str, typer.Argument(metavar="FILE", help="Sweep file, or the name of one in configs/sweeps.")]
PointIndex = Annotated[int, typer.Argument(metavar="INDEX", help="Number of the point, as `sweep list` shows it.")]
OutRoot = Annotated[
    Path | None, typer.Option("--out-root", metavar="DIR", help="Where the run folders lie; default runs/<sweep>.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ltg-mdlm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of user errors, too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train masked language models from plugins: masking, objective, noise schedule, time conditioning."""
    if debug:
        os.environ["LTG_MDLM_DEBUG"] = "1"


@app.command()
def train(
    plugin: Plugins = None, config: Configs = None, set_: Sets = None, out: Out = None, resume: Resume = "auto"
) -> None:
    """Train a model; the same trainer as `torchrun ... -m ltg_mdlm.train`."""
    from ltg_mdlm.config import load_settings
    from ltg_mdlm.train import launch

    raise typer.Exit(launch(load_settings(config or (), set_ or (), plugin or (), out), resume))


@app.command()
def check(
    plugin: Plugins = None,
    config: Configs = None,
    set_: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Validate settings and print them resolved, with parameters, steps, rows and tokens; trains nothing."""
    from ltg_mdlm.check import describe_run
    from ltg_mdlm.config import load_settings

    report = describe_run(load_settings(config or (), set_ or (), plugin or ()))
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        typer.echo(report.to_text())


@app.command()
def bench(
    plugin: Plugins = None,
    config: Configs = None,
    set_: Sets = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Rows of a global batch, instead of training.global_batch_rows.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=3, help="Steps to time, at most.")] = 10,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Time fewer steps if they take longer.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure training steps: tokens per second, where the time goes, memory, share of the machine's peak.

    Nothing is written. Under torchrun: `torchrun --nproc-per-node 2 -m ltg_mdlm bench ...`.
    """
    from ltg_mdlm.bench import bench as measure
    from ltg_mdlm.bench import print_report
    from ltg_mdlm.config import load_settings

    report = measure(load_settings(config or (), set_ or (), plugin or ()), rows=rows, steps=steps, seconds=seconds)
    if report is None:
        return
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        print_report(report, Console())


class ManyValid(TyperCommand):
    """Gives `--valid` every path up to the next option, so that `--valid dev/*.dev` means what the shell makes of it.

    Otherwise all but the first of the held-out files would become training files.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click does, with `--valid a b` read as `--valid a --valid b`."""
        return super().parse_args(ctx, list(repeat_option(args, "--valid")))


def repeat_option(args: Iterable[str], option: str) -> Iterator[str]:
    """The arguments with `option` before every value that follows it."""
    belongs, bare = False, False
    for arg in args:
        if arg.startswith("-"):
            belongs = bare = arg == option
        elif belongs and not bare:
            yield option
        else:
            bare = False
        yield arg


@app.command(cls=ManyValid)
def prepare(
    files: Annotated[
        list[Path], typer.Argument(help="Text files or folders: .train .dev .txt .jsonl, also .gz and .zst.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Corpus folder to make.")],
    valid: Annotated[
        list[Path] | None, typer.Option("--valid", metavar="PATHS...", help="Held-out text files or folders.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FILE", help="Use this tokenizer instead of training one.")
    ] = None,
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=273, help="Size of the trained tokenizer.")] = 16384,
    drop_headings: Annotated[
        bool, typer.Option("--drop-headings", help="Delete `= = = heading = = =` lines, as the published code does.")
    ] = False,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: all cores.")] = None,
) -> None:
    """Turn text into a corpus folder: tokenizer, memory-mapped tokens, documents, counts, hashes of the sources."""
    from ltg_mdlm.data.prepare import prepare_corpus

    corpus = prepare_corpus(
        files,
        out,
        valid=valid or (),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        drop_headings=drop_headings,
        workers=workers,
    )
    typer.echo(corpus.describe())


@sweep_app.command("list")
def sweep_list(
    file: SweepName,
    set_: Sets = None,
    out_root: OutRoot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Show the points of a sweep: index, values, run folder; the settings of every point are validated first."""
    from ltg_mdlm.check import require_valid
    from ltg_mdlm.sweep import open_sweep, short_names

    sweep = open_sweep(file, set_ or (), out_root)
    require_valid(sweep)
    if as_json:
        rows = [{"index": p.index, "folder": str(sweep.folder(p)), "settings": p.values} for p in sweep.points]
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    varying = short_names([*sweep.content.varying, "seed"])
    table = Table("index", *varying.values(), "run folder", box=None, pad_edge=False)
    for p in sweep.points:
        table.add_row(str(p.index), *(escape(str(p.values[key])) for key in varying), escape(str(sweep.folder(p))))
    print_table(table)


@sweep_app.command("check")
def sweep_check(
    file: SweepName,
    set_: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Estimate the GPU-hours of a sweep, by point and together; trains nothing."""
    from ltg_mdlm.check import describe_sweep
    from ltg_mdlm.sweep import open_sweep

    costs = describe_sweep(open_sweep(file, set_ or ()))
    total = sum(cost.gpu_hours for cost in costs)
    if as_json:
        points = [{"points": [p.index for p in c.points], "h200_hours": c.gpu_hours} for c in costs]
        typer.echo(json.dumps({"points": points, "h200_hours": total}, indent=2))
        return
    table = Table("points", "first of them", "runs", "steps", "H200 hours", box=None, pad_edge=False)
    for cost in costs:
        first, last = cost.points[0], cost.points[-1]
        hours = f"{cost.gpu_hours:.2g}"
        table.add_row(
            f"{first.index}-{last.index}", escape(first.name), str(len(cost.points)), str(cost.report.max_steps), hours
        )
    print_table(table)
    for text in dict.fromkeys(text for cost in costs for text in cost.report.warnings):
        typer.echo(f"warning: {text}")
    typer.echo(f"{sum(len(c.points) for c in costs)} runs, {total:.2g} H200 hours together (an estimate)")


@sweep_app.command("run")
def sweep_run(
    file: SweepName, index: PointIndex, set_: Sets = None, out_root: OutRoot = None, resume: Resume = "auto"
) -> None:
    """Train one point, or go on with it; `torchrun ... -m ltg_mdlm sweep run FILE INDEX` uses several processes."""
    from ltg_mdlm.sweep import open_sweep
    from ltg_mdlm.train import launch

    sweep = open_sweep(file, set_ or (), out_root)
    raise typer.Exit(launch(sweep.settings(sweep.point(index)), resume))


@sweep_app.command("folder")
def sweep_folder(file: SweepName, index: PointIndex, set_: Sets = None, out_root: OutRoot = None) -> None:
    """Print the run folder of one point, as job scripts need it."""
    from ltg_mdlm.sweep import open_sweep

    sweep = open_sweep(file, set_ or (), out_root)
    typer.echo(sweep.folder(sweep.point(index)))


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
        from ltg_mdlm.check import resolve
        from ltg_mdlm.config import load_settings

        provenance = resolve(load_settings(config or (), set_ or (), plugin or ())).components.provenance
        rows = [{"slot": slot, **provider.model_dump()} for slot, provider in provenance.items()]
    else:
        from ltg_mdlm.installed import installed_plugins

        found = [plugin for same_name in installed_plugins().values() for plugin in same_name]
        rows = [
            {"name": p.name, "distribution": p.distribution, "version": p.version, "target": p.target} for p in found
        ]
    _print_plugins(rows, as_json=as_json)


def _print_plugins(rows: Sequence[Mapping[str, str]], *, as_json: bool) -> None:
    from ltg_mdlm.installed import Restriction

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
    from ltg_mdlm.host import describe_plugin

    if plot is None and (corpus or set_):
        raise UserError("--corpus and --set only change the picture\n  add --plot FILE.png")
    if plot is not None:
        from ltg_mdlm.plots.plugin import plot_plugin

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
    from ltg_mdlm.testing.report import examine, failures, summary, to_json, verdict_table

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


def report_errors(run: Callable[[], None]) -> None:
    """Call a typer app; a user's mistake becomes one message and exit code 2, without a traceback.

    A plugin's becomes its traceback, the plugin's name below it, and exit code 1.
    """
    warnings.showwarning = _show_warning
    try:
        run()
    except UserError as error:
        if os.environ.get("LTG_MDLM_DEBUG"):
            traceback.print_exc()
        # Every process of a torchrun job meets the same mistake; one message is enough, or one of each machine.
        first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        if first_here if error.only_here is None else error.only_here:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except PluginFailure as error:
        error.report()
        sys.exit(EXIT_FAILURE)


def main() -> None:
    """Entry point of the `ltg-mdlm` command; characters that the terminal's encoding lacks become question marks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    report_errors(app)
