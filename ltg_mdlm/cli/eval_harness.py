"""`ltg-mdlm eval harness` and `eval download`: lm-eval's evaluator, and the data of the BabyLM evaluation."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from ltg_mdlm.cli.eval_commands import Draws, Rate, Score, Time
from ltg_mdlm.cli.options import AsJson, ModelPath, ResultsOut, TokensPerBatch, Weights
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.terminal import print_table

_REFUSED = {
    "model": "give MODEL as the first argument",
    "model_args": "use the options of this command",
    "batch_size": "use --tokens-per-batch",
    "max_batch_size": "use --tokens-per-batch",
    "device": "CUDA_VISIBLE_DEVICES chooses the device",
    "gen_kwargs": "tasks that generate text are not supported",
    "apply_chat_template": "these models have no chat template",
    "fewshot_as_multiturn": "these models have no chat template",
    "output_path": "use --out",
    "show_config": "the results file has the settings of every task",
    "verbosity": "set the environment variable LMEVAL_LOG_LEVEL",
    "wandb_args": "results are only written to files",
    "wandb_config_args": "results are only written to files",
    "trackio_args": "results are only written to files",
    "hf_hub_log_args": "results are only written to files",
}
"""Options of `lm-eval run` that would have no effect here, and what to do instead."""

_NO_OUTPUT = "results"
"""Stands for --output_path, without which lm-eval refuses --log_samples; the results are written here, not by it."""


def harness(
    ctx: typer.Context,
    model: ModelPath,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks", metavar="NAMES...", help="Tasks, groups or YAML files; `lm-eval ls tasks` lists the names."
        ),
    ] = None,
    score: Score = "auto",
    time: Time = "fraction",
    rate: Rate = None,
    draws: Draws = None,
    mask_seed: Annotated[int, typer.Option("--mask-seed", min=0, help="Seed of the masks of --score bound.")] = 0,
    weights: Weights = "ema",
    tokens_per_batch: TokensPerBatch = None,
    out: ResultsOut = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Evaluate on tasks of lm-eval, the LM Evaluation Harness. MODEL comes first.

    All options that are not listed here are those of `lm-eval run`, such as `--include_path`, `--num_fewshot`,
    `--limit`, `--log_samples` and `--use_cache`; see `lm-eval run --help`. Texts have one `<s>` in front, as in the
    multilingual track of BabyLM.

    For several processes: `torchrun --nproc-per-node 4 -m ltg_mdlm eval harness`.
    """
    if str(model).startswith("-"):
        raise UserError(f"{model}: MODEL must be the first argument\n  ltg-mdlm eval harness MODEL --tasks NAMES...")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from lm_eval._cli.run import Run  # noqa: F401 - older versions do not have it
        from lm_eval.utils import handle_non_serializable, setup_logging
    except ImportError:
        raise UserError('eval harness needs lm-eval 0.4.13 or later\n  pip install "ltg-mdlm[harness]"') from None
    setup_logging(logging.WARNING)

    from lm_eval.evaluator import simple_evaluate

    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.core.files import require_writable
    from ltg_mdlm.evaluation.lm_eval_adapter import (
        HarnessModel,
        load_tasks,
        require_supported,
        results_table,
        task_tokenizer,
        write_results,
    )
    from ltg_mdlm.evaluation.result_folders import BACKENDS, model_folder
    from ltg_mdlm.inference.scoring import require_fit, scoring_rule
    from ltg_mdlm.inference.trained_model import open_model

    settings = lm_eval_settings([*(["--tasks", *tasks] if tasks else []), *ctx.args])
    with Ranks.setup() as ranks:
        if settings.use_cache and ranks.world_size > 1:
            raise UserError("--use_cache: works in one process only; leave it out or start without torchrun")
        trained = open_model(model, ranks, weights=weights)
        rule = scoring_rule(
            trained, score, time=time, rate=rate, draws=draws, seed=mask_seed, tokens_per_batch=tokens_per_batch
        )
        require_fit(trained, rule)
        folder = model_folder(out, trained) / "harness" / BACKENDS[rule.score]
        require_writable(folder, inside=True)
        if ranks.is_main:
            typer.echo("reading the list of tasks and their data; lm-eval needs several seconds", err=True)
        task_manager, loaded = load_tasks(settings)
        greedy_tasks = require_supported(loaded["tasks"], rule)
        inner = set(chain.from_iterable(loaded["group_map"].values()))
        outermost = [item for kind in ("groups", "tasks") for name, item in loaded[kind].items() if name not in inner]
        cache, seeds = settings.cache_requests, settings.seed or [None] * 4
        # lm-eval's cache finds answers by the texts only, whatever task, model and score they come from.
        scored = HarnessModel(trained, rule, ranks, greedy_tasks=None if settings.use_cache else greedy_tasks)
        if settings.use_cache:
            settings.use_cache += f"_{scored.fingerprint()}"
        with redirect_stdout(sys.stderr), task_tokenizer(trained):  # standard output is for the results
            results = simple_evaluate(
                scored,
                tasks=outermost,
                num_fewshot=settings.num_fewshot,
                use_cache=settings.use_cache,
                cache_requests=cache.get("cache_requests", False),
                rewrite_requests_cache=cache.get("rewrite_requests_cache", False),
                delete_requests_cache=cache.get("delete_requests_cache", False),
                limit=settings.limit,
                samples=settings.samples,
                check_integrity=settings.check_integrity,
                write_out=settings.write_out,
                log_samples=settings.log_samples,
                system_instruction=settings.system_instruction,
                task_manager=task_manager,
                predict_only=settings.predict_only,
                random_seed=seeds[0],
                numpy_random_seed=seeds[1],
                torch_random_seed=seeds[2],
                fewshot_random_seed=seeds[3],
                confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
                metadata=settings.metadata,
            )
        if not ranks.is_main:
            return
    assert results is not None
    file = write_results(folder, results)
    if as_json:
        shown = {name: results[name] for name in ("results", "n-shot", "n-samples")}
        typer.echo(json.dumps(shown, indent=2, default=handle_non_serializable))
    else:
        print_table(results_table(results))
        typer.echo(f"\nwritten to {file}")


def lm_eval_settings(options: Sequence[str]) -> Any:
    """The options of `lm-eval run` as lm-eval's `EvaluatorConfig`.

    Raises UserError for options that lm-eval does not have, or that have no effect here.
    """
    from lm_eval._cli.run import Run
    from lm_eval.config.evaluate_config import EvaluatorConfig

    parser = argparse.ArgumentParser()
    Run.create(parser.add_subparsers())
    with redirect_stderr(StringIO()) as complaint:
        try:
            given = parser.parse_args(["run", *options])
        except SystemExit:
            problem = complaint.getvalue().strip().rpartition("error: ")[2]
            raise UserError(f"{problem}\n  see ltg-mdlm eval harness --help and lm-eval run --help") from None
    given.output_path = given.output_path or _NO_OUTPUT
    try:
        with redirect_stdout(sys.stderr):  # lm-eval prints the settings of --config
            settings = EvaluatorConfig.from_cli(given)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"lm-eval refuses its options: {error}\n  see lm-eval run --help") from None
    default = EvaluatorConfig(output_path=_NO_OUTPUT)
    for name, advice in _REFUSED.items():
        if getattr(settings, name) != getattr(default, name):
            raise UserError(f"--{name}: has no effect in eval harness; {advice}")
    if not settings.tasks:
        raise UserError("no tasks\n  add --tasks NAMES...; `lm-eval ls tasks` lists the names")
    return settings


def download(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAMES...",
            help="strict (all of the strict tracks but the next), global_piqa_parallel, global_piqa_nonparallel, ewok;"
            " default: all, ewok only with --ewok-vocabulary.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder in which `evaluation_data` is created.")
    ] = Path("."),
    ewok_vocabulary: Annotated[
        Path | None,
        typer.Option(
            "--ewok-vocabulary",
            metavar="FILE",
            help="Words that EWoK items may contain: `evaluation_pipeline/ewok/vocab.txt` of the official pipeline.",
        ),
    ] = None,
) -> None:
    """Download the data of the BabyLM evaluation from the Hugging Face Hub, in the layout of the official pipeline.

    Needs no account, except for EWoK, whose conditions must be accepted first. An interrupted download is resumed.
    """
    from ltg_mdlm.evaluation.download import FAST, FULL, Dataset
    from ltg_mdlm.evaluation.download import download as fetch

    def say(dataset: Dataset) -> None:
        typer.echo(f"{dataset.name:<24} {', '.join(str(out / folder) for folder in dataset.folders)}")

    fetch(names or (), out, ewok_vocabulary=ewok_vocabulary, done=say)
    typer.echo(f"\nuse it with --data {out / FULL}, or --data {out / FAST} for the fast evaluation")
