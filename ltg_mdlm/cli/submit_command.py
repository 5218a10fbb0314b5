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
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder that `ltg-mdlm eval download --out DIR` filled; multilingual: the folder `multilingual` of the"
            " official pipeline.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PATH", help="The collated JSON file; multilingual: a folder for both files."),
    ],
    language: Annotated[
        list[str] | None,
        typer.Option(
            "--language", metavar="NAME", help="Multilingual: eng, nld or zho (repeatable); default: all three."
        ),
    ] = None,
    results: Annotated[
        Path, typer.Option("--results", metavar="DIR", help="Folder of results; finished ones are not repeated.")
    ] = Path("results"),
    score: Annotated[
        Literal["auto", "pll", "mntp", "causal", "bound"],
        typer.Option(
            "--score",
            help="As in `eval suite`; auto: the exact score that fits the training of the model; bound: multilingual"
            " only.",
        ),
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
    no_array: Annotated[
        bool,
        typer.Option("--no-array", help="Do not share the work with the other tasks of a Slurm array."),
    ] = False,
    array: Annotated[bool, typer.Option("--array", hidden=True, help="The default.")] = False,
) -> None:
    """Evaluate a run for a submission to BabyLM, and collate its predictions in the official JSON file.

    Scores the fast tasks with every chck_* checkpoint and the full tasks with the last one, fine-tunes, and computes
    the age of acquisition. In the track multilingual, the tasks are those of lm-eval, MECO and fine-tuning.

    The same command resumes after a kill, task by task and checkpoint by checkpoint. Lists what is missing.

    Several processes share the work: `torchrun --nproc-per-node 4 -m ltg_mdlm submit ...`, a Slurm array, or both.
    """
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.core.errors import UserError
    from ltg_mdlm.core.files import require_writable, write_errors, write_text
    from ltg_mdlm.evaluation.age_of_acquisition import words_seen_by
    from ltg_mdlm.evaluation.finetune_suite import TIMEOUT
    from ltg_mdlm.evaluation.multilingual_submission import LANGUAGES, MultilingualData, collate_multilingual, to_text
    from ltg_mdlm.evaluation.multilingual_work import MultilingualWork
    from ltg_mdlm.evaluation.result_folders import BACKENDS
    from ltg_mdlm.evaluation.submission import (
        EvaluationData,
        backend_of,
        checkpoint_folder,
        collate,
        lines_of,
        published_sizes,
        revisions_of,
        sizes_of,
    )
    from ltg_mdlm.evaluation.submission_work import StrictWork, SubmissionWork, Worker, one_at_a_time
    from ltg_mdlm.inference.scoring import scoring_rule
    from ltg_mdlm.inference.trained_model import model_name, open_model

    name = model_name(run)
    folder = results / name
    if unknown := [given for given in language or () if given not in LANGUAGES]:
        raise UserError(f"--language {unknown[0]}: no such language; there are {', '.join(LANGUAGES)}")
    languages = [known for known in LANGUAGES if known in (language or LANGUAGES)]
    evaluation_data: EvaluationData | MultilingualData
    if track == "multilingual":
        if partial:
            raise UserError("--partial: parts of this track may always be missing; leave it out")
        evaluation_data = MultilingualData(data)
        if out.is_file():
            raise UserError(f"--out {out}: is a file; the track multilingual has two files, so give a folder")
    else:
        if language or score == "bound":
            option = "--language" if language else "--score bound"
            raise UserError(f"{option}: only the track multilingual has this option; leave it out")
        if out.is_dir():
            raise UserError(f"--out {out}: is a folder; this track has one file, so give a file such as {name}.json")
        evaluation_data = EvaluationData(data)
    require_writable(out, inside=track == "multilingual")

    def write_collated(backend: str) -> None:
        checkpoints = None
        if run.exists():
            checkpoints = [path.name for path in checkpoint_folder(run).glob("chck_*") if words_seen_by(path.name)]
        if isinstance(evaluation_data, MultilingualData):
            both = collate_multilingual(folder, backend, evaluation_data, languages, checkpoints=checkpoints)
            missing = both.missing
            texts = {"submission": both.submission, "predictions": both.predictions}
            with write_errors(out, "; choose another --out"):
                out.mkdir(parents=True, exist_ok=True)
                for kind, content in texts.items():
                    file = out / f"{name}_{kind}.json"
                    write_text(file, to_text(content))
                    typer.echo(file)
        else:
            sizes = sizes_of(evaluation_data) if partial else published_sizes()
            collated = collate(folder, backend, track, evaluation_data, sizes, checkpoints=checkpoints)
            missing = collated.missing
            collated.write(out)
            typer.echo(out)
        typer.echo("\n  ".join(["missing:", *lines_of(missing)]) if missing else "complete")

    if collate_only:
        write_collated(backend_of(folder, track) if score == "auto" else BACKENDS[score])
        return
    with Ranks.setup(timeout=TIMEOUT) as ranks:
        trained = open_model(run, ranks, weights=weights)
        rule = scoring_rule(trained, score, time=time, rate=rate, tokens_per_batch=tokens_per_batch)
        common = (trained, rule, ranks, revisions_of(track), results)
        work: SubmissionWork
        if isinstance(evaluation_data, MultilingualData):
            work = MultilingualWork(*common, sets=set_ or (), data=evaluation_data, languages=languages)
        else:
            work = StrictWork(*common, sets=set_ or (), data=evaluation_data)
        worker = Worker.here(ranks, array=array or not no_array)
        say = _say(f"worker {worker.index + 1} of {worker.count}: " if worker.count > 1 else "")
        failed = [line for each in ranks.gather_objects(work.run(worker, say)) for line in each]
        if ranks.is_main:
            # Other tasks of an array may be at work, and nobody knows which one ends last: the last to collate has all.
            if worker.count > ranks.world_size and (pending := work.pending()):
                say(f"{len(pending)} of {len(work.jobs)} jobs have no result yet; collating what there is")
            with one_at_a_time(work.folder):
                try:
                    work.combine()
                except UserError as error:
                    failed.append(str(error))
                write_collated(BACKENDS[rule.score])
    if failed:
        raise UserError("\nerror: ".join(failed))


def _say(prefix: str) -> Callable[[str], None]:
    return lambda text: print(f"{prefix}{text}", file=sys.stderr, flush=True)
