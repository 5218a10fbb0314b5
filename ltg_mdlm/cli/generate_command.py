"""`ltg-mdlm generate`: texts from a trained model.

Samples for people and for programs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from ltg_mdlm.cli.options import ModelPath, Temperature, TokensPerBatch, TopP, WeightsOption

if TYPE_CHECKING:
    from ltg_mdlm.data.tokenizer import Tokenizer
    from ltg_mdlm.inference.sampling import Sample
    from ltg_mdlm.inference.sampling_rule import SamplingRule
    from ltg_mdlm.inference.trained_model import TrainedModel

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
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.core.errors import UserError
    from ltg_mdlm.inference.sampling import default_sampler
    from ltg_mdlm.inference.sampling import generate as draw
    from ltg_mdlm.inference.sampling_rule import SamplingRule
    from ltg_mdlm.inference.trained_model import open_model

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


_BAR = 40


def sample_record(sample: Sample, number: int, trained: TrainedModel, rule: SamplingRule) -> dict[str, Any]:
    """What `--json` says of a sample."""
    return {
        "model": trained.name,
        "sample": number,
        "text": sample.text,
        "ids": sample.ids,
        "tokens": [trained.tokenizer.tokens[token] for token in sample.ids],
        "unmasked_at": sample.unmasked_at,
        "ended": sample.ended,
        "forward_passes": sample.passes,
        "rule": rule.to_json(),
    }


def print_samples(samples: Sequence[Sample], tokenizer: Tokenizer, *, order: bool) -> None:
    """The texts, with a blank line between them; `order`: each with the picture of how it came about."""
    console = Console(highlight=False)
    for number, sample in enumerate(samples):
        if number:
            console.print()
        console.print(shown(sample, tokenizer), soft_wrap=True)
        if order:
            console.print(order_picture(sample, tokenizer), soft_wrap=True)


def shown(sample: Sample, tokenizer: Tokenizer) -> Text:
    """The text, given tokens dim."""
    text, start = Text(sample.text), 0
    for given, group in groupby(sample.unmasked_at, key=lambda place: place < 0):
        stop = start + len(list(group))
        if given:
            # Not token by token: decoding changes blanks by what stands before them.
            begin, end = (len(tokenizer.decode(sample.ids[:place])) for place in (start, stop))
            text.stylize("dim", begin, end)
        start = stop
    return text


def order_picture(sample: Sample, tokenizer: Tokenizer) -> Text:
    """A line per token, top to bottom as in the text: its pass as a number and as a bar; given tokens have none."""
    last = max(sample.unmasked_at, default=0)
    tokens = [repr(tokenizer.tokens[token])[1:-1].replace(" ", "·") for token in sample.ids]
    width = max(map(len, tokens), default=0)
    digits = len(str(last))
    picture = Text()
    for token, place in zip(tokens, sample.unmasked_at, strict=True):
        if place < 0:
            picture.append(f"{token:>{width}}  {'given':>{digits}}\n", style="dim")
        else:
            bar = "█" * (1 + place * (_BAR - 1) // max(last, 1))
            picture.append(f"{token:>{width}}  {place:>{digits}} {bar}\n")
    picture.rstrip()
    return picture
