"""`ltg-mdlm report` and `ltg-mdlm watch`: what runs did, and what they are doing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.terminal import print_table

DEFAULT_RESULTS = Path("results")


Runs = Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some, as those of a sweep.")]


def report(
    runs: Runs,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, with every figure.")] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the table, with every figure, to a file, too.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="Write a page with curves, pictures and samples, too."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="DIR", help="With --out: where results of evaluation lie; default results."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=0, help="With --out: samples per group, of up to 6 groups; default 2."),
    ] = None,
    recipes: Annotated[
        int | None,
        typer.Option("--recipes", min=0, help="With --out: recipes whose schedule and masking are drawn; default 6."),
    ] = None,
) -> None:
    """Put runs in one table: settings that differ, status, last held-out figures; unfinished runs, too.

    With --out also on one page, which opens in any browser without a network.
    """
    from ltg_mdlm.reporting.run_table import find_runs, read_run, report_table, text_table, write_csv

    if out is None and any(option is not None for option in (results, samples, recipes)):
        raise UserError("--results, --samples and --recipes only change the page\n  add --out FILE.html")
    folders = find_runs(runs)
    if out is not None:
        extent = {"samples": samples, "recipes": recipes}
        _write_page(folders, out, results, {name: given for name, given in extent.items() if given is not None})
    rows = [read_run(folder) for folder in folders]
    if csv is not None:
        write_csv(report_table(rows), csv)
    if as_json:
        typer.echo(json.dumps(report_table(rows), indent=2))
    else:
        print_table(text_table(rows))


def _write_page(folders: list[Path], out: Path, results: Path | None, extent: dict[str, int]) -> None:
    from ltg_mdlm.reporting.html_report.page import Extent, write_report

    if results is not None and not results.is_dir():
        raise UserError(f"--results {results}: no such folder")
    found = results or (DEFAULT_RESULTS if DEFAULT_RESULTS.is_dir() else None)
    write_report(folders, out, results=found, extent=Extent(**extent))
    print(f"page: {out}", file=sys.stderr)


def watch(
    runs: Runs,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Metric to draw (repeatable), as metrics.jsonl calls it; default loss, valid/bound.",
        ),
    ] = None,
    every: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print what there is now, and end.")] = False,
) -> None:
    """Show the curves of running runs in the terminal, from their files alone; ends when all runs have ended.

    Needs no colours and 80 columns. In a pipe it prints once.
    """
    from ltg_mdlm.reporting import watch as screen

    screen.watch(runs, metric or screen.METRICS, every, once=once)
