"""`ltg-mdlm eval`: evaluate trained models, compare their results, find contaminated evaluation data."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ltg_mdlm.cli.command_classes import CommandApp
from ltg_mdlm.cli.options import (
    AsJson,
    Csv,
    EvaluationProtocol,
    Latex,
    ModelPath,
    ResultsOut,
    Temperature,
    TokensPerBatch,
    TopP,
    Weights,
)
from ltg_mdlm.core.terminal import busy, print_table

if TYPE_CHECKING:
    from ltg_mdlm.evaluation.suite import Outcome

Data = Annotated[
    Path,
    typer.Option("--data", metavar="DIR", help="Folder of evaluation data, laid out as in the official pipelines."),
]

Score = Annotated[
    Literal["auto", "pll", "mntp", "causal", "bound"],
    typer.Option(
        "--score",
        help="pll: masked pseudo-log-likelihood; mntp: the same for models that predict the next token; causal:"
        " causal log-likelihood; bound: diffusion bound; auto: the exact score that fits the training of the model.",
    ),
]

Time = Annotated[
    Literal["zero", "constant", "fraction"],
    typer.Option(
        "--time",
        help="Mask rate given to a model with time conditioning: 0, --rate, or the masked fraction of the row.",
    ),
]

Rate = Annotated[float | None, typer.Option("--rate", min=0, max=1, help="The rate of --time constant.")]

Draws = Annotated[
    int | None,
    typer.Option(
        "--draws", min=2, help="Masks per text for --score bound, an even number; default: about the cost of pll."
    ),
]

Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the masks of --score bound.")]

Normalise = Annotated[
    Literal["none", "tokens"],
    typer.Option("--normalise", help="tokens: compare scores divided by the number of tokens."),
]

eval_app = CommandApp(help="Evaluate trained models.")


@eval_app.command()
def pairs(
    model: ModelPath,
    data: Data,
    score: Score = "auto",
    time: Time = "fraction",
    rate: Rate = None,
    draws: Draws = None,
    seed: Seed = 0,
    normalise: Normalise = "none",
    weights: Weights = "ema",
    tokens_per_batch: TokensPerBatch = None,
    out: ResultsOut = Path("results"),
    protocol: EvaluationProtocol = "2026",
    by_uid: Annotated[bool, typer.Option("--by-uid", help="Also show the accuracy of every paradigm.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score minimal pairs and multiple-choice tasks: BLiMP, its supplement, EWoK, entity tracking, COMPS, GlobalPIQA.

    Writes predictions in the official format, and all scores. For several processes:
    `torchrun --nproc-per-node 4 -m ltg_mdlm eval pairs`.
    """
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.evaluation.multiple_choice import CHOICE_TASKS
    from ltg_mdlm.evaluation.suite import measure, require_success
    from ltg_mdlm.inference.scoring import scoring_rule
    from ltg_mdlm.inference.trained_model import open_model

    settings: dict[str, Any] = {"time": time, "rate": rate, "draws": draws, "seed": seed, "normalise": normalise}
    with Ranks.setup() as ranks:
        trained = open_model(model, ranks, weights=weights)
        rule = scoring_rule(trained, score, tokens_per_batch=tokens_per_batch, **settings)
        outcomes = measure(trained, CHOICE_TASKS[protocol], data, rule, ranks, out, protocol)
        if ranks.is_main:
            _show([outcome for outcome in outcomes if outcome.status != "skipped"], as_json, by_uid)
    require_success(outcomes)


@eval_app.command()
def suite(
    model: ModelPath,
    data: Data,
    score: Score = "auto",
    time: Time = "fraction",
    rate: Rate = None,
    draws: Draws = None,
    seed: Seed = 0,
    normalise: Normalise = "none",
    weights: Weights = "ema",
    tokens_per_batch: TokensPerBatch = None,
    out: ResultsOut = Path("results"),
    protocol: EvaluationProtocol = "2026",
    with_finetuning: Annotated[
        bool, typer.Option("--finetune", help="Also fine-tune on the classification tasks; takes hours.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run all tasks that the data folder has data for. Writes one table and one JSON file; lists skipped tasks.

    For several processes: `torchrun --nproc-per-node 4 -m ltg_mdlm eval suite`.
    """
    from ltg_mdlm.core.distributed import TIMEOUT, Ranks
    from ltg_mdlm.evaluation.finetune_suite import TIMEOUT as FINETUNING_TIMEOUT
    from ltg_mdlm.evaluation.finetune_suite import finetune_suite
    from ltg_mdlm.evaluation.suite import all_tasks, measure, require_success
    from ltg_mdlm.inference.scoring import scoring_rule
    from ltg_mdlm.inference.trained_model import open_model

    settings: dict[str, Any] = {"time": time, "rate": rate, "draws": draws, "seed": seed, "normalise": normalise}
    with Ranks.setup(timeout=FINETUNING_TIMEOUT if with_finetuning else TIMEOUT) as ranks:
        trained = open_model(model, ranks, weights=weights)
        rule = scoring_rule(trained, score, tokens_per_batch=tokens_per_batch, **settings)
        finetune = (
            partial(finetune_suite, trained, ranks=ranks, out=out, protocol=protocol) if with_finetuning else None
        )
        tasks = all_tasks(trained, rule, ranks, protocol, finetune)
        outcomes = measure(trained, tasks, data, rule, ranks, out, protocol, suite_file=True)
        if ranks.is_main:
            _show(outcomes, as_json)
    require_success(outcomes)


@eval_app.command()
def generation(
    model: ModelPath,
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            "--sampler",
            metavar="ancestral|confidence|entropy|block|autoregressive",
            help="Sampler (repeatable); default: ancestral, or autoregressive for a model trained only on causal rows.",
        ),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option("--steps", min=1, help="Steps of the reverse process (repeatable); default: one per token."),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Samples per sampler and number of steps.")] = 100,
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens per sample.")] = 64,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    judge: Annotated[
        Path | None,
        typer.Option(
            "--judge", metavar="MODEL", help="Causal model for perplexity, trained here or loaded by transformers."
        ),
    ] = None,
    mauve: Annotated[
        bool,
        typer.Option("--mauve", help="MAUVE against held-out text, with features of the judge; needs 100 samples."),
    ] = False,
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", metavar="DIR", help="Corpus to compare with; default: the training corpus."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of the samples and of the choice of held-out text.")
    ] = 0,
    weights: Weights = "ema",
    out: ResultsOut = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Evaluate samples: diversity, repetition, similarity to the corpus, perplexity under a judge, grammaticality.

    The table has a line for every sampler and number of steps, and one for held-out text as a reference.
    Grammaticality is measured for models that were trained on the built-in corpus.
    """
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.core.errors import UserError
    from ltg_mdlm.core.files import require_writable
    from ltg_mdlm.evaluation.result_folders import to_json
    from ltg_mdlm.evaluation.sample_quality import examine, quality_folder, quality_table, rules_for, write_quality
    from ltg_mdlm.inference.sampling import default_sampler
    from ltg_mdlm.inference.trained_model import open_model

    with Ranks.setup() as ranks:
        if ranks.world_size > 1:
            raise UserError("eval generation runs in one process: start it without torchrun")
    trained = open_model(model, ranks, weights=weights)
    rules = rules_for(
        sampler or [default_sampler(trained)], steps or (), temperature=temperature, top_p=top_p, seed=seed
    )
    require_writable(quality_folder(out, trained))
    examined = examine(trained, rules, count=count, length=length, judge=judge, corpus=corpus, seed=seed, mauve=mauve)
    write_quality(quality_folder(out, trained), examined)
    if as_json:
        typer.echo(to_json(examined.summary(), indent=2), nl=False)
    else:
        print_table(quality_table(examined))


def _show(outcomes: Sequence[Outcome], as_json: bool, by_uid: bool = False) -> None:
    from ltg_mdlm.evaluation.suite import breakdown_table, suite_table

    if as_json:
        typer.echo(json.dumps([outcome.to_json() for outcome in outcomes], indent=2))
        return
    if by_uid:
        print_table(breakdown_table(outcomes))
    print_table(suite_table(outcomes))


@eval_app.command()
def compare(
    results: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RESULTS...", help="Folders of results, or folders that contain them."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="NAME=PATH,PATH", help="Average the results in these folders (repeatable)."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="NAME", help="Group or model that the others are compared with; default: the first."
        ),
    ] = None,
    by_uid: Annotated[bool, typer.Option("--by-uid", help="Also compare every paradigm (UID).")] = False,
    draws: Annotated[int, typer.Option("--draws", min=100, help="Bootstrap draws and permutations.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of these draws.")] = 0,
    as_json: AsJson = False,
    csv: Csv = None,
    latex: Latex = None,
) -> None:
    """Compare models with a baseline on the same questions: differences, confidence intervals, paired tests.

    Models whose names differ only in `-s<seed>` are averaged. With several comparisons, corrected p-values (Holm)
    are printed, too.
    """
    from ltg_mdlm.core.files import write_errors, write_text
    from ltg_mdlm.evaluation import comparison
    from ltg_mdlm.evaluation.answers import baseline_first, collect_groups
    from ltg_mdlm.evaluation.comparison import comparison_table, explanation
    from ltg_mdlm.reporting.latex_tables import comparison_latex
    from ltg_mdlm.reporting.run_table import write_csv

    groups, others = collect_groups(results or (), group or ())
    if baseline is not None:
        groups = baseline_first(groups, baseline)
    with busy("drawing bootstrap samples and permutations"):
        rows = comparison.compare(groups, by_uid=by_uid, draws=draws, seed=seed)
    records = [row.record() for row in rows]
    _note("no right or wrong answers, not compared", others)
    _note("not compared, since not all models have results", comparison.left_out(groups))
    if csv is not None:
        write_csv(records, csv)
    if latex is not None:
        with write_errors(latex):
            write_text(latex, comparison_latex(rows))
    if as_json:
        typer.echo(json.dumps(records, indent=2))
    else:
        print_table(comparison_table(rows))
        typer.echo(f"\n{explanation(rows)}")


def _note(text: str, what: Sequence[object]) -> None:
    if what:
        print(f"note: {text}: {', '.join(map(str, what))}", file=sys.stderr)


@eval_app.command()
def contamination(
    data: Annotated[Path, typer.Option("--data", metavar="PATH", help="Evaluation file, or a folder of them.")],
    corpus: Annotated[
        Path | None, typer.Option("--corpus", metavar="DIR", help="Corpus folder whose training split is searched.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", metavar="PATH", help="Text file or folder that is searched (repeatable)."),
    ] = None,
    n: Annotated[int, typer.Option("--ngram", min=1, help="Number of consecutive terms of an n-gram.")] = 8,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME", help="Field of the evaluation files that holds text (repeatable)."),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="DIR", help="Compare the accuracy on clean and contaminated questions."),
    ] = None,
    list_: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE.jsonl", help="Write the contaminated texts, most contaminated first."),
    ] = None,
    as_json: AsJson = False,
    csv: Csv = None,
) -> None:
    """Find evaluation texts in the training corpus: complete texts, or shared n-grams."""
    from ltg_mdlm.evaluation.contamination import find_contamination, training_text
    from ltg_mdlm.evaluation.contamination_report import (
        effect_on,
        explanation,
        results_on,
        summary,
        text_table,
        write_worst,
    )
    from ltg_mdlm.evaluation.task_texts import read_task_texts
    from ltg_mdlm.reporting.run_table import write_csv

    found = read_task_texts(data, field or ())
    answered = results_on(found, results or ())
    with training_text(corpus, text or ()) as pieces:
        searched = find_contamination(found, pieces, n)
    _note("no text in these files, not searched", found.skipped)
    records = summary(searched)
    effects = [effect_on(name, answers, searched)._asdict() for name, answers in answered]
    if list_ is not None:
        write_worst(searched, list_)
    if csv is not None:
        write_csv(records, csv)
    if as_json:
        facts = {"n": n, "corpus_words": searched.corpus_words, "texts": records, "effects": effects}
        typer.echo(json.dumps(facts, indent=2))
        return
    print_table(text_table(records))
    typer.echo(f"\n{explanation(searched)}")
    if effects:
        typer.echo()
        print_table(text_table(effects))
