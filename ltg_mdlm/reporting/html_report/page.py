"""Write the HTML report. The contents are collected in `content`, which needs the extra `plots`."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_text
from ltg_mdlm.core.terminal import busy
from ltg_mdlm.reporting.html_report.run_groups import RunRecord, read_record
from ltg_mdlm.reporting.run_table import RunRow

_BUNDLE = "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())"


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
    # Vega and Vega-Lite as one script, which another process makes during the imports: both take more than a second.
    making = subprocess.Popen([sys.executable, "-c", _BUNDLE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with busy(f"building the page of {len(runs)} run(s)"), making:
        content, records = _import_and_read(runs)
        contents = content.collect(records, results, extent.recipes, extent.samples)
        library = making.communicate()[0].decode()
        if making.returncode:
            raise UserError("the package vl_convert fails\n  pip install --force-reinstall vl-convert-python")
        text = content.render(contents, library)
    try:
        write_text(page, text)
    except OSError as error:
        raise UserError(f"{page} cannot be written: {error.strerror}") from None
    return [record.row for record in records]


def _import_and_read(runs: Sequence[Path]) -> tuple[ModuleType, list[RunRecord]]:
    """The module `content`, and the records of the runs.

    All objects that this makes live until the end. Without the garbage collector, which would visit them again and
    again, it takes a quarter less time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        from ltg_mdlm.reporting.html_report import content

        return content, [read_record(path) for path in runs]
    except ImportError as error:
        message = f'the HTML report needs the package {error.name}\n  pip install "ltg-mdlm[plots]"'
        raise UserError(message) from None
    finally:
        if collecting:
            gc.enable()
