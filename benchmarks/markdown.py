"""Markdown tables for the documentation, each between markers with its name."""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from ltg_mdlm.core.machine import describe_machine


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def conditions(threads: int | None = None) -> str:
    """A sentence with the machine and the versions."""
    machine = describe_machine(torch.device("cpu"))
    return (
        f"{machine}, {threads or torch.get_num_threads()} threads; Python {platform.python_version()},"
        f" torch {torch.__version__}."
    )


def add_write_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--write FILE`."""
    parser.add_argument(
        "--write", type=Path, metavar="FILE.md", help="write the table between its markers in this file"
    )


def publish(name: str, text: str, file: Path | None) -> None:
    """Print a section, and write it to the file between `<!-- name -->` and `<!-- /name -->`."""
    print(f"\n{text}")
    if file is None:
        return
    section = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    replaced, count = section.subn(lambda found: f"{found[1]}{text}\n{found[2]}", file.read_text("utf-8"))
    if count != 1:
        raise SystemExit(f"{file} needs one pair of markers <!-- {name} --> and <!-- /{name} -->")
    file.write_text(replaced, "utf-8")
