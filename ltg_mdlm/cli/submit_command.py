"""`ltg-mdlm submit`: everything that a submission to BabyLM needs, from a trained run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from ltg_mdlm.cli.eval_commands import Rate, Time
from ltg_mdlm.cli.options import TokensPerBatch, Weights


def submit(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder with chck_* checkpoints, or export with --revisions.")
    ],
    track: Annotated[
        Literal["strict", "strict-small", "multilingual"], typer.Option("--track", help="Track of BabyLM.")
    ],
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Folder that `ltg-mdlm eval download --out DIR` filled.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The collated JSON file.")],
    results: Annotated[
        Path, typer.Option("--results", metavar="DIR", help="Folder of results; finished ones are not repeated.")
    ] = Path("results"),
    score: Annotated[
        Literal["auto", "pll", "mntp", "causal"],
        typer.Option("--score", help="As in `eval suite`; auto: the exact score that fits the training of the model."),
    ] = "auto",
    time: Time = "fraction",
    rate: Rate = None,
    weights: Weights = "ema",
    tokens_per_batch: TokensPerBatch = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of fine-tuning (repeatable), as in `finetune`."),
    ] = None,
    collate_only: Annotated[
        bool, typer.Option("--collate-only", help="Evaluate nothing; collate the results that there are.")
    ] = False,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Compare sizes with the data in --data, not with those of the published data."),
    ] = False,
    array: Annotated[
        bool,
        typer.Option("--array/--no-array", help="In a Slurm array, share the work with the other tasks of the array."),
    ] = True,
) -> None:
    """Evaluate a run for a submission to BabyLM, and collate its predictions in the official JSON file.

    Scores the fast tasks with every chck_* checkpoint and the full tasks with the last one, fine-tunes, and computes
    the age of acquisition. The same command resumes after a kill, task by task and checkpoint by checkpoint. Lists
    what is missing.

    Several processes share the work: `torchrun --nproc-per-node 4 -m ltg_mdlm submit ...`, a Slurm array, or both.
    """
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.core.errors import UserError
    from ltg_mdlm.core.files import require_writable
    from ltg_mdlm.evaluation.age_of_acquisition import words_seen_by
    from ltg_mdlm.evaluation.finetune_suite import TIMEOUT
    from ltg_mdlm.evaluation.result_folders import BACKENDS
    from ltg_mdlm.evaluation.submission import (
        EvaluationData,
        backend_of,
        checkpoint_folder,
        collate,
        published_sizes,
        sizes_of,
    )
    from ltg_mdlm.evaluation.submission_work import SubmissionWork, Worker, one_at_a_time
    from ltg_mdlm.inference.scoring import scoring_rule
    from ltg_mdlm.inference.trained_model import model_name, open_model

    if track == "multilingual":
        raise UserError(
            "--track multilingual: a submission to this track cannot be collated here, because its zero-shot tasks are"
            " those of lm-eval"
            "\n  evaluate with `ltg-mdlm eval harness` and `ltg-mdlm finetune`, and collate with the official scripts"
        )
    evaluation_data = EvaluationData(data)
    require_writable(out)
    folder = results / model_name(run)

    def write_collated(backend: str) -> None:
        sizes = sizes_of(evaluation_data) if partial else published_sizes()
        checkpoints = None
        if run.exists():
            checkpoints = [path.name for path in checkpoint_folder(run).glob("chck_*") if words_seen_by(path.name)]
        collated = collate(folder, backend, track, evaluation_data, sizes, checkpoints=checkpoints)
        collated.write(out)
        typer.echo(out)
        typer.echo("\n  ".join(["missing:", *collated.lines()]) if collated.missing else "complete")

    if collate_only:
        write_collated(backend_of(folder) if score == "auto" else BACKENDS[score])
        return
    with Ranks.setup(timeout=TIMEOUT) as ranks:
        trained = open_model(run, ranks, weights=weights)
        rule = scoring_rule(trained, score, time=time, rate=rate, tokens_per_batch=tokens_per_batch)
        work = SubmissionWork(trained, rule, ranks, track, evaluation_data, results, sets=set_ or ())
        worker = Worker.here(ranks, array=array)
        say = _say(f"worker {worker.index + 1} of {worker.count}: " if worker.count > 1 else "")
        failed = [line for each in ranks.gather_objects(work.run(worker, say)) for line in each]
        if ranks.is_main:
            pending = work.pending()
            if worker.count > ranks.world_size and len(pending) > len(failed):
                say(
                    f"{len(pending)} of {len(work.jobs)} jobs are left to the tasks of the array; the last one collates"
                )
            else:
                with one_at_a_time(work.folder):
                    work.combine_ages()
                    write_collated(BACKENDS[rule.score])
    if failed:
        raise UserError("\nerror: ".join(failed))


def _say(prefix: str) -> Callable[[str], None]:
    return lambda text: print(f"{prefix}{text}", file=sys.stderr, flush=True)
