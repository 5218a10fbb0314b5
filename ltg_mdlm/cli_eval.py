"""`ltg-mdlm eval`: what is measured of trained models, and on what data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from ltg_mdlm.evaluate.suite import Outcome

eval_app = typer.Typer(no_args_is_help=True, help="Measure a trained model.")

ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Run folder (its newest checkpoint), checkpoint, or exported folder.")
]
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
Rate = Annotated[float, typer.Option("--rate", min=0, max=1, help="With --time constant.")]
Draws = Annotated[
    int | None,
    typer.Option("--draws", min=2, help="Masks per text for --score bound, an even number; default: what pll costs."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of these masks.")]
Normalise = Annotated[Literal["none", "tokens"], typer.Option("--normalise", help="tokens: compare scores per token.")]
WeightsOption = Annotated[
    Literal["ema", "raw"], typer.Option("--weights", help="Averaged weights, or those of the last step.")
]
TokensPerBatch = Annotated[
    int | None, typer.Option("--tokens-per-batch", min=1, help="Changes speed and memory only; default: by device.")
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where results lie.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with every figure.")]


@eval_app.command()
def pairs(
    model: ModelPath,
    data: Data,
    score: Score = "auto",
    time: Time = "fraction",
    rate: Rate = 0.15,
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
    from ltg_mdlm.distributed import Ranks
    from ltg_mdlm.evaluate.measure import measure, multiple_choice_tasks
    from ltg_mdlm.evaluate.scoring import scoring_rule
    from ltg_mdlm.evaluate.suite import require_success
    from ltg_mdlm.trained_model import open_model

    settings: dict[str, Any] = {"time": time, "rate": rate, "draws": draws, "seed": seed, "normalise": normalise}
    with Ranks.setup() as ranks:
        trained = open_model(model, ranks, weights=weights)
        rule = scoring_rule(trained, score, tokens_per_batch=tokens_per_batch, **settings)
        outcomes = measure(trained, multiple_choice_tasks(), data, rule, ranks, out)
        if ranks.is_main:
            _show([outcome for outcome in outcomes if outcome.status != "skipped"], as_json, by_uid)
    require_success(outcomes)


@eval_app.command()
def suite(
    model: ModelPath,
    data: Data,
    score: Score = "auto",
    time: Time = "fraction",
    rate: Rate = 0.15,
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
    from ltg_mdlm.distributed import TIMEOUT, Ranks
    from ltg_mdlm.evaluate.measure import all_tasks, measure
    from ltg_mdlm.evaluate.scoring import scoring_rule
    from ltg_mdlm.evaluate.suite import require_success
    from ltg_mdlm.finetune.suite import TIMEOUT as FINETUNING_TIMEOUT
    from ltg_mdlm.finetune.suite import finetune_suite
    from ltg_mdlm.trained_model import open_model

    settings: dict[str, Any] = {"time": time, "rate": rate, "draws": draws, "seed": seed, "normalise": normalise}
    with Ranks.setup(timeout=FINETUNING_TIMEOUT if with_finetuning else TIMEOUT) as ranks:
        trained = open_model(model, ranks, weights=weights)
        rule = scoring_rule(trained, score, tokens_per_batch=tokens_per_batch, **settings)
        finetune = partial(finetune_suite, trained, ranks=ranks, out=out) if with_finetuning else None
        outcomes = measure(trained, all_tasks(trained, rule, ranks, finetune), data, rule, ranks, out, suite_file=True)
        if ranks.is_main:
            _show(outcomes, as_json)
    require_success(outcomes)


def _show(outcomes: Sequence[Outcome], as_json: bool, by_uid: bool = False) -> None:
    from ltg_mdlm.evaluate.suite import breakdown_table, suite_table
    from ltg_mdlm.tables import print_table

    if as_json:
        typer.echo(json.dumps([outcome.to_json() for outcome in outcomes], indent=2))
        return
    if by_uid:
        print_table(breakdown_table(outcomes))
    print_table(suite_table(outcomes))
