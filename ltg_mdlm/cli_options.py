"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Run folder (its newest checkpoint), checkpoint, or exported folder.")
]
WeightsOption = Annotated[
    Literal["ema", "raw"], typer.Option("--weights", help="Averaged weights, or those of the last step.")
]
TokensPerBatch = Annotated[
    int | None, typer.Option("--tokens-per-batch", min=1, help="Changes speed and memory only; default: by device.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where results lie.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0, help="Divides the logits; 0: the likeliest token.")]
TopP = Annotated[
    float, typer.Option("--top-p", min=0, max=1, help="Draw from the likeliest tokens of this probability in all.")
]
