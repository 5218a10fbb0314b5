"""Samples of a trained model under several rules, and the figures of all of them, beside those of real text."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast, get_args

import numpy as np

from ltg_mdlm.build import open_corpus
from ltg_mdlm.config import RunConfig, stored_config
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.generation.acceptance import Grammar, Verdict, acceptance
from ltg_mdlm.evaluate.generation.judge import Judge, perplexities
from ltg_mdlm.evaluate.generation.likeness import Mauve
from ltg_mdlm.evaluate.generation.reference import reference_draws
from ltg_mdlm.evaluate.generation.statistics import text_statistics
from ltg_mdlm.generate import Sample, SamplingRule, generate
from ltg_mdlm.generate.rule import Sampler
from ltg_mdlm.trained_model import TrainedModel


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The figures of some texts.

    Attributes:
        rule: how they were sampled; None for real text.
        figures: by name, see docs/generation.md; NaN where undefined.
        spread: of real text, the standard deviation of figures over several draws.
        samples: the texts; none for real text.
        verdicts: what the grammar says of each; none without a grammar.
        seconds: that sampling took.
    """

    rule: SamplingRule | None
    figures: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    verdicts: Sequence[Verdict] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything but the texts."""
        described = self.rule.to_json() if self.rule is not None else None
        return {"rule": described, **self.figures, "spread": dict(self.spread), "seconds": round(self.seconds, 3)}


def rules_for(samplers: Sequence[str], steps: Sequence[int], **settings: Any) -> list[SamplingRule]:
    """Every sampler with every number of steps; the autoregressive one, which has none, once.

    Raises UserError for a sampler that there is not, and settings that have no effect.
    """
    if steps and all(name == "autoregressive" for name in samplers):
        raise UserError("--sampler autoregressive draws one token per step, so that --steps has no effect")
    chosen = [
        (_sampler(name), None if name == "autoregressive" else count)
        for name, count in product(samplers, steps or (None,))
    ]
    return [SamplingRule(sampler=name, steps=count, **settings) for name, count in dict.fromkeys(chosen)]


def _sampler(name: str) -> Sampler:
    for sampler in get_args(Sampler):
        if name == sampler:
            return cast(Sampler, sampler)
    raise UserError(f"--sampler {name}: no such sampler; there are {', '.join(get_args(Sampler))}")


def corpus_of(trained: TrainedModel) -> tuple[Corpus, bool]:
    """The corpus that a model was trained on, and whether it is the built-in one.

    Raises UserError if it is not known, or not there any more.
    """
    if "config" not in trained.about:
        raise UserError(f"{trained.source}: its settings do not say what it was trained on: give the corpus (--corpus)")
    config = stored_config(trained.about["config"], trained.source)
    try:
        return open_corpus(config), is_builtin(config)
    except UserError as error:
        raise UserError(
            f"{error}\n  {trained.name} was trained on it; if it lies elsewhere now, use --corpus"
        ) from None


def is_builtin(config: RunConfig) -> bool:
    """Whether a run was trained on the built-in corpus."""
    return config.data.train is None and config.data.corpus == "builtin"


class Examiner:
    """Measures texts of a model's vocabulary against a corpus, a judge and a grammar."""

    def __init__(
        self,
        trained: TrainedModel,
        corpus: Corpus,
        judge: Judge | None,
        grammar: Grammar | None,
        *,
        count: int,
        length: int,
        seed: int,
        mauve: bool = False,
    ) -> None:
        """`count` texts of `length` tokens each are measured; `seed` chooses the real ones; `mauve` needs a judge.

        Raises UserError for a corpus without validation text, one with another tokenizer, and MAUVE without its
        library or enough texts.
        """
        if corpus.valid is None:
            raise UserError(f"{corpus.path}: no validation text, by which figures are read; give another --corpus")
        if corpus.tokenizer.fingerprint != trained.tokenizer.fingerprint:
            raise UserError(f"{corpus.path}: made with another tokenizer than that of {trained.name}")
        self.trained, self.corpus, self.judge, self.grammar = trained, corpus, judge, grammar
        self._count, self._length = count, length
        self._real = reference_draws(corpus.valid, count, length, seed)
        self._mauve = Mauve(judge, self._decoded(self._real[0])) if mauve and judge is not None else None

    def of_samples(self, rule: SamplingRule) -> Quality:
        """Draw samples and measure them.  Raises UserError for a rule that does not fit the model."""
        started = time.monotonic()
        samples = generate(self.trained, rule, length=self._length, count=self._count, progress=True)
        seconds = time.monotonic() - started
        texts = [sample.text for sample in samples]
        verdicts = self._verdicts(texts, [sample.ended for sample in samples])
        figures = self._figures([sample.ids for sample in samples], texts, verdicts)
        if self._mauve is not None:
            figures["mauve"] = self._mauve(texts)
        figures["passes"] = statistics.fmean(sample.passes for sample in samples)
        return Quality(rule=rule, figures=figures, samples=samples, verdicts=verdicts, seconds=seconds)

    def of_real_text(self) -> Quality:
        """Held-out documents of the corpus, cut like samples.

        They are what samples are compared with by MAUVE, so there the figure is that of other documents, NaN where the
        corpus has no more.
        """
        first, *others = self._real
        texts = self._decoded(first)
        verdicts = self._verdicts(texts, [False] * len(texts))
        figures = self._figures(first, texts, verdicts)
        counts_V = self.corpus.train.token_count_V
        spread = _deviations([text_statistics(draw, counts_V) for draw in self._real])
        if self._mauve is not None:
            likeness = [{"mauve": self._mauve(self._decoded(draw))} for draw in others]
            figures |= likeness[0] if likeness else {"mauve": math.nan}
            spread |= _deviations(likeness)
        return Quality(rule=None, figures=figures, spread=spread)

    def _decoded(self, draw: Sequence[Sequence[int]]) -> list[str]:
        return [self.trained.tokenizer.decode(ids) for ids in draw]

    def _verdicts(self, texts: Sequence[str], ended: Sequence[bool]) -> list[Verdict]:
        return self.grammar.judge(texts, ended, progress=True) if self.grammar is not None else []

    def _figures(
        self, ids: Sequence[Sequence[int]], texts: Sequence[str], verdicts: Sequence[Verdict]
    ) -> dict[str, float]:
        figures: dict[str, float] = {"texts": len(texts), "tokens": sum(map(len, ids))}
        if self.judge is not None:
            scored = [text for text in texts if text.strip()]
            figures |= perplexities(scored, self.judge.scores(scored))
        figures |= text_statistics(ids, self.corpus.train.token_count_V)
        return figures | dict(acceptance(verdicts)) if self.grammar is not None else figures


def _deviations(draws: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Standard deviation of every figure; empty for a single draw."""
    if len(draws) < 2:
        return {}
    return {name: float(np.std([drawn[name] for drawn in draws], ddof=1)) for name in draws[0]}
