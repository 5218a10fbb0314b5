"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    pass


Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="NAME", help="Select an installed plugin (repeatable).")
]


Configs = Annotated[
    list[str] | None,
    typer.Option("--config", metavar="NAME_OR_PATH", help="Named config or YAML file (repeatable, later wins)."),
]


Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override one setting (repeatable, wins over files)."),
]


Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default runs/<config>-<plugins>-s<seed>.")
]


Resume = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="auto|never|PATH",
        help="auto: go on when the run folder holds a checkpoint; never: refuse to; PATH: go on from that checkpoint.",
    ),
]


ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Run folder (its newest checkpoint), checkpoint, or exported folder.")
]


WeightsOption = Annotated[
    Literal["ema", "raw"], typer.Option("--weights", help="Averaged weights, or those of the last step.")
]


TokensPerBatch = Annotated[
    int | None, typer.Option("--tokens-per-batch", min=1, help="Changes speed and memory only; default: by device.")
]


ResultsOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where results lie.")]


Temperature = Annotated[float, typer.Option("--temperature", min=0, help="Divides the logits; 0: the likeliest token.")]


TopP = Annotated[
    float, typer.Option("--top-p", min=0, max=1, help="Draw from the likeliest tokens of this probability in all.")
]
