"""`ltg-mdlm generate`: sample texts from a trained model and print them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from ltg_mdlm.cli.options import ModelPath, Temperature, TokensPerBatch, TopP, Weights
from ltg_mdlm.core.errors import UserError

if TYPE_CHECKING:
    from ltg_mdlm.data.tokenizer import Tokenizer
    from ltg_mdlm.inference.sampling import Sample

Prompt = Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Beginning of the text; kept unchanged.")]

Infill = Annotated[
    str | None,
    typer.Option("--infill", metavar="TEXT", help="Text with a `<mask>` for every token to sample; the rest is kept."),
]

Length = Annotated[
    int | None, typer.Option("--length", min=1, help="Tokens to sample; default: 64, or as many as fit.")
]

Sampler = Annotated[
    str,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help="ancestral: reverse diffusion; confidence, entropy: the most certain tokens first; block: the same in"
        " blocks from left to right; autoregressive: for models with causal rows; auto: ancestral, or autoregressive"
        " for a model trained only on causal rows; or an unmasking order of a plugin (--plugin).",
    ),
]

OrderPlugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="NAME", help="Plugin whose unmasking orders --sampler can name (repeatable)."),
]

OrderOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Option of such a plugin, `plugins.NAME.OPTION` (repeatable)."
    ),
]

Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Steps of the reverse process; default: one per token.")
]

Schedule = Annotated[
    Literal["linear", "trained"] | None,
    typer.Option("--schedule", help="Mask rates of the steps: equally spaced (default), or the schedule of the run."),
]

BlockLength = Annotated[
    int | None, typer.Option("--block-length", min=1, help="Tokens per block of --sampler block; default: 32.")
]

EtaCap = Annotated[
    float | None,
    typer.Option(
        "--eta-cap", min=0, max=1, help="Remasking (ReMDM-cap): largest probability per step; for --sampler ancestral."
    ),
]

EtaRescale = Annotated[
    float | None,
    typer.Option(
        "--eta-rescale",
        min=0,
        max=1,
        help="Remasking (ReMDM-rescale): fraction of the largest probability that keeps the mask rates.",
    ),
]

Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the samples; sample i does not depend on --count.")]

Count = Annotated[int, typer.Option("--count", min=1, help="Number of samples.")]

ShowOrder = Annotated[bool, typer.Option("--show-order", help="Show the forward pass that unmasked each token.")]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per sample.")]

BAR_WIDTH = 40
"""Characters of the longest bar of `order_picture`."""


def generate(
    model: ModelPath,
    *,
    prompt: Prompt = None,
    infill: Infill = None,
    length: Length = None,
    sampler: Sampler = "auto",
    plugin: OrderPlugins = None,
    set_: OrderOptions = None,
    steps: Steps = None,
    schedule: Schedule = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    block_length: BlockLength = None,
    eta_cap: EtaCap = None,
    eta_rescale: EtaRescale = None,
    seed: Seed = 0,
    count: Count = 1,
    weights: Weights = "ema",
    tokens_per_batch: TokensPerBatch = None,
    show_order: ShowOrder = False,
    as_json: AsJson = False,
) -> None:
    """Sample texts from a trained model, by masked diffusion or from left to right.

    For several processes, which share the samples: `torchrun --nproc-per-node 4 -m ltg_mdlm generate`.
    """
    from ltg_mdlm.core.distributed import Ranks
    from ltg_mdlm.core.settings import did_you_mean
    from ltg_mdlm.inference.sampling import default_sampler
    from ltg_mdlm.inference.sampling import generate as draw
    from ltg_mdlm.inference.sampling_rule import SamplingRule, plugin_orders
    from ltg_mdlm.inference.trained_model import open_model

    if as_json and show_order:
        raise UserError(
            "--show-order has no effect with --json, which always has the order (unmasked_at)\n  leave --show-order out"
        )
    if set_ and not plugin:
        raise UserError("--set sets options of the plugins of --plugin: add --plugin NAME")
    orders = plugin_orders(plugin, set_ or ()) if plugin else {}
    if plugin and sampler not in orders:
        raise UserError(
            f"--sampler {sampler} is not an unmasking order of --plugin {' --plugin '.join(plugin)}"
            f"{did_you_mean(sampler, orders)}\n  orders: {', '.join(orders)}"
        )
    with Ranks.setup() as ranks:
        trained = open_model(model, ranks, weights=weights)
        rule = SamplingRule(
            sampler=default_sampler(trained) if sampler == "auto" else sampler,
            order=orders.get(sampler),
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
    if not as_json:
        print_samples(samples, trained.tokenizer, order=show_order)
        return
    for number, sample in enumerate(samples):
        record = {
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
        typer.echo(json.dumps(record))


def print_samples(samples: Sequence[Sample], tokenizer: Tokenizer, *, order: bool) -> None:
    """Print the texts, separated by blank lines; `order`: each with the order of its tokens."""
    console = Console(highlight=False)
    for number, sample in enumerate(samples):
        if number:
            console.print()
        console.print(shown(sample, tokenizer), soft_wrap=True)
        if order:
            console.print(order_picture(sample, tokenizer), soft_wrap=True)


def shown(sample: Sample, tokenizer: Tokenizer) -> Text:
    """The text of a sample, with tokens of the prompt dimmed."""
    text, start = Text(sample.text), 0
    for given, group in groupby(sample.unmasked_at, key=lambda place: place < 0):
        stop = start + len(list(group))
        if given:
            # Decoded from the start, since the spaces of a token depend on the tokens before it.
            begin, end = (len(tokenizer.decode(sample.ids[:place])) for place in (start, stop))
            text.stylize("dim", begin, end)
        start = stop
    return text


def order_picture(sample: Sample, tokenizer: Tokenizer) -> Text:
    """One line per token: the step at which it was unmasked, as a number and a bar; prompt tokens have none."""
    last = max(sample.unmasked_at, default=0)
    tokens = [repr(tokenizer.tokens[token])[1:-1].replace(" ", "·") for token in sample.ids]
    width = max(map(len, tokens), default=0)
    digits = len(str(last))
    picture = Text()
    for token, place in zip(tokens, sample.unmasked_at, strict=True):
        if place < 0:
            picture.append(f"{token:>{width}}  {'given':>{digits}}\n", style="dim")
        else:
            bar = "█" * (1 + place * (BAR_WIDTH - 1) // max(last, 1))
            picture.append(f"{token:>{width}}  {place:>{digits}} {bar}\n")
    picture.rstrip()
    return picture
