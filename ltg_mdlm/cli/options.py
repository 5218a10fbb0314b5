"""Options that several commands share.

Help texts are Markdown. Typer drops `<...>` in them unless it is inside backticks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="NAME", help="Select an installed plugin (repeatable).")
]

Configs = Annotated[
    list[str] | None,
    typer.Option(
        "--config", metavar="NAME_OR_PATH", help="Named config or YAML file (repeatable; later ones take precedence)."
    ),
]

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Override one setting (repeatable; takes precedence over files)."
    ),
]

RunOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run folder; default: `runs/<config>-<plugins>-s<seed>`."),
]

Resume = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="auto|never|PATH",
        help="auto: resume if the run folder has a checkpoint; never: fail if it holds a run; PATH: begin with this"
        " checkpoint, and resume later.",
    ),
]

ModelPath = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="Run folder (its newest checkpoint is used), checkpoint, or exported folder."),
]

Weights = Annotated[
    Literal["ema", "raw"], typer.Option("--weights", help="ema: averaged weights; raw: weights of the last step.")
]

TokensPerBatch = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-batch", min=1, help="Tokens per forward pass; changes only speed and memory; default: by device."
    ),
]

EvaluationProtocol = Annotated[
    Literal["2026", "2025"],
    typer.Option(
        "--protocol",
        help="Rules of the BabyLM evaluation. 2025, to reproduce older results: EWoK by targets, unfiltered entity"
        " tracking, WUG, the first candidate in a tie, and fine-tuning on the first position.",
    ),
]

ResultsOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of results.")]

Temperature = Annotated[
    float, typer.Option("--temperature", min=0, help="Divide the logits by this; 0: take the most likely token.")
]

TopP = Annotated[
    float,
    typer.Option(
        "--top-p", min=0, max=1, help="Sample from the smallest set of tokens with this total probability (nucleus)."
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Csv = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table, with all columns, to a CSV file.")
]

Latex = Annotated[
    Path | None, typer.Option("--latex", metavar="FILE.tex", help="Also write a table for a paper (LaTeX, booktabs).")
]
