"""`ltg-mdlm plugins new`: a distribution of one's own to begin with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ltg_mdlm.scaffold import Kind


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin, for example `late_masking`.")],
    kind: Annotated[Kind, typer.Option("--kind", help="What it provides.")] = "masking",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New or empty folder; default ltg-mdlm-<name>.")
    ] = None,
) -> None:
    """Write a plugin's distribution: a working plugin with options, its tests, README, licence and CI file.

    It installs, passes its tests and trains as it is; what is yours is to replace the mathematics.
    """
    from ltg_mdlm.scaffold.write import write_distribution

    names, folder = write_distribution(name, kind, out)
    typer.echo(
        f"plugin {names.plugin} ({kind}) in {folder}: edit src/{names.module}/plugin.py; next commands:\n"
        f"\n  cd {shlex.quote(str(folder))}"
        f"\n  pip install -e '.[test]'"
        f"\n  ltg-mdlm plugins show {names.plugin}"
        f"\n  ltg-mdlm plugins check {names.plugin}"
        f"\n  pytest"
        f"\n  ltg-mdlm train --plugin {names.plugin} --out runs/{names.plugin}"
        f"\n  ltg-mdlm train --plugin freq_mdlm --out runs/freq_mdlm"
        f"\n  ltg-mdlm report runs"
    )
