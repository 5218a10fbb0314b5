"""Write the HTML report. The contents are collected in `content`, which needs the extra `plots`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_text
from ltg_mdlm.core.terminal import busy
from ltg_mdlm.reporting.html_report.run_groups import read_record
from ltg_mdlm.reporting.run_table import RunRow


@dataclass(frozen=True)
class Extent:
    """How many of the contents that take time are included."""

    recipes: int = 6
    """Maximum number of recipes whose schedule and masking are drawn."""
    samples: int = 2
    """Samples of each selected group."""


def write_report(runs: Sequence[Path], page: Path, *, results: Path | None, extent: Extent) -> list[RunRow]:
    """Write the HTML report of run folders to the file `page`, completely or not at all. Returns what it read of them.

    `results` is the folder of evaluation results, or None. Raises `UserError` if the extra `plots` is missing, or if
    the file cannot be written.
    """
    folder = page.resolve().parent
    if page.is_dir():
        raise UserError(f"{page} is a folder; name a file, for example {page / 'report.html'}")
    if not folder.is_dir():
        raise UserError(f"{page}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{page} cannot be written: no permission to write to {folder}")
    try:
        from ltg_mdlm.reporting.html_report import content
    except ImportError as error:
        message = f'the HTML report needs the package {error.name}\n  pip install "ltg-mdlm[plots]"'
        raise UserError(message) from None
    with busy(f"building the page of {len(runs)} run(s)"):
        records = [read_record(path) for path in runs]
        text = content.report_page(records, results, recipes=extent.recipes, samples=extent.samples)
    try:
        write_text(page, text)
    except OSError as error:
        raise UserError(f"{page} cannot be written: {error.strerror}") from None
    return [record.row for record in records]
