"""`ltg-mdlm check` and `sweep check`: resolved settings, size and cost of runs, without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ltg_mdlm.core.batch import Step
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.machine import bf16_for, describe_machine, matrix_peak
from ltg_mdlm.core.settings import Settings
from ltg_mdlm.data.batch_schedule import BatchSchedule
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.row_loader import RowLoader
from ltg_mdlm.host.failures import failures_named
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.run_context import (
    batch_schedule,
    build_model,
    components_of,
    epoch_sampling,
    open_corpus,
    with_word_unit,
)
from ltg_mdlm.host.slots import Components
from ltg_mdlm.model.flops import flops_per_token
from ltg_mdlm.training.recipe import MicroBatch, Recipe
from ltg_mdlm.training.sweep import SEED, Point, Sweep

BABYLM_EPOCHS = 10
"""How often a BabyLM submission may see each word."""

BABYLM_WORDS = {"strict-small": 10_000_000, "strict": 100_000_000}
"""Words of the training text in each track; the multilingual track has the limit of the strict one."""

MAX_SOURCES = 40
"""Sources that the text of the report lists."""

H200_FLOPS = 790e12
"""Measured rate of dense bf16 matrix products on one H200, in FLOP per second."""

ASSUMED_UTILISATION = 0.4
"""Share of its matrix peak that training on a GPU is assumed to reach."""

ASSUMED_CPU_UTILISATION = 0.2
"""The same for CPUs, as `bench` measured it (docs/benchmarks.md)."""

PEAK_SECONDS = 0.3
"""Time for which the matrix peak is measured."""

LONG_HOURS = 48.0
"""Estimated hours on a CPU from which `check` warns."""

ASSUMED_SUPERVISED = 0.4
"""Share of positions that are assumed to have a loss."""


FEW_ROWS = 4
"""Rows that are corrupted to see what the components return."""


@dataclass(frozen=True)
class SourceUse:
    """How often a run sees a source of its corpus."""

    words: int
    """Words of the source in the training split."""
    seen: int
    """Words of it that the whole training sees, repetitions included."""

    @property
    def times(self) -> float:
        """How often each of its words is seen on average."""
        return self.seen / max(self.words, 1)


@dataclass(frozen=True)
class RunReport:
    """What `check` prints about a run."""

    config: RunConfig
    parameters: int
    max_steps: int
    epochs: float
    rows: int
    tokens: int
    words: int
    corpus_words: int
    """Words of the training text."""
    text_words: int
    """Words that the limits of BabyLM count: `corpus_words`, or the English equivalent of a text cut to a budget."""
    stages: list[str]
    providers: dict[str, str]
    gpu_hours: float
    warnings: list[str]
    sources: dict[str, SourceUse]
    """How often each source is seen; empty if sources are unknown, or if a plugin decides it."""
    verified: str | None = None
    """What of the corpus was verified, if that was asked for."""
    hours_here: float | None = None
    """Estimated hours of one process on this machine, if it was measured."""
    machine: str = ""
    """The device and precision of `hours_here`."""

    def to_json(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return {
            "parameters": self.parameters,
            "steps": self.max_steps,
            "epochs": self.epochs,
            "rows": self.rows,
            "tokens": self.tokens,
            "words": self.words,
            "word_unit": self.config.data.words,
            "corpus_words": self.corpus_words,
            "text_words": self.text_words,
            "babylm_track": track_of(self.text_words),
            "h200_hours": round(self.gpu_hours, 3),
            **({"hours_here": round(self.hours_here, 3)} if self.hours_here is not None else {}),
            "slots": self.providers,
            "sources": {
                name: {"words": use.words, "words_seen": use.seen, "times": round(use.times, 4)}
                for name, use in self.sources.items()
            },
            "warnings": self.warnings,
            **({"corpus_verified": self.verified} if self.verified else {}),
            "config": self.config.model_dump(mode="json"),
        }

    def to_text(self) -> str:
        """The resolved settings as YAML, then size and cost, then the warnings."""
        slots = ", ".join(f"{slot}: {plugin}" for slot, plugin in self.providers.items())
        precision = self.config.training.precision
        decides = "row_order" in self.providers
        same = self.text_words == self.corpus_words
        adjusted = "" if same else f"; the text is as large as {self.text_words:,} words of English"
        lines = [
            self.config.to_yaml(),
            f"parameters   {self.parameters:,}",
            f"precision    {precision}{' (decided by measurement at start)' if precision == 'auto' else ''}",
            f"slots        {slots}",
            *self.stages,
            *(
                f"{'' if number else 'sources':12} {name}: seen {use.times:.2f} times ({use.words:,} words)"
                for number, (name, use) in enumerate(list(self.sources.items())[:MAX_SOURCES])
            ),
            *([f"{'':12} and {more} more sources (--json)"] if (more := len(self.sources) - MAX_SOURCES) > 0 else []),
            *(["sources      the plugin in the slot row_order decides how often each is seen"] if decides else []),
            f"words        {self.corpus_words:,} of text, {self.words:,} seen; unit: {self.config.data.words}"
            f"{adjusted}; BabyLM track: {track_of(self.text_words) or 'none, too many'}",
            f"H200 hours   {_hours(self.gpu_hours)} (at {ASSUMED_UTILISATION:.0%} of the matrix peak; an estimate)",
            *([f"hours here   {_hours(self.hours_here)} ({self.machine}; an estimate)"] if self.hours_here else []),
            *([f"corpus       {self.verified}"] if self.verified else []),
            *(f"warning: {text}" for text in self.warnings),
        ]
        return "\n".join(lines)


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours >= 0.01 else "less than 0.01"


@dataclass(frozen=True)
class Resolved:
    """The settings of a run, with its corpus, schedule and components, but without its model."""

    config: RunConfig
    warnings: list[str]
    corpus: Corpus
    schedule: BatchSchedule
    components: Components


def resolve(settings: Settings) -> Resolved:
    """Open the corpus and fill the slots.  Raises UserError as `train` would."""
    host = Host(settings.config, settings.sources)
    warnings = host.check_config()
    corpus = open_corpus(host.config)
    host.config = with_word_unit(host.config, corpus)
    schedule = batch_schedule(host.config, corpus)
    components = components_of(host, corpus, schedule, Ranks.alone())
    warnings += host.component_warnings(components)
    return Resolved(host.config, warnings, corpus, schedule, components)


def describe_run(settings: Settings, *, verify: bool = False, measure: bool = False) -> RunReport:
    """Size and cost of a run; with `verify` after the content of the corpus was verified.

    With `measure`, the matrix peak of this machine is measured, from which the hours of the run here are estimated.

    Corrupts a few rows of the first step, which shows what the components return.  Raises UserError, and PluginFailure
    if a component fails.
    """
    resolved = resolve(settings)
    config, schedule, components = resolved.config, resolved.schedule, resolved.components
    with torch.device("meta"):
        model = build_model(config, resolved.corpus.vocab_size, components.time_conditioning)
    totals, views = schedule.totals(), first_views(resolved)
    sampling = epoch_sampling(config, resolved.corpus, schedule)
    by_source = resolved.corpus.train.words_by_source()
    words, seen = totals.words, {name: round(totals.epochs * count) for name, count in by_source.items()}
    if sampling is not None:
        seen = sampling.words_seen()
        words = sum(seen.values())
    sources = {name: SourceUse(count, seen[name]) for name, count in by_source.items()}
    train_entry = resolved.corpus.description.get("splits", {}).get("train", {})
    corpus_words = resolved.corpus.train.num_words
    text_words = train_entry.get("budget_size", corpus_words)
    is_uniform = sampling is None and components.row_order is None
    flops = sum(
        stage.rows
        * stage.seq_len  # padding is computed as well
        * flops_per_token(
            model.config,
            stage.seq_len,
            ASSUMED_SUPERVISED,
            stage.seq_len * view.columns // view.batch.ids_BT.shape[1],
        ).training
        for stage in schedule.stages
        for view in views
    )
    warnings = resolved.warnings + copies_warnings(components, views)
    hours_here, machine = None, ""
    if measure:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bf16 = bf16_for(config.training.precision, device)
        share = ASSUMED_UTILISATION if device.type == "cuda" else ASSUMED_CPU_UTILISATION
        hours_here = flops / (matrix_peak(device, bf16=bf16, seconds=PEAK_SECONDS) * share) / 3600
        machine = f"{describe_machine(device)}, {'bf16' if bf16 else 'fp32'}, {share:.0%} of its matrix peak"
        if device.type == "cpu" and hours_here > LONG_HOURS:
            warnings.append(
                f"this run would take about {hours_here / 24:,.0f} days on this machine's CPU; --config laptop_wide"
                " trains on your own text in minutes"
            )
    return RunReport(
        config=config,
        parameters=sum(p.numel() for p in model.parameters()),
        max_steps=schedule.max_steps,
        epochs=totals.epochs,
        rows=totals.rows,
        tokens=totals.tokens,
        words=words,
        corpus_words=corpus_words,
        text_words=text_words,
        stages=schedule.describe(uniform=is_uniform),
        providers=components.providers,
        gpu_hours=flops / (H200_FLOPS * ASSUMED_UTILISATION) / 3600,
        verified=resolved.corpus.verify() if verify else None,
        hours_here=hours_here,
        machine=machine,
        warnings=warnings
        + budget_warnings(totals.epochs, round(words * text_words / max(corpus_words, 1)), text_words, sources),
        sources=sources if components.row_order is None else {},
    )


def copies_warnings(components: Components, views: list[MicroBatch]) -> list[str]:
    """A warning for copies of the row that a strategy does not declare, so that micro-batches are too large."""
    found = max(view.columns // view.batch.ids_BT.shape[1] - 1 for view in views)
    if found <= components.masking.context_copies:
        return []
    strategy = components.provenance["masking"]
    return [
        f"{strategy} appends {found} copies to a row; its context_copies is 0, and micro-batches are planned for that"
    ]


def first_views(resolved: Resolved) -> list[MicroBatch]:
    """The views of the first rows of the first step.

    Raises UserError for results of the wrong type or shape, and PluginFailure if a component fails.
    """
    schedule, seed = resolved.schedule, resolved.config.seed
    loader = RowLoader(resolved.corpus.train, schedule, seed=seed, micro_batch_rows=schedule.rows(0))
    batch = loader.micro_batches(0)[0].map(lambda value: value[:FEW_ROWS])
    step = Step(seed=seed, step=0, progress=0.0, epoch=0.0, rows=schedule.rows(0))
    with failures_named(resolved.components, lambda _: "in step 1"):
        recipe = Recipe(resolved.components)
        return recipe.corrupt(batch, recipe.begin(step, batch.ids_BT.device))


@dataclass(frozen=True)
class SweepCost:
    """Points of a sweep that differ only in the seed."""

    points: tuple[Point, ...]
    report: RunReport
    """Report on the first of them."""

    @property
    def gpu_hours(self) -> float:
        """H200 hours of all points together."""
        return len(self.points) * self.report.gpu_hours


def require_valid(sweep: Sweep) -> None:
    """Validate the settings of every point, including plugin options.  Raises UserError for the first mistake."""
    for point in sweep.points:
        settings = sweep.settings(point)
        try:
            Host(settings.config, settings.sources).check_config()
        except UserError as error:
            raise sweep.blame(point, error) from None


def describe_sweep(sweep: Sweep) -> list[SweepCost]:
    """Size and cost of every point, once for all of its seeds.  Raises UserError as `train` would."""
    require_valid(sweep)
    by_values: dict[str, list[Point]] = {}
    for point in sweep.points:
        others = {key: value for key, value in point.values.items() if key != SEED}
        by_values.setdefault(repr(others), []).append(point)
    return [SweepCost(tuple(points), describe_run(sweep.settings(points[0]))) for points in by_values.values()]


def budget_warnings(epochs: float, words: int, text_words: int, sources: Mapping[str, SourceUse]) -> list[str]:
    """A warning for each limit of the BabyLM challenge that a run would exceed.

    Args:
        epochs: passes over the training text
        words: words that the whole training sees; in other languages than English, their equivalent
        text_words: words of the training text, or their equivalent
        sources: how often each source is seen
    """
    warnings = []
    most = max(sources, key=lambda name: sources[name].times, default="")
    if most and epochs <= BABYLM_EPOCHS < round(sources[most].times, 2):
        warnings.append(
            f"source {most!r} is seen {sources[most].times:.1f} times: BabyLM submissions may see each word at most"
            f" {BABYLM_EPOCHS} times"
        )
    if epochs > BABYLM_EPOCHS:
        warnings.append(f"{epochs:.1f} epochs: BabyLM submissions may see each word at most {BABYLM_EPOCHS} times")
    track = track_of(text_words)
    if track is None:
        warnings.append(
            f"{text_words / 1e6:.1f}M words of training text: BabyLM submissions may have"
            f" {BABYLM_WORDS['strict-small'] // 10**6}M (strict-small) or {BABYLM_WORDS['strict'] // 10**6}M (strict);"
            " `ltg-mdlm prepare --budget` cuts to a size"
        )
    elif words > (limit := BABYLM_WORDS[track] * BABYLM_EPOCHS):
        warnings.append(f"{words / 1e6:.1f}M words seen: BabyLM submissions to {track} may see {limit // 10**6}M")
    return warnings


def track_of(text_words: int) -> str | None:
    """The smallest track of the BabyLM challenge that a training text of this size fits."""
    return next((track for track, limit in BABYLM_WORDS.items() if text_words <= limit), None)
