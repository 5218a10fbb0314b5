"""`ltg-mdlm export`, `push`, `import` and `finetune`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from ltg_mdlm.cli.options import AsJson, EvaluationProtocol, ModelPath, ResultsOut, Weights
from ltg_mdlm.core.terminal import is_live, print_table


def export(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run folder or checkpoint.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to create.")],
    weights: Weights = "ema",
    revisions: Annotated[
        bool,
        typer.Option("--revisions", help="Also export every chck_* checkpoint, each to its own subfolder of DIR."),
    ] = False,
    mask_rate: Annotated[
        Literal["fraction", "zero", "constant"] | None,
        typer.Option(
            "--mask-rate",
            help="Conditioning of a model with time conditioning, if the caller gives none; default: fraction.",
        ),
    ] = None,
    constant_rate: Annotated[
        float | None, typer.Option("--constant-rate", min=0, max=1, help="The rate of --mask-rate constant.")
    ] = None,
) -> None:
    """Export a model to a folder that Hugging Face transformers can load."""
    from ltg_mdlm.interchange.export_model import export_model

    for folder in export_model(
        model, out, weights=weights, revisions=revisions, mask_rate=mask_rate, constant_rate=constant_rate
    ):
        typer.echo(folder)


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder made by `ltg-mdlm export`.")],
    repo: Annotated[str, typer.Option("--repo", metavar="OWNER/NAME", help="Repository on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revisions: Annotated[
        bool,
        typer.Option(
            "--revisions", help="Upload every subfolder of DIR, made by `export --revisions`, to its own branch."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the folders and list the uploads; upload nothing.")
    ] = False,
) -> None:
    """Upload an exported model to the Hugging Face Hub. Log in first with `hf auth login`.

    Creates the repository and its branches if they do not exist, and adds a commit to those that do.
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
        Path, typer.Argument(metavar="FILE", help="Training checkpoint, state dict, or folder of a Hub model.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Run folder to create.")],
    model_config: Annotated[
        Path | None,
        typer.Option(
            "--model-config", metavar="FILE", help="JSON file of the model config; default in a folder: config.json."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FILE", help="Tokenizer JSON; default in a folder: tokenizer.json."),
    ] = None,
    weights: Annotated[
        Literal["ema", "raw"],
        typer.Option("--weights", help="ema: also import averaged weights if the file has them; raw: do not."),
    ] = "ema",
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            metavar="NAME_OR_PATH",
            help="Config it was trained with (repeatable); default: derived from the layout of the weights.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override one setting of the config (repeatable)."),
    ] = None,
) -> None:
    """Import a checkpoint of the published code bases as a run folder that can be evaluated, exported and trained.

    No code in the file is executed. To continue training, on a corpus that was prepared with the same tokenizer:
    `ltg-mdlm train --config RUN/config.yaml --set run.init_from=RUN --set data.corpus=DIR --out NEW`.
    """
    from ltg_mdlm.interchange.import_checkpoint import import_checkpoint

    console = Console(stderr=True)
    with console.status(f"importing {path}") if is_live(console) else nullcontext():
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
    model: ModelPath,
    *,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Folder of files such as rte.train.jsonl or en_ewt-ud-train.conllu, or one of them.",
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="boolq, multirc, mnli, rte, mrpc, qqp, wsc, or of the multilingual track sib200_en, arc_nl, ..., pos"
            " (repeatable); default: all found.",
        ),
    ] = None,
    out: ResultsOut = Path("results"),
    seed: Annotated[
        list[int] | None,
        typer.Option(
            "--seed",
            min=0,
            help="Several seeds give mean and deviation (repeatable); default: the published one, 42 or 12.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a published setting (repeatable): lr, batch_rows, epochs, seq_len, warmup, final_factor,"
            " betas, eps, weight_decay, clip, dropout, head_dropout, pooling, schedule, keep, patience, precision.",
        ),
    ] = None,
    protocol: EvaluationProtocol = "2026",
    weights: Weights = "ema",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Repeat tasks that have results.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune on (Super)GLUE or multilingual tasks with the settings of the BabyLM evaluation, and write its files.

    For several processes, which share the tasks: `torchrun --nproc-per-node 4 -m ltg_mdlm finetune`.
    """
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.evaluation.finetune_suite import TIMEOUT, finetune_suite, finetuning_table
    from ltg_mdlm.inference.trained_model import open_model

    with Ranks.setup(timeout=TIMEOUT) as ranks:
        summaries = finetune_suite(
            open_model(model, ranks, weights=weights),
            data,
            ranks,
            tasks=task or (),
            sets=set_ or (),
            seeds=seed or (),
            out=out,
            protocol=protocol,
            overwrite=overwrite,
            say=lambda text: typer.echo(text, err=True),
        )
        if ranks.is_main and as_json:
            typer.echo(json.dumps(summaries, indent=2))
        elif ranks.is_main:
            print_table(finetuning_table(summaries))
