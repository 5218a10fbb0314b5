"""Quality of samples (`ltg-mdlm eval generation`): figures of samples under several rules, and of real text.

    results/<model>/<revision>/generation/
        samples.jsonl   one sample per line: text, ids, unmasked_at, sampler, steps, ungrammatical sentences
        summary.json    figures of every rule and of real text, and the settings that produced them

Shape suffixes: S texts, D width of the judge or documents of a corpus.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from rich.table import Table

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import stored_config
from ltg_mdlm.core.terminal import busy
from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.data.synthetic.builtin import is_builtin
from ltg_mdlm.data.synthetic.recogniser import GrammarVerdict, acceptance, judge_grammar
from ltg_mdlm.evaluation.judge import Judge, open_judge, perplexities
from ltg_mdlm.evaluation.result_folders import model_facts, model_folder, to_json, write_folder
from ltg_mdlm.evaluation.sample_measures import text_statistics
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.inference.sampling import Sample, generate
from ltg_mdlm.inference.sampling_rule import Sampler, SamplingRule
from ltg_mdlm.inference.trained_model import TrainedModel

FOLDER = "generation"

MAX_DRAWS = 5
"""Maximum number of draws of real text."""

MIN_TEXTS = 100
"""MAUVE uses one cluster per ten texts; histograms of fewer texts are meaningless."""

_CLUSTER_SEED = 25
"""Fixed, so that MAUVE differs between models only because of their texts."""

_COLUMNS = {
    "perplexity_per_word": ("ppl/word", "{:.1f}"),
    "perplexity_per_token": ("ppl/token", "{:.1f}"),
    "mauve": ("MAUVE", "{:.3f}"),
    "entropy": ("entropy", "{:.2f}"),
    "distinct_1": ("distinct-1", "{:.3f}"),
    "distinct_2": ("distinct-2", "{:.3f}"),
    "distinct_3": ("distinct-3", "{:.3f}"),
    "distinct_4": ("distinct-4", "{:.3f}"),
    "rep_4": ("rep-4", "{:.3f}"),
    "zipf": ("Zipf", "{:.2f}"),
    "js_distance": ("JS", "{:.3f}"),
    "grammatical_sentences": ("grammatical", "{:.1%}"),
    "grammatical_samples": ("samples", "{:.1%}"),
}
"""Figures in the table: heading and format."""

_SHOWN_SPREADS = ("mauve", "entropy", "js_distance")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The figures of some texts.

    Attributes:
        rule: how the texts were sampled; None for real text.
        figures: by name, see docs/generation.md; NaN where undefined.
        spread: for real text, the standard deviation of figures over several draws.
        samples: the texts; empty for real text.
        verdicts: verdict of the grammar on each sample; empty without a grammar.
        seconds: duration of sampling.
    """

    rule: SamplingRule | None
    figures: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    verdicts: Sequence[GrammarVerdict] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything except the texts."""
        described = self.rule.to_json() if self.rule is not None else None
        return {"rule": described, **self.figures, "spread": dict(self.spread), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, kw_only=True)
class Examination:
    """The result of `examine`.

    Attributes:
        about: model, corpus, judge and settings.
        sampled: quality of the samples of each rule.
        real: quality of held-out text.
    """

    about: Mapping[str, Any]
    sampled: Sequence[Quality]
    real: Quality

    def summary(self) -> dict[str, Any]:
        """Everything except the texts."""
        rows = [quality.to_json() for quality in self.sampled]
        return {**self.about, "results": rows, "real_text": self.real.to_json()}


def rules_for(samplers: Sequence[str], steps: Sequence[int], **settings: Any) -> list[SamplingRule]:
    """All combinations of samplers and numbers of steps; the autoregressive sampler has no steps and appears once.

    Raises UserError for an unknown sampler, and for settings without effect.
    """
    known = get_args(Sampler)
    for name in samplers:
        if name not in known:
            raise UserError(f"--sampler {name}: no such sampler; there are {', '.join(known)}")
    if steps and all(name == "autoregressive" for name in samplers):
        raise UserError("--sampler autoregressive generates one token per step; --steps has no effect")
    chosen = [
        (cast(Sampler, name), None if name == "autoregressive" else count)
        for name, count in product(samplers, steps or (None,))
    ]
    return [SamplingRule(sampler=name, steps=count, **settings) for name, count in dict.fromkeys(chosen)]


def examine(
    trained: TrainedModel,
    rules: Sequence[SamplingRule],
    *,
    count: int,
    length: int,
    judge: Path | None,
    corpus: Path | None,
    seed: int,
    mauve: bool = False,
) -> Examination:
    """Sample with every rule, and measure the samples and real text.

    The default corpus is the training corpus; if it is the built-in one, its grammar judges the samples.

    Raises UserError for a judge that is not causal, a corpus that does not exist or has another tokenizer, rules that
    do not fit the model, and MAUVE without a judge, its package or enough texts.
    """
    if mauve and judge is None:
        raise UserError("--mauve: texts are compared by the features of a judge\n  give one with --judge")
    opened_judge = open_judge(judge, trained.device) if judge is not None else None
    compared, builtin = (Corpus.open(corpus), False) if corpus is not None else corpus_of(trained)
    size: dict[str, int] = {"count": count, "length": length, "seed": seed}
    examiner = Examiner(trained, compared, opened_judge, builtin, **size, mauve=mauve)
    about = {
        **model_facts(trained),
        "corpus": str(compared.path),
        "grammar": builtin,
        "judge": str(opened_judge.source) if opened_judge is not None else None,
        **size,
    }
    sampled = [examiner.of_samples(rule) for rule in rules]
    return Examination(about=about, sampled=sampled, real=examiner.of_real_text())


def corpus_of(trained: TrainedModel) -> tuple[Corpus, bool]:
    """The training corpus of a model, and whether it is the built-in one.

    Raises UserError if it is not known, or does not exist any more.
    """
    if "config" not in trained.about:
        raise UserError(f"{trained.source}: its settings do not name the training corpus: give it with --corpus")
    config = stored_config(trained.about["config"], trained.source)
    try:
        corpus = open_corpus(config)
        return corpus, is_builtin(corpus)
    except UserError as error:
        raise UserError(
            f"{error}\n  this is the training corpus of {trained.name}; if it has moved, use --corpus"
        ) from None


class Examiner:
    """Measures texts in the vocabulary of a model against a corpus, a judge and the built-in grammar."""

    def __init__(
        self,
        trained: TrainedModel,
        corpus: Corpus,
        judge: Judge | None,
        grammar: bool,
        *,
        count: int,
        length: int,
        seed: int,
        mauve: bool = False,
    ) -> None:
        """Measure `count` texts of `length` tokens; `seed` chooses the real texts; `mauve` needs a judge.

        Raises UserError for a corpus without held-out text or with another tokenizer, and for MAUVE without its package
        or enough texts.
        """
        if corpus.valid is None:
            raise UserError(f"{corpus.path}: no held-out text to compare samples with; give another --corpus")
        if corpus.tokenizer.fingerprint != trained.tokenizer.fingerprint:
            raise UserError(f"{corpus.path}: made with another tokenizer than that of {trained.name}")
        self.trained, self.corpus, self.judge, self.grammar = trained, corpus, judge, grammar
        self._count, self._length = count, length
        self._real = reference_draws(corpus.valid, count, length, seed)
        self._mauve = Mauve(judge, self._decoded(self._real[0])) if mauve and judge is not None else None

    def of_samples(self, rule: SamplingRule) -> Quality:
        """Generate samples and measure them. Raises UserError for a rule that does not fit the model."""
        started = time.monotonic()
        samples = generate(self.trained, rule, length=self._length, count=self._count, progress=True)
        seconds = time.monotonic() - started
        texts = [sample.text for sample in samples]
        figures, verdicts = self._measure([sample.ids for sample in samples], texts, [s.ended for s in samples])
        if self._mauve is not None:
            figures["mauve"] = self._mauve(texts)
        figures["passes"] = statistics.fmean(sample.passes for sample in samples)
        return Quality(rule=rule, figures=figures, samples=samples, verdicts=verdicts, seconds=seconds)

    def of_real_text(self) -> Quality:
        """Measure held-out documents of the corpus, cut to the length of samples.

        MAUVE compares samples with the first draw, so its value for real text is that of the second draw. It is NaN if
        the corpus has only one.
        """
        first, *others = self._real
        texts = self._decoded(first)
        figures, _ = self._measure(first, texts, [False] * len(texts))
        counts_V = self.corpus.train.token_count_V
        spread = _standard_deviations([text_statistics(draw, counts_V) for draw in self._real])
        if self._mauve is not None:
            similarity = [{"mauve": self._mauve(self._decoded(draw))} for draw in others]
            figures |= similarity[0] if similarity else {"mauve": math.nan}
            spread |= _standard_deviations(similarity)
        return Quality(rule=None, figures=figures, spread=spread)

    def _decoded(self, draw: Sequence[Sequence[int]]) -> list[str]:
        return [self.trained.tokenizer.decode(ids) for ids in draw]

    def _measure(
        self, ids: Sequence[Sequence[int]], texts: Sequence[str], ended: Sequence[bool]
    ) -> tuple[dict[str, float], list[GrammarVerdict]]:
        figures: dict[str, float] = {"texts": len(texts), "tokens": sum(map(len, ids))}
        with busy(f"parsing {len(texts)} texts"):
            verdicts = judge_grammar(texts, ended) if self.grammar else []
        if self.judge is not None:
            scored = [text for text in texts if text.strip()]
            figures |= perplexities(scored, self.judge.scores(scored))
        figures |= text_statistics(ids, self.corpus.train.token_count_V)
        if self.grammar:
            figures |= acceptance(verdicts)
        return figures, verdicts


def _standard_deviations(draws: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Standard deviation of every figure; empty for fewer than two draws."""
    if len(draws) < 2:
        return {}
    return {name: float(np.std([figures[name] for figures in draws], ddof=1)) for name in draws[0]}


def reference_draws(split: Split, count: int, length: int, seed: int) -> list[list[tuple[int, ...]]]:
    """Up to `MAX_DRAWS` draws of `count` document beginnings of at most `length` tokens; no document occurs twice.

    Documents of at least `length` tokens are used if there are `count` of them. Otherwise there is one draw of the
    longest documents, with fewer texts if there are not enough documents.
    """
    length_D = np.diff(split.offsets)
    shuffled_D = np.random.default_rng(seed).permutation(split.num_documents)
    chosen_D = shuffled_D[length_D[shuffled_D] >= length]
    draws = min(MAX_DRAWS, len(chosen_D) // count)
    if not draws:
        chosen_D, draws = shuffled_D[np.argsort(-length_D[shuffled_D], kind="stable")], 1
    starts = split.offsets.tolist()
    return [
        [
            tuple(split.tokens[starts[document] : min(starts[document + 1], starts[document] + length)].tolist())
            for document in chosen_D[first : first + count].tolist()
        ]
        for first in range(0, draws * count, count)
    ]


class Mauve:
    """MAUVE: similarity of the distribution of texts to that of real texts (Pillutla et al. 2021, arXiv 2102.01454).

    The hidden states of a judge are clustered for both sets of texts together. The divergences of the two histograms
    over the clusters from their mixtures give a number between 0 and 1; it is 1 for equal histograms.
    """

    def __init__(self, judge: Judge, real: Sequence[str]) -> None:
        """Raises UserError without the package, for too few texts, and for a text that is too long for the judge."""
        try:
            from mauve import compute_mauve
        except ImportError:
            raise UserError("--mauve needs the package mauve-text: pip install 'ltg-mdlm[mauve]'") from None
        if len(real) < MIN_TEXTS:
            raise UserError(
                f"--mauve: there are {len(real)} real texts to compare samples with: at least {MIN_TEXTS} are"
                " needed, preferably thousands\n  give a larger --count, or a --corpus with more held-out documents"
            )
        self._compute: Any = compute_mauve
        self._judge = judge
        self._real_SD = judge.features(real)

    def __call__(self, texts: Sequence[str]) -> float:
        """MAUVE of some texts; comparable only at equal numbers of texts."""
        found = self._compute(p_features=self._real_SD, q_features=self._judge.features(texts), seed=_CLUSTER_SEED)
        return float(found.mauve)


def quality_folder(out: Path, trained: TrainedModel) -> Path:
    """The result folder of a model."""
    return model_folder(out, trained) / FOLDER


def write_quality(folder: Path, examined: Examination) -> None:
    """Write the result folder. Raises UserError if it cannot be written."""
    rows = (row for quality in examined.sampled for row in _sample_rows(quality))
    files = {"samples.jsonl": "".join(map(to_json, rows)), "summary.json": to_json(examined.summary(), indent=2)}
    write_folder(folder, files)


def _sample_rows(quality: Quality) -> Iterator[dict[str, Any]]:
    assert quality.rule is not None
    for number, sample in enumerate(quality.samples):
        row = {
            "sampler": quality.rule.sampler,
            "steps": quality.rule.steps,
            "sample": number,
            "text": sample.text,
            "ids": sample.ids,
            "unmasked_at": sample.unmasked_at,
            "ended": sample.ended,
        }
        yield row | (quality.verdicts[number].to_json() if quality.verdicts else {})


def quality_table(examined: Examination) -> Table:
    """One line per rule, and one of real text; figures that were not computed have no column."""
    columns = {name: layout for name, layout in _COLUMNS.items() if name in examined.real.figures}
    table = Table("sampler", "steps", box=None, pad_edge=False)
    for heading, _ in columns.values():
        table.add_column(heading, justify="right")
    for quality in (*examined.sampled, examined.real):
        names = ("real text", "")
        if quality.rule is not None:
            steps = quality.rule.steps
            names = (quality.rule.sampler, "one per token" if steps is None else str(steps))
        cells = []
        for name, (_, form) in columns.items():
            value, spread = quality.figures[name], quality.spread.get(name)
            shown = "-" if math.isnan(value) else form.format(value)
            if shown != "-" and spread is not None and name in _SHOWN_SPREADS:
                shown += f" ± {form.format(spread)}"
            cells.append(shown)
        table.add_row(*names, *cells)
    return table
