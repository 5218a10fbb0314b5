"""Samples for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.generate.rule import SamplingRule
from ltg_mdlm.generate.sampling import Sample
from ltg_mdlm.trained_model import TrainedModel

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
