"""`ltg-mdlm eval`: what is measured of trained models, and on what data."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ltg_mdlm.cli.options import ModelPath, Temperature, TokensPerBatch, TopP, WeightsOption
from ltg_mdlm.cli.options import ResultsOut as Out

if TYPE_CHECKING:
    from ltg_mdlm.evaluation.suite import Outcome


eval_app = typer.Typer(no_args_is_help=True, help="Measure a trained model.")


Data = Annotated[
    Path, typer.Option("--data", metavar="DIR", help="Evaluation data, as the official pipelines have them.")
]


Score = Annotated[
    Literal["auto", "pll", "mntp", "causal", "bound"],
    typer.Option(
        "--score",
        help="Masked pseudo-log-likelihood (pll; mntp for models that predict the next token), causal log-likelihood,"
        " or the diffusion bound; auto: what fits the model's training.",
    ),
]


Time = Annotated[
    Literal["zero", "constant", "fraction"],
    typer.Option(
        "--time",
        help="The mask rate that a conditioned model is told: 0, --rate, or the masked share of the row.",
    ),
]


Rate = Annotated[float | None, typer.Option("--rate", min=0, max=1, help="The rate of --time constant.")]


Draws = Annotated[
    int | None,
    typer.Option("--draws", min=2, help="Masks per text for --score bound, an even number; default: what pll costs."),
]


Seed = Annotated[int, typer.Option("--seed", min=0, help="Of these masks.")]


Normalise = Annotated[Literal["none", "tokens"], typer.Option("--normalise", help="tokens: compare scores per token.")]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with every figure.")]


Csv = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Write the table, with every figure, to a file, too.")
]


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
    weights: WeightsOption = "ema",
    tokens_per_batch: TokensPerBatch = None,
    out: Out = Path("results"),
    by_uid: Annotated[bool, typer.Option("--by-uid", help="Show every paradigm, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score minimal pairs and multiple choice: BLiMP and its supplement, EWoK, entity tracking, COMPS.

    Writes the official predictions and every score. Under torchrun, the processes share the texts:
    `torchrun --nproc-per-node 4 -m ltg_mdlm eval pairs ...`.
    """
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.evaluation.multiple_choice import TASKS
    from ltg_mdlm.evaluation.suite import measure, require_success
    from ltg_mdlm.inference.scoring import scoring_rule
    from ltg_mdlm.inference.trained_model import open_model

    settings: dict[str, Any] = {"time": time, "rate": rate, "draws": draws, "seed": seed, "normalise": normalise}
    with Ranks.setup() as ranks:
        trained = open_model(model, ranks, weights=weights)
        rule = scoring_rule(trained, score, tokens_per_batch=tokens_per_batch, **settings)
        outcomes = measure(trained, TASKS, data, rule, ranks, out)
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
    weights: WeightsOption = "ema",
    tokens_per_batch: TokensPerBatch = None,
    out: Out = Path("results"),
    with_finetuning: Annotated[
        bool, typer.Option("--finetune", help="Fine-tune on the classification tasks, too; takes hours.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run every task that there is data for, and say what was skipped and why: one table, one JSON file.

    Under torchrun, the processes share the texts of every task:
    `torchrun --nproc-per-node 4 -m ltg_mdlm eval suite ...`.
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
        finetune = partial(finetune_suite, trained, ranks=ranks, out=out) if with_finetuning else None
        outcomes = measure(trained, all_tasks(trained, rule, ranks, finetune), data, rule, ranks, out, suite_file=True)
        if ranks.is_main:
            _show(outcomes, as_json)
    require_success(outcomes)


Samplers = Annotated[
    list[str] | None,
    typer.Option(
        "--sampler",
        metavar="ancestral|confidence|entropy|block|autoregressive",
        help="Repeatable; default: ancestral, or autoregressive for a model that saw causal rows only.",
    ),
]


StepCounts = Annotated[
    list[int] | None, typer.Option("--steps", min=1, help="Repeatable; default: one step per token.")
]


SampleCount = Annotated[int, typer.Option("--count", min=1, help="Samples for each sampler and number of steps.")]


SampleLength = Annotated[int, typer.Option("--length", min=1, help="Tokens of a sample.")]


JudgePath = Annotated[
    Path | None,
    typer.Option("--judge", metavar="MODEL", help="Causal model for perplexity: of this trainer or transformers."),
]


MauveOption = Annotated[
    bool, typer.Option("--mauve", help="Likeness to real text, as the judge reads both; takes 100 samples or more.")
]


CorpusPath = Annotated[
    Path | None, typer.Option("--corpus", metavar="DIR", help="Corpus to compare with; default: the run's own.")
]


SamplingSeed = Annotated[int, typer.Option("--seed", min=0, help="Of the samples, and of the choice of real text.")]


@eval_app.command()
def generation(
    model: ModelPath,
    sampler: Samplers = None,
    steps: StepCounts = None,
    count: SampleCount = 100,
    length: SampleLength = 64,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    judge: JudgePath = None,
    mauve: MauveOption = False,
    corpus: CorpusPath = None,
    seed: SamplingSeed = 0,
    weights: WeightsOption = "ema",
    out: Out = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Measure samples: variety, repetition, likeness to the corpus; perplexity under a judge; what the grammar accepts.

    One line for each sampler and number of steps, and one of real held-out text, by which the others can be read.
    Models that were trained on the built-in corpus are also measured by its grammar.
    """
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.core.errors import UserError
    from ltg_mdlm.core.files import require_writable
    from ltg_mdlm.core.terminal import print_table
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
    from ltg_mdlm.core.terminal import print_table
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
        list[Path] | None, typer.Argument(metavar="RESULTS...", help="Folders of results, or folders above some.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="NAME=PATH,PATH", help="Average the models in these folders (repeatable)."),
    ] = None,
    by_uid: Annotated[bool, typer.Option("--by-uid", help="Compare each uid (paradigm), too.")] = False,
    draws: Annotated[int, typer.Option("--draws", min=100, help="Of the bootstrap and of the permutations.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of these draws.")] = 0,
    as_json: AsJson = False,
    csv: Csv = None,
) -> None:
    """Compare models on the same questions with the first one: differences, intervals, paired tests.

    Models whose names are equal up to -s<seed> are averaged. With several comparisons, p-values are also
    corrected for their number (Holm).
    """
    from ltg_mdlm.core.terminal import print_table
    from ltg_mdlm.evaluation import comparison
    from ltg_mdlm.evaluation.answers import collect_groups
    from ltg_mdlm.evaluation.comparison import comparison_table, explanation
    from ltg_mdlm.reporting.run_table import write_csv

    groups, others = collect_groups(results or (), group or ())
    rows = comparison.compare(groups, by_uid=by_uid, draws=draws, seed=seed)
    records = [row.record() for row in rows]
    _note("no right or wrong answers, not compared", others)
    _note("not compared, since not all models have results", comparison.left_out(groups))
    if csv is not None:
        write_csv(records, csv)
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
    data: Annotated[Path, typer.Option("--data", metavar="PATH", help="Evaluation files: a file, or a folder above.")],
    corpus: Annotated[
        Path | None, typer.Option("--corpus", metavar="DIR", help="Corpus folder; its training split is searched.")
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option("--text", metavar="PATH", help="Text file or folder to search (repeatable).")
    ] = None,
    n: Annotated[int, typer.Option("--ngram", min=1, help="Words of an n-gram.")] = 8,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME", help="Field of the files that holds text (repeatable)."),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="DIR", help="Compare accuracy on clean and contaminated questions."),
    ] = None,
    list_: Annotated[
        Path | None, typer.Option("--list", metavar="FILE.jsonl", help="Write the contaminated texts, worst first.")
    ] = None,
    as_json: AsJson = False,
    csv: Csv = None,
) -> None:
    """Find evaluation texts in the training corpus: whole, or n words that stand there one after another."""
    from ltg_mdlm.core.terminal import print_table
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
