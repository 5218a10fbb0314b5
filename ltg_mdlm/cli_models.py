"""`ltg-mdlm export`: commands that take a trained model elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer


def export(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run folder or checkpoint.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
    weights: Annotated[
        str, typer.Option("--weights", metavar="ema|raw", help="Averaged weights, or the last.")
    ] = "ema",
    revisions: Annotated[
        bool, typer.Option("--revisions", help="Also every chck_* checkpoint, each in a subfolder of DIR beside main.")
    ] = False,
    mask_rate: Annotated[
        str | None,
        typer.Option(
            "--mask-rate",
            metavar="fraction|zero|constant",
            help="What a model with time conditioning is told when nobody says; default fraction: what is masked.",
        ),
    ] = None,
    constant_rate: Annotated[
        float | None, typer.Option("--constant-rate", metavar="RATE", help="The rate of --mask-rate constant.")
    ] = None,
) -> None:
    """Write a model that Hugging Face transformers loads: for evaluation pipelines, fine-tuning and a model hub."""
    from ltg_mdlm.export import export_model
    from ltg_mdlm.trained_model import Weights

    folders = export_model(
        model,
        out,
        weights=cast(Weights, weights),
        revisions=revisions,
        mask_rate=mask_rate,
        constant_rate=constant_rate,
    )
    for folder in folders:
        typer.echo(folder)
