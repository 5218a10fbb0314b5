"""`ltg-mdlm report`, `reproduce` and `watch`: compare runs, reproduce one, and follow runs that are training."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ltg_mdlm.cli.options import AsJson, Csv, Latex
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import json_text
from ltg_mdlm.core.terminal import print_table

DEFAULT_RESULTS = Path("results")

Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Run folders, or folders that contain some, up to 3 levels deep."),
]


def report(
    runs: Runs,
    as_json: AsJson = False,
    csv: Csv = None,
    latex: Latex = None,
    bibtex: Annotated[
        Path | None,
        typer.Option("--bibtex", metavar="FILE.bib", help="Also write BibTeX entries of what the runs implement."),
    ] = None,
    methods: Annotated[
        bool, typer.Option("--methods", help="Print a methods paragraph about runs of one recipe, not the table.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="Also write an HTML report with curves, pictures and samples."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="DIR", help="With --out: folder of evaluation results; default: results."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=0, help="With --out: samples per group, of up to 6 groups; default: 2."),
    ] = None,
    recipes: Annotated[
        int | None,
        typer.Option("--recipes", min=0, help="With --out: recipes whose schedule and masking are drawn; default: 6."),
    ] = None,
) -> None:
    """Compare runs in a table: settings that differ, status, last validation metrics. Includes unfinished runs.

    The HTML report of --out is one file that works offline.
    """
    from ltg_mdlm.core.files import write_errors, write_text
    from ltg_mdlm.reporting.html_report.run_groups import group_runs, read_record
    from ltg_mdlm.reporting.run_table import (
        damage_note,
        find_runs,
        read_run,
        report_table,
        shared_folder,
        text_table,
        write_csv,
    )

    if out is None and any(option is not None for option in (results, samples, recipes)):
        raise UserError("--results, --samples and --recipes only change the HTML report\n  add --out FILE.html")
    if methods and as_json:
        raise UserError("--methods is a text: leave --json out")
    folders = find_runs(runs)
    if out is not None:
        from ltg_mdlm.reporting.html_report.page import Extent, write_report

        if results is not None and not results.is_dir():
            raise UserError(f"--results {results}: no such folder")
        found = results or (DEFAULT_RESULTS if DEFAULT_RESULTS.is_dir() else None)
        extent = {name: value for name, value in (("samples", samples), ("recipes", recipes)) if value is not None}
        rows = write_report(folders, out, results=found, extent=Extent(**extent))
        print(f"report: {out}", file=sys.stderr)
    else:
        rows = [read_run(folder) for folder in folders]
    if note := damage_note(rows):
        print(f"note: {note}", file=sys.stderr)
    if csv is not None:
        write_csv(report_table(rows), csv)
    if latex is not None:
        from ltg_mdlm.reporting.latex_tables import runs_latex

        table = runs_latex(group_runs([read_record(folder) for folder in folders]))
        with write_errors(latex):
            write_text(latex, table)
    if bibtex is not None:
        from ltg_mdlm.reporting.bibliography import bibliography

        entries, notes = bibliography(folders)
        with write_errors(bibtex):
            write_text(bibtex, entries)
        for text in notes:
            print(f"note: {text}", file=sys.stderr)
    if methods:
        from ltg_mdlm.reporting.methods_paragraph import methods_paragraph

        typer.echo(methods_paragraph(group_runs([read_record(folder) for folder in folders])))
    elif as_json:
        typer.echo(json_text(report_table(rows)))
    else:
        print(f"{len(rows)} run(s) in {os.path.relpath(shared_folder(rows))}", file=sys.stderr)
        print_table(text_table(rows))


def reproduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the new run; default: RUN-again.")
    ] = None,
) -> None:
    """Print the commands and hashes that reproduce a run: versions, corpus, training, and the expected metrics."""
    from ltg_mdlm.reporting.reproduction import reproduction

    named = run if run.name not in ("", "..") else Path(os.path.abspath(run))
    typer.echo(reproduction(run, out or named.with_name(f"{run.resolve().name}-again")))


def watch(
    runs: Runs,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Metric of metrics.jsonl to draw (repeatable); default: loss, valid/bound.",
        ),
    ] = None,
    every: Annotated[float, typer.Option("--every", min=0.2, max=86400, help="Seconds between updates.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print the current state and exit.")] = False,
) -> None:
    """Show the curves of running runs in the terminal, read from their files. Exits when all runs have ended.

    Works without colours and in 80 columns. In a pipe, the current state is printed once.
    """
    from ltg_mdlm.reporting import watch as screen

    screen.watch(runs, metric or screen.METRICS, every, once=once)
