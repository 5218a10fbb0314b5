"""Tables on the terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table


def print_table(table: Table) -> None:
    """Folded to a terminal's width; in a file or a pipe, every record is one line."""
    console = Console() if sys.stdout.isatty() else Console(width=10_000)
    console.print(table, highlight=False)
