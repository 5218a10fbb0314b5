"""The commands that bring trained models in and take them elsewhere."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from ltg_mdlm.cli.options import ResultsOut as Out
from ltg_mdlm.cli.options import WeightsOption

FinetuneData = Annotated[
    Path, typer.Option("--data", metavar="PATH", help="Folder with files like rte.train.jsonl, or one of the files.")
]


FinetuneTasks = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="NAME", help="boolq, multirc, mnli, rte, mrpc, qqp, wsc; default: all there."),
]


FinetuneSeeds = Annotated[
    list[int] | None, typer.Option("--seed", min=0, help="Repeatable: mean and spread; default 42.")
]


FinetuneSets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a published setting (repeatable); lr, batch_rows, epochs, seq_len, warmup, final_factor,"
        " betas, eps, weight_decay, clip, dropout, head_dropout, precision.",
    ),
]


def export(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run folder or checkpoint.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.")],
    weights: WeightsOption = "ema",
    revisions: Annotated[
        bool, typer.Option("--revisions", help="Also every chck_* checkpoint, each in a subfolder of DIR beside main.")
    ] = False,
    mask_rate: Annotated[
        Literal["fraction", "zero", "constant"] | None,
        typer.Option(
            "--mask-rate",
            help="What a model with time conditioning is told when nobody says; default fraction: what is masked.",
        ),
    ] = None,
    constant_rate: Annotated[
        float | None, typer.Option("--constant-rate", metavar="RATE", help="The rate of --mask-rate constant.")
    ] = None,
) -> None:
    """Write a model that Hugging Face transformers loads: for evaluation pipelines, fine-tuning and a model hub."""
    from ltg_mdlm.interchange.export_model import export_model

    folders = export_model(
        model,
        out,
        weights=weights,
        revisions=revisions,
        mask_rate=mask_rate,
        constant_rate=constant_rate,
    )
    for folder in folders:
        typer.echo(folder)


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder made by `ltg-mdlm export`.")],
    repo: Annotated[str, typer.Option("--repo", metavar="OWNER/NAME", help="Repository on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revisions: Annotated[
        bool,
        typer.Option("--revisions", help="DIR was made by `export --revisions`: every folder in it becomes a branch."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the folders, and list what would be uploaded where.")
    ] = False,
) -> None:
    """Upload an exported model to the Hugging Face Hub; log in first with `hf auth login`.

    The repository and its branches are made where they do not exist; to those that do, a commit is added.
    """
    from ltg_mdlm.interchange.push import open_hub, plan_uploads, require_repo_name
    from ltg_mdlm.interchange.push import push as upload_all

    require_repo_name(repo)
    uploads = plan_uploads(folder, revisions=revisions)
    if dry_run:
        typer.echo(f"would upload to {repo}:")
        for upload in uploads:
            typer.echo("\n  ".join([upload.describe(), *map(str, upload.files)]))
        return
    upload_all(open_hub(), uploads, repo, private=private, done=lambda upload: typer.echo(upload.describe()))
    typer.echo(f"https://huggingface.co/{repo}")


def import_(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="Training checkpoint, state dict, or folder as model hubs have it.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Run folder to make.")],
    model_config: Annotated[
        Path | None,
        typer.Option("--model-config", metavar="FILE", help="JSON file with the sizes; in a folder: config.json."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FILE", help="Tokenizer JSON; in a folder: tokenizer.json.")
    ] = None,
    weights: Annotated[
        Literal["ema", "raw"],
        typer.Option("--weights", help="ema: take over averaged weights, if the file has some; raw: leave them out."),
    ] = "ema",
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            metavar="NAME_OR_PATH",
            help="Recipe it was trained with (repeatable); default: what the layout of its weights tells.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one setting of the recipe (repeatable)."),
    ] = None,
) -> None:
    """Make a run folder of a checkpoint of the published code bases: to evaluate, export, and train on from.

    No code in the file is run. To train on: `ltg-mdlm train --config RUN/config.yaml --set run.init_from=RUN ...`.
    """
    from ltg_mdlm.interchange.import_checkpoint import import_checkpoint

    console = Console(stderr=True)
    with console.status(f"importing {path}") if console.is_terminal else nullcontext():
        imported = import_checkpoint(
            path,
            model_config=model_config,
            tokenizer=tokenizer,
            out=out,
            weights=weights,
            configs=config or (),
            sets=set_ or (),
        )
    typer.echo(imported.describe())


def finetune(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run folder or checkpoint.")],
    *,
    data: FinetuneData,
    task: FinetuneTasks = None,
    out: Out = Path("results"),
    seed: FinetuneSeeds = None,
    set_: FinetuneSets = None,
    weights: WeightsOption = "ema",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do tasks again that are done already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Fine-tune on (Super)GLUE tasks with the settings of the BabyLM evaluation suite; its files and a table.

    Under torchrun every process takes some of the tasks: `torchrun --nproc-per-node 4 -m ltg_mdlm finetune ...`.
    """
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.core.terminal import print_table
    from ltg_mdlm.evaluation.finetune_suite import PUBLISHED_SEED, TIMEOUT, finetune_suite, finetuning_table
    from ltg_mdlm.inference.trained_model import open_model

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
            print_table(finetuning_table(summaries))
