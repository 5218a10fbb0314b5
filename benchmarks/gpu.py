"""The base model on a GPU, in one command: both row lengths, compiled or not, with and without checkpointing.

    python benchmarks/gpu.py --corpus CORPUS --write docs/benchmarks.md

CORPUS should have the published 16384 types (`ltg-mdlm prepare`); the generated corpus has 2048, which makes the head
cheaper.  Every line is `ltg-mdlm bench` in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from typing import Any

import torch
from markdown import add_write_option, publish, table

HEADER = (
    "T",
    "compiled",
    "checkpointing",
    "tokens/s without padding",
    "step, ms (least to most)",
    "share of peak",
    "peak memory, GB",
    "forward, backward, optimizer, EMA",
)
SHOWN_PARTS = ("forward", "backward", "optimizer", "EMA")


def bench(length: int, compiled: bool, checkpointing: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """One line's report."""
    sets = (
        f"data.corpus={arguments.corpus}",
        f"training.seq_len={length}",
        f"training.compile={compiled}",
        f"training.activation_checkpointing={checkpointing}",
        "validation.pairs=null",
    )
    options = [part for text in sets for part in ("--set", text)]
    command = [sys.executable, "-m", "ltg_mdlm", "bench", "--config", arguments.config, "--json"]
    rows = str(arguments.tokens // length)
    done = subprocess.run([*command, "--rows", rows, *options], check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def row(report: dict[str, Any], compiled: bool, checkpointing: bool) -> list[str]:
    """Its cells."""
    step, parts = report["step_seconds"], report["phase_seconds"]
    whole = sum(parts.values())
    return [
        str(report["seq_len"]),
        "yes" if compiled else "no",
        "yes" if checkpointing else "no",
        f"{report['tokens_per_second']:,.0f}",
        f"{1000 * step['median']:.1f} ({1000 * step['least']:.1f} to {1000 * step['most']:.1f})",
        f"{report['share_of_peak']:.1%}",
        f"{report['peak_memory_bytes'] / 1e9:.1f}",
        ", ".join(f"{parts[name] / whole:.0%}" for name in SHOWN_PARTS),
    ]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="builtin")
    parser.add_argument("--config", default="freq_cosine")
    parser.add_argument("--tokens", type=int, default=131_072, help="of a global batch")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    add_write_option(parser)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is visible; `ltg-mdlm bench` and benchmarks/scale.py measure a CPU")
    reports = [
        (bench(length, compiled, checkpointing, arguments), compiled, checkpointing)
        for length, compiled, checkpointing in itertools.product(arguments.lengths, (False, True), (False, True))
    ]
    first = reports[0][0]
    about = (
        f"{first['machine']}, {first['versions']}, {first['precision']}, {first['parameters']:,} parameters,"
        f" {arguments.tokens:,} tokens per step; matrix peak {first['peak_flops'] / 1e12:,.0f} TFLOP/s, measured."
    )
    publish("gpu", f"{about}\n\n{table(HEADER, [row(*found) for found in reports])}", arguments.write)


if __name__ == "__main__":
    main()
