"""`ltg-mdlm generate`: texts from a trained model."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from ltg_mdlm.cli_options import ModelPath, Temperature, TokensPerBatch, TopP, WeightsOption

Prompt = Annotated[
    str | None, typer.Option("--prompt", metavar="TEXT", help="What the text begins with; kept as it is.")
]
Infill = Annotated[
    str | None,
    typer.Option("--infill", metavar="TEXT", help="A text with a `<mask>` for every token to draw; the rest is kept."),
]
Length = Annotated[int | None, typer.Option("--length", min=1, help="Tokens to draw; default 64, or as many as fit.")]
SamplerOption = Annotated[
    Literal["auto", "ancestral", "confidence", "entropy", "block", "autoregressive"],
    typer.Option(
        "--sampler",
        help="ancestral: the reverse diffusion; confidence, entropy: the surest tokens first; block: the same in"
        " blocks from left to right; autoregressive: for models with causal rows; auto: the first one that fits.",
    ),
]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="From all masked to nothing masked; default: one per token.")
]
ScheduleOption = Annotated[
    Literal["linear", "trained"] | None,
    typer.Option("--schedule", help="Mask rates of the steps: equally spaced (default), or the run's schedule."),
]
BlockLength = Annotated[
    int | None, typer.Option("--block-length", min=1, help="Tokens per block of --sampler block; default 32.")
]
EtaCap = Annotated[
    float | None,
    typer.Option("--eta-cap", min=0, max=1, help="Remask (ReMDM-cap): largest probability per step of ancestral."),
]
EtaRescale = Annotated[
    float | None,
    typer.Option("--eta-rescale", min=0, max=1, help="Remask (ReMDM-rescale): share of what keeps the mask rates."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Sample i of a seed is the same for any --count.")]
Count = Annotated[int, typer.Option("--count", min=1, help="Samples to draw.")]
ShowOrder = Annotated[bool, typer.Option("--show-order", help="Show the order in which tokens were drawn.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per sample.")]


def generate(
    model: ModelPath,
    *,
    prompt: Prompt = None,
    infill: Infill = None,
    length: Length = None,
    sampler: SamplerOption = "auto",
    steps: Steps = None,
    schedule: ScheduleOption = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    block_length: BlockLength = None,
    eta_cap: EtaCap = None,
    eta_rescale: EtaRescale = None,
    seed: Seed = 0,
    count: Count = 1,
    weights: WeightsOption = "ema",
    tokens_per_batch: TokensPerBatch = None,
    show_order: ShowOrder = False,
    as_json: AsJson = False,
) -> None:
    """Draw texts from a trained model, by masked diffusion or from left to right.

    Under torchrun, the processes share the samples: `torchrun --nproc-per-node 4 -m ltg_mdlm generate ...`.
    """
    from ltg_mdlm.distributed import Ranks
    from ltg_mdlm.errors import UserError
    from ltg_mdlm.generate import SamplingRule
    from ltg_mdlm.generate import generate as draw
    from ltg_mdlm.generate.sampling import default_sampler
    from ltg_mdlm.generate.show import print_samples, sample_record
    from ltg_mdlm.trained_model import open_model

    if as_json and show_order:
        raise UserError("--json tells the order anyway (unmasked_at): leave --show-order out")
    with Ranks.setup() as ranks:
        trained = open_model(model, ranks, weights=weights)
        rule = SamplingRule(
            sampler=default_sampler(trained) if sampler == "auto" else sampler,
            steps=steps,
            schedule=schedule,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            block_length=block_length,
            eta_cap=eta_cap,
            eta_rescale=eta_rescale,
        )
        samples = draw(
            trained,
            rule,
            prompt=prompt,
            infill=infill,
            length=length,
            count=count,
            tokens_per_batch=tokens_per_batch,
            ranks=ranks,
            progress=True,
        )
        if not ranks.is_main:
            return
    if as_json:
        for number, sample in enumerate(samples):
            typer.echo(json.dumps(sample_record(sample, number, trained, rule)))
    else:
        print_samples(samples, trained.tokenizer, order=show_order)
