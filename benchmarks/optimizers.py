"""The built-in optimisers at equal tokens: held-out bound by learning rate, means over seeds.

    ltg-mdlm prepare TRAIN --valid DEV --vocab-size 4096 --out CORPUS
    python benchmarks/optimizers.py CORPUS --out runs/optimizers --write docs/optimizers.md

Trains the points of configs/sweeps/optimizers.yaml, one after the other.  Points that are finished are not trained
again, and an interrupted one is resumed, so the same command also only writes the table.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from markdown import add_write_option, publish, table

from ltg_mdlm.reporting.run_table import RunRow, read_run
from ltg_mdlm.training.launch import launch
from ltg_mdlm.training.sweep import open_sweep


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder made by `ltg-mdlm prepare`")
    parser.add_argument("--out", type=Path, default=Path("runs/optimizers"), help="parent of the run folders")
    parser.add_argument("--table-only", action="store_true", help="train nothing; use the runs that are finished")
    add_write_option(parser)
    arguments = parser.parse_args()
    # One thread, so that results are equal on machines with any number of cores.
    sets = (f"data.corpus={arguments.corpus.absolute()}", "training.threads=1", "logging.wandb=off")
    sweep = open_sweep("optimizers", sets, arguments.out)
    # All optimisers with one seed, then the next seed: an early end leaves equal numbers of seeds.
    points = sorted(sweep.points, key=lambda point: (point.values["seed"], point.index))
    if not arguments.table_only:
        for point in points:
            launch(sweep.settings(point))
    runs = [read_run(sweep.folder(point)) for point in points if sweep.folder(point).exists()]
    finished = [run for run in runs if run.status == "finished"]
    about = (
        f"{len(finished)} of {len(points)} runs, on one thread of a CPU with {torch.backends.cpu.get_cpu_capability()}"
        f" and {os.cpu_count()} cores, torch {torch.__version__}; in brackets: seeds."
    )
    publish("optimizers", f"{about}\n\n{bounds(finished)}", arguments.write)


def bounds(runs: list[RunRow]) -> str:
    """Mean and standard error over seeds, by optimiser and learning rate; the best rate of each optimiser is bold."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        bound = run.figures["bound"]
        assert bound is not None
        found[run.settings["optimizer.name"]][run.settings["optimizer.lr"]].append(bound)
    rates = sorted({lr for by_rate in found.values() for lr in by_rate})
    rows = []
    for name, by_rate in found.items():
        best = min(by_rate, key=lambda lr: statistics.mean(by_rate[lr]))
        cells = []
        for lr in rates:
            values = by_rate.get(lr, [])
            error = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
            text = f"{statistics.mean(values):.3f}{error} ({len(values)})" if values else ""
            cells.append(f"**{text}**" if lr == best else text)
        rows.append([name, *cells])
    return table(["optimiser", *(f"lr {lr:g}" for lr in rates)], rows)


if __name__ == "__main__":
    main()
