"""From a trained model and a rule to samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ltg_mdlm.core.components import Mode
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.terminal import count_progress
from ltg_mdlm.data.tokenizer import EOS, PAD, Tokenizer
from ltg_mdlm.inference.canvas import MOST_SAMPLES, Canvas, Setting, Template, continuation, infilling, model_predictor
from ltg_mdlm.inference.samplers import blocks, sample_ancestral, sample_from_left_to_right, sample_ordered
from ltg_mdlm.inference.sampling_rule import EqualSteps, RateSchedule, Sampler, SamplingRule, rates, schedule_for
from ltg_mdlm.inference.scoring import TOKENS_PER_BATCH
from ltg_mdlm.inference.trained_model import TrainedModel

LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text, and how it came about."""

    text: str
    ids: tuple[int, ...]
    """Its tokens, without `<s>` and `</s>`"""
    unmasked_at: tuple[int, ...]
    """Of each token, the forward pass that fixed it, from 0; -1 for given tokens"""
    ended: bool
    """The model ended it with `</s>`; else the length did"""
    passes: int
    """Forward passes that it took"""


def generate(
    trained: TrainedModel,
    rule: SamplingRule,
    *,
    prompt: str | None = None,
    infill: str | None = None,
    length: int | None = None,
    count: int = 1,
    tokens_per_batch: int | None = None,
    ranks: Ranks | None = None,
    progress: bool = False,
) -> list[Sample]:
    """Draw `count` samples.

    `prompt` is kept, and `length` tokens (64, or as many as fit) are drawn behind it; of `infill`, every `<mask>` is
    drawn and the rest kept.  A model trained with `data.end_of_document=true` may end a text before that.  Sample i is
    the same for any `count`, `tokens_per_batch` and number of `ranks`, which share the samples and must all call this,
    up to the rounding of matrix products.

    Raises UserError for a rule that does not fit the model, and a text that does not fit into its positions.
    """
    template = _template(trained, prompt, infill, length)
    _require_fit(trained, rule, template, count)
    device, ranks = trained.device, ranks or Ranks.alone()
    predict = model_predictor(trained, causal=rule.sampler == "autoregressive")
    schedule = schedule_for(rule, trained)
    rows = max(1, (tokens_per_batch or TOKENS_PER_BATCH[device.type]) // len(template.ids))
    mine, samples = torch.arange(ranks.rank, count, ranks.world_size, device=device), list[Sample]()
    total = len(mine) * len(template.gaps)
    with count_progress("drawing tokens", total, show=progress and ranks.is_main) as advance:
        setting = Setting(predict=predict, rule=rule, ends=_ends(trained), advance=advance)
        for sample_B in torch.split(mine, rows) if len(mine) else ():
            samples += _samples(draw_rows(template, sample_B, setting, schedule), trained.tokenizer)
    of_rank = ranks.gather_objects(samples)
    return [of_rank[number % ranks.world_size][number // ranks.world_size] for number in range(count)]


def default_sampler(trained: TrainedModel) -> Sampler:
    """Ancestral for a model that was trained on masked rows, else autoregressive."""
    return "ancestral" if "masked" in trained.modes else "autoregressive"


@torch.no_grad()
def draw_rows(template: Template, sample_B: Tensor, setting: Setting, schedule: RateSchedule | None = None) -> Canvas:
    """Rows without gaps, for the samples of these numbers.  Raises UserError for fewer steps than blocks."""
    canvas, rule = Canvas(template, sample_B, setting), setting.rule
    rates_of = partial(rates, schedule or EqualSteps())
    if rule.sampler == "autoregressive":
        sample_from_left_to_right(canvas, template)
    elif rule.sampler == "ancestral":
        sample_ancestral(canvas, None if rule.steps is None else rates_of(rule.steps))
    elif rule.sampler == "block":
        sample_ordered(canvas, blocks(template.gaps, rule, rates_of))
    else:
        sample_ordered(canvas, [(template.gaps, rates_of(rule.steps or len(template.gaps)))])
    return canvas


def _template(trained: TrainedModel, prompt: str | None, infill: str | None, length: int | None) -> Template:
    limit = trained.model.config.max_position_embeddings
    if infill is not None:
        if prompt is not None or length is not None:
            raise UserError("--infill says what is given and how many tokens to draw: leave --prompt and --length out")
        template = infilling(trained.tokenizer, infill)
    else:
        wanted = LENGTH if length is None else length
        template = continuation(trained.tokenizer, prompt, wanted)
        surplus = len(template.ids) - limit
        if length is None and 0 < surplus < wanted:
            template = continuation(trained.tokenizer, prompt, wanted - surplus)
    if len(template.ids) > limit:
        given = len(template.ids) - len(template.gaps)
        raise UserError(
            f"{len(template.gaps)} tokens to draw and {given} given ones (<s> included) do not fit into the {limit}"
            f" positions of {trained.name}\n  shorten the text, or draw at most {max(limit - given, 0)} tokens"
        )
    return template


def _require_fit(trained: TrainedModel, rule: SamplingRule, template: Template, count: int) -> None:
    mode: Mode = "causal" if rule.sampler == "autoregressive" else "masked"
    if mode not in trained.modes:
        other = "autoregressive" if mode == "masked" else "ancestral, confidence, entropy or block"
        raise UserError(
            f"--sampler {rule.sampler} needs a model trained on {mode} rows; {trained.name} saw only"
            f" {' and '.join(sorted(trained.modes))} rows\n  use --sampler {other}"
        )
    if mode == "causal" and not template.is_continuation:
        raise UserError("--sampler autoregressive reads from left to right, and cannot fill gaps before given words")
    if not 1 <= count <= MOST_SAMPLES:
        raise UserError(f"--count {count}: give 1 to {MOST_SAMPLES}; for more, use other seeds")
    if count > 1 and rule.is_deterministic:
        raise UserError(f"--count {count}: with --temperature 0 and --sampler {rule.sampler} all samples are the same")


def _ends(trained: TrainedModel) -> bool:
    config: dict[str, Any] = trained.about.get("config", {})
    return bool(config.get("data", {}).get("end_of_document", False))


def _samples(canvas: Canvas, tokenizer: Tokenizer) -> list[Sample]:
    rows = zip(canvas.ids_BT.tolist(), canvas.drawn_at_BT.tolist(), canvas.passes_B.tolist(), strict=True)
    return [_sample(ids[1:], drawn_at[1:], passes, tokenizer) for ids, drawn_at, passes in rows]


def _sample(row: list[int], drawn_at: list[int], passes: int, tokenizer: Tokenizer) -> Sample:
    end = next((column for column, token in enumerate(row) if token in (EOS, PAD)), len(row))
    return Sample(
        text=tokenizer.decode(row[:end]),
        ids=tuple(row[:end]),
        unmasked_at=tuple(drawn_at[:end]),
        ended=end < len(row) and row[end] == EOS,
        passes=passes,
    )
