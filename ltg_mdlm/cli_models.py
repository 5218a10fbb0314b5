"""`ltg-mdlm finetune`: commands that take a trained model elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def finetune(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run folder or checkpoint.")],
    *,
    data: Annotated[
        Path,
        typer.Option("--data", metavar="PATH", help="Folder with files like rte.train.jsonl, or one of the files."),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="boolq, multirc, mnli, rte, mrpc, qqp, wsc; default: all there."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where results lie.")] = Path("results"),
    seed: Annotated[
        list[int] | None, typer.Option("--seed", min=0, help="Repeatable: mean and spread; default 42.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a published setting (repeatable); lr, batch_rows, epochs, seq_len, warmup, final_factor,"
            " betas, eps, weight_decay, clip, dropout, head_dropout, precision.",
        ),
    ] = None,
    weights: Annotated[
        Literal["ema", "raw"], typer.Option("--weights", help="Averaged weights, or those of the last step.")
    ] = "ema",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do tasks again that are done already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Fine-tune on (Super)GLUE tasks with the settings of the BabyLM evaluation suite; its files and a table.

    Under torchrun every process takes some of the tasks: `torchrun --nproc-per-node 4 -m ltg_mdlm finetune ...`.
    """
    from ltg_mdlm.distributed import Ranks
    from ltg_mdlm.finetune.results import result_table
    from ltg_mdlm.finetune.suite import PUBLISHED_SEED, TIMEOUT, finetune_suite
    from ltg_mdlm.tables import print_table
    from ltg_mdlm.trained_model import open_model

    with Ranks.setup(timeout=TIMEOUT) as ranks:
        summaries = finetune_suite(
            open_model(model, ranks, weights=weights),
            data,
            ranks,
            tasks=task or (),
            sets=set_ or (),
            seeds=seed or (PUBLISHED_SEED,),
            out=out,
            overwrite=overwrite,
            say=lambda text: typer.echo(text, err=True),
        )
        if ranks.is_main and as_json:
            typer.echo(json.dumps(summaries, indent=2))
        elif ranks.is_main:
            print_table(result_table(summaries))
