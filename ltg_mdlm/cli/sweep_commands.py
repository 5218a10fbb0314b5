"""`ltg-mdlm sweep`: list, estimate and train the points of a sweep."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ltg_mdlm.cli.command_classes import CommandApp
from ltg_mdlm.cli.options import AsJson, Resume, Sets
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import json_text
from ltg_mdlm.core.terminal import print_table

SweepName = Annotated[str, typer.Argument(metavar="FILE", help="Sweep file, or the name of one in configs/sweeps.")]

PointIndex = Annotated[int, typer.Argument(metavar="INDEX", help="Index of the point, as `sweep list` shows it.")]

OutRoot = Annotated[
    Path | None,
    typer.Option("--out-root", metavar="DIR", help="Parent of the run folders; default: `runs/<sweep>`."),
]

sweep_app = CommandApp(help="Train a grid of settings and seeds, one run per point.")


@sweep_app.command("list")
def sweep_list(file: SweepName, set_: Sets = None, out_root: OutRoot = None, as_json: AsJson = False) -> None:
    """List the points of a sweep: index, values, run folder. The settings of every point are validated."""
    from ltg_mdlm.training.check import require_valid
    from ltg_mdlm.training.sweep import open_sweep, short_names

    sweep = open_sweep(file, set_ or (), out_root)
    require_valid(sweep)
    if as_json:
        rows = [{"index": p.index, "folder": str(sweep.folder(p)), "settings": p.values} for p in sweep.points]
        typer.echo(json_text(rows))
        return
    varying = short_names([*sweep.content.varying, "seed"])
    table = Table("index", *varying.values(), "run folder", box=None, pad_edge=False)
    for p in sweep.points:
        table.add_row(str(p.index), *(escape(str(p.values[key])) for key in varying), escape(str(sweep.folder(p))))
    print_table(table)


@sweep_app.command("check")
def sweep_check(file: SweepName, set_: Sets = None, as_json: AsJson = False) -> None:
    """Estimate the GPU-hours of a sweep, for every point and in total. Nothing is trained."""
    from ltg_mdlm.training.check import describe_sweep
    from ltg_mdlm.training.sweep import open_sweep

    costs = describe_sweep(open_sweep(file, set_ or ()))
    total = sum(cost.gpu_hours for cost in costs)
    if as_json:
        points = [{"points": [p.index for p in c.points], "h200_hours": c.gpu_hours} for c in costs]
        typer.echo(json.dumps({"points": points, "h200_hours": total}, indent=2))
        return
    table = Table("points", "first point", "runs", "steps", "H200 hours", box=None, pad_edge=False)
    for cost in costs:
        first, last = cost.points[0], cost.points[-1]
        hours = f"{cost.gpu_hours:.2g}"
        table.add_row(
            f"{first.index}-{last.index}", escape(first.name), str(len(cost.points)), str(cost.report.max_steps), hours
        )
    print_table(table)
    for text in dict.fromkeys(text for cost in costs for text in cost.report.warnings):
        typer.echo(f"warning: {text}")
    typer.echo(f"{sum(len(c.points) for c in costs)} runs, {total:.2g} H200 hours in total (an estimate)")


@sweep_app.command("run")
def sweep_run(
    file: SweepName,
    index: Annotated[
        int | None,
        typer.Argument(metavar="INDEX", help="Index of one point, as `sweep list` shows it; default: all."),
    ] = None,
    set_: Sets = None,
    out_root: OutRoot = None,
    resume: Resume = "auto",
) -> None:
    """Train one point, or all points one after the other and compare them in a table and an HTML report.

    Points that are finished are not trained again. If a point diverges (too many non-finite updates), the sweep goes on
    with the others and ends with exit code 3. For several processes: `torchrun ... -m ltg_mdlm sweep run FILE`.
    """
    from ltg_mdlm.core.preemption import StopRequest
    from ltg_mdlm.reporting.html_report.page import Extent, write_report
    from ltg_mdlm.reporting.run_table import read_run, text_table
    from ltg_mdlm.training.launch import EXIT_DONE, EXIT_NON_FINITE, exit_code, launch
    from ltg_mdlm.training.sweep import open_sweep

    sweep = open_sweep(file, set_ or (), out_root)
    if index is not None:
        raise typer.Exit(exit_code(launch(sweep.settings(sweep.point(index)), resume)))
    settings = [sweep.settings(point) for point in sweep.points]  # all mistakes are found before the first point
    code = EXIT_DONE
    # One for all points: a signal that arrives while a point ends stops the next one before its first step.
    stop = StopRequest()
    for of_point in settings:
        outcome = launch(of_point, resume, stop)
        if outcome == EXIT_NON_FINITE:  # divergence is a result of this point only
            code = outcome
        elif outcome != EXIT_DONE:
            raise typer.Exit(exit_code(outcome))
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit(code)
    folders = [sweep.folder(point) for point in sweep.points]
    typer.echo("")
    print_table(text_table([read_run(folder) for folder in folders]))
    page = sweep.out_root / "report.html"
    try:
        write_report(folders, page, results=None, extent=Extent())
    except UserError as error:  # such as without the extra `plots`
        typer.echo(f"no HTML report: {error}")
    else:
        typer.echo(f"report: {page}")
    raise typer.Exit(code)


@sweep_app.command("folder")
def sweep_folder(file: SweepName, index: PointIndex, set_: Sets = None, out_root: OutRoot = None) -> None:
    """Print the run folder of one point, for use in job scripts."""
    from ltg_mdlm.training.sweep import open_sweep

    sweep = open_sweep(file, set_ or (), out_root)
    typer.echo(sweep.folder(sweep.point(index)))
