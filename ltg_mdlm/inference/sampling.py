"""Generate samples from a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ltg_mdlm.core.components import Mode
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.terminal import count_progress
from ltg_mdlm.data.tokenizer import EOS, PAD
from ltg_mdlm.inference.canvas import MAX_SAMPLES, Canvas, Setting, Template, continuation, infilling, model_predictor
from ltg_mdlm.inference.samplers import Part, blocks, sample_ancestral, sample_autoregressive, sample_ordered
from ltg_mdlm.inference.sampling_rule import (
    EqualSteps,
    RateSchedule,
    Sampler,
    SamplingRule,
    mask_rates,
    trained_schedule,
)
from ltg_mdlm.inference.scoring import default_tokens_per_batch
from ltg_mdlm.inference.trained_model import TrainedModel

LENGTH = 64
"""Tokens to draw by default."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sampled text, and how it was sampled."""

    text: str
    ids: tuple[int, ...]
    """Its tokens, without `<s>` and `</s>`."""
    unmasked_at: tuple[int, ...]
    """For each token, the index of the forward pass that fixed it, from 0; -1 for given tokens."""
    ended: bool
    """Whether the model ended the text with `</s>`, before the length did."""
    passes: int
    """Number of forward passes."""


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

    Sample i is the same for any `count`, `tokens_per_batch` and number of ranks, up to the rounding of matrix products.
    A model that was trained with `data.end_of_document=true` may end a text before `length` tokens.

    Args:
        trained: the model.
        rule: the sampler and its settings.
        prompt: the text to continue.
        infill: a text in which every `<mask>` is replaced by a drawn token; excludes `prompt` and `length`.
        length: tokens to draw after the prompt; by default 64, or as many as fit.
        count: number of samples.
        tokens_per_batch: tokens per forward pass; by default a value that suits the device.
        ranks: processes that share the samples; all of them must call this function.
        progress: show a progress bar.

    Raises UserError for a rule that does not fit the model, and for a text that does not fit into its positions.
    """
    template = _template(trained, prompt, infill, length)
    _require_fit(trained, rule, template, count)
    device, ranks = trained.device, ranks or Ranks.alone()
    predict = model_predictor(trained, causal=rule.sampler == "autoregressive")
    schedule = trained_schedule(trained) if rule.schedule == "trained" else None
    ends = bool(trained.about.get("config", {}).get("data", {}).get("end_of_document", False))
    rows = max(1, (tokens_per_batch or default_tokens_per_batch(device)) // len(template.ids))
    mine, samples = torch.arange(ranks.rank, count, ranks.world_size, device=device), list[Sample]()
    total = len(mine) * len(template.gaps)
    with count_progress("drawing tokens", total, show=progress and ranks.is_main) as advance:
        setting = Setting(predict=predict, rule=rule, ends=ends, block_length=trained.block_length, advance=advance)
        for sample_B in torch.split(mine, rows) if len(mine) else ():
            canvas = draw_rows(template, sample_B, setting, schedule)
            for ids, drawn_at, passes in zip(
                canvas.ids_BT[:, 1:].tolist(), canvas.drawn_at_BT[:, 1:].tolist(), canvas.passes_B.tolist(), strict=True
            ):
                end = next((column for column, token in enumerate(ids) if token in (EOS, PAD)), len(ids))
                samples.append(
                    Sample(
                        text=trained.tokenizer.decode(ids[:end]),
                        ids=tuple(ids[:end]),
                        unmasked_at=tuple(drawn_at[:end]),
                        ended=end < len(ids) and ids[end] == EOS,
                        passes=passes,
                    )
                )
    of_rank = ranks.gather_objects(samples)
    return [of_rank[number % ranks.world_size][number // ranks.world_size] for number in range(count)]


def default_sampler(trained: TrainedModel) -> Sampler:
    """`ancestral` for a model that was trained on masked rows, else `autoregressive`."""
    return "ancestral" if "masked" in trained.modes else "autoregressive"


@torch.no_grad()
def draw_rows(template: Template, sample_B: Tensor, setting: Setting, schedule: RateSchedule | None = None) -> Canvas:
    """Fill the gaps of a template for the samples with these numbers, int64[B].

    `schedule` has the mask rates of the steps, by default equally spaced.  Raises UserError if there are fewer steps
    than blocks.
    """
    canvas, rule, gaps = Canvas(template, sample_B, setting), setting.rule, template.gaps
    rates_for = partial(mask_rates, schedule or EqualSteps())
    if rule.sampler == "autoregressive":
        sample_autoregressive(canvas, gaps)
        return canvas
    if setting.block_length or rule.sampler == "block":
        parts = blocks(gaps, rule, rates_for, setting.block_length)
    elif rule.sampler == "ancestral":
        parts = [Part(gaps, None if rule.steps is None else rates_for(rule.steps))]
    else:
        parts = [Part(gaps, rates_for(rule.steps or len(gaps)))]
    (sample_ancestral if rule.sampler == "ancestral" else sample_ordered)(canvas, parts)
    return canvas


def _template(trained: TrainedModel, prompt: str | None, infill: str | None, length: int | None) -> Template:
    """The row to fill.  Raises UserError if the options exclude each other or the row is too long."""
    limit = trained.model.config.max_position_embeddings
    if infill is not None:
        if prompt is not None or length is not None:
            raise UserError("--infill has the given text and the tokens to draw: leave --prompt and --length out")
        template = infilling(trained.tokenizer, infill)
    else:
        wanted = LENGTH if length is None else min(length, limit + 1)  # more do not fit either
        template = continuation(trained.tokenizer, prompt, wanted)
        surplus = len(template.ids) - limit
        if length is None and 0 < surplus < wanted:
            template = continuation(trained.tokenizer, prompt, wanted - surplus)
    if len(template.ids) > limit:
        given = len(template.ids) - len(template.gaps)
        raise UserError(
            f"{length or len(template.gaps)} tokens to draw and {given} given tokens (<s> included) do not fit into the"
            f" {limit} positions of {trained.name}\n  shorten the text, or draw at most {max(limit - given, 0)} tokens"
        )
    return template


def _require_fit(trained: TrainedModel, rule: SamplingRule, template: Template, count: int) -> None:
    """Raises UserError if the model, the rule, the template and the number of samples do not go together."""
    mode: Mode = "causal" if rule.sampler == "autoregressive" else "masked"
    if mode not in trained.modes:
        other = "autoregressive" if mode == "masked" else "ancestral, confidence, entropy or block"
        raise UserError(
            f"--sampler {rule.sampler} needs a model trained on {mode} rows; {trained.name} was trained only on"
            f" {' and '.join(sorted(trained.modes))} rows\n  use --sampler {other}"
        )
    if mode == "causal" and not template.is_continuation:
        raise UserError("--sampler autoregressive reads from left to right, and cannot fill gaps before given words")
    length = trained.block_length if mode == "masked" else 0
    if length and rule.block_length not in (None, length):
        raise UserError(
            f"--block-length {rule.block_length}: {trained.name} was trained in blocks of {length} tokens; leave it out"
        )
    if length and max(set(range(len(template.ids))) - set(template.gaps)) // length > template.gaps[0] // length:
        raise UserError(
            f"--infill: {trained.name} was trained to fill blocks of {length} tokens from left to right, and does not"
            " see the given words of later blocks; give no words after the block of the first gap"
        )
    if not 1 <= count <= MAX_SAMPLES:
        raise UserError(f"--count {count}: must be between 1 and {MAX_SAMPLES}; for more samples, use other seeds")
    if count > 1 and rule.is_deterministic:
        raise UserError(f"--count {count}: with --temperature 0 and --sampler {rule.sampler} all samples are the same")
