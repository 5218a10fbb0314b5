"""Samples of a trained model under several rules, and the figures of all of them, beside those of real text.

Everything that `ltg-mdlm eval generation` measures of one model.

Real text in the shape of samples, by which the figures of samples can be read.

MAUVE, how close the distribution of some texts is to that of real ones (Pillutla et al. 2021, arXiv 2102.01454).

Both are quantised together, by clusters of a model's hidden states, and the divergences of the two histograms from
their mixtures become one number between 0 and 1, which is 1 for equal histograms.  Suffixes: S texts, D width.

Results of `ltg-mdlm eval generation`: a folder per model, and the table.

results/<model>/<revision>/generation/
    samples.jsonl   one sample per line: text, ids, unmasked_at, sampler, steps, what the grammar rejects
    summary.json    figures of every rule and of real text, and how they were made
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from rich.table import Table

from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import publish_folder, temporary_name, write_file
from ltg_mdlm.core.settings import stored_config
from ltg_mdlm.data.corpus import Corpus, Split
from ltg_mdlm.evaluation.judge import Judge, open_judge, perplexities
from ltg_mdlm.evaluation.result_folders import to_json
from ltg_mdlm.evaluation.sample_measures import Grammar, Verdict, acceptance, text_statistics
from ltg_mdlm.host.run_context import open_corpus
from ltg_mdlm.inference.sampling import Sample, generate
from ltg_mdlm.inference.sampling_rule import Sampler, SamplingRule
from ltg_mdlm.inference.trained_model import TrainedModel


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


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What came out.

    Attributes:
        about: model, corpus, judge and settings.
        sampled: a line for each rule.
        real: the same of held-out text.
    """

    about: Mapping[str, Any]
    sampled: Sequence[Quality]
    real: Quality

    def summary(self) -> dict[str, Any]:
        """Everything but the texts."""
        rows = [quality.to_json() for quality in self.sampled]
        return {**self.about, "results": rows, "real_text": self.real.to_json()}


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
    """Sample by every rule, and measure the samples beside real text.

    The corpus is that of the training, unless another is given; its grammar is asked if it is the built-in one.

    Raises UserError for a judge that reads in no causal order, a corpus that is not there or was made with another
    tokenizer, rules that do not fit the model, and MAUVE without a judge, its library or enough texts.
    """
    if mauve and judge is None:
        raise UserError("--mauve: texts are compared as a judge reads them\n  give one with --judge")
    opened_judge = open_judge(judge, trained.device) if judge is not None else None
    compared, builtin = (Corpus.open(corpus), False) if corpus is not None else corpus_of(trained)
    grammar = Grammar() if builtin else None
    size: dict[str, int] = {"count": count, "length": length, "seed": seed}
    examiner = Examiner(trained, compared, opened_judge, grammar, **size, mauve=mauve)
    about = {
        "model": trained.name,
        "revision": trained.revision,
        "weights": trained.weights,
        "step": trained.about.get("step"),
        "words_seen": trained.about.get("words_seen"),
        "corpus": str(compared.path),
        "grammar": builtin,
        "judge": str(opened_judge.source) if opened_judge is not None else None,
        **size,
    }
    sampled = [examiner.of_samples(rule) for rule in rules]
    return Examination(about=about, sampled=sampled, real=examiner.of_real_text())


MOST_DRAWS = 5


def reference_draws(split: Split, count: int, length: int, seed: int) -> list[list[tuple[int, ...]]]:
    """Up to five draws of `count` beginnings of documents, at most `length` tokens each; no document occurs twice.

    Documents that are long enough are preferred, as samples are of full length, too; one draw is made in any case, of
    fewer beginnings if there are not so many documents.
    """
    length_D = np.diff(split.offsets)
    shuffled_D = np.random.default_rng(seed).permutation(split.num_documents)
    long_D = shuffled_D[length_D[shuffled_D] >= length]
    chosen_D = long_D if len(long_D) >= count else shuffled_D[np.argsort(-length_D[shuffled_D], kind="stable")]
    draws = max(1, min(MOST_DRAWS, len(chosen_D) // count if chosen_D is long_D else 1))
    return [
        [_beginning(split, document, length) for document in chosen_D[first : first + count].tolist()]
        for first in range(0, draws * count, count)
    ]


def _beginning(split: Split, document: int, length: int) -> tuple[int, ...]:
    start, stop = split.offsets[document : document + 2].tolist()
    return tuple(split.tokens[start : min(stop, start + length)].tolist())


FEWEST_TEXTS = 100
"""There is a cluster for every tenth text: with fewer texts the histograms say next to nothing."""


_SEED = 25
"""Of the clusters: figures of several models should differ in their texts only."""


class Mauve:
    """Compares texts with real ones, by the features of a judge."""

    def __init__(self, judge: Judge, real: Sequence[str]) -> None:
        """The judge reads the real texts.

        Raises UserError without the library, for too few texts, and for one with too many tokens for the judge.
        """
        self._compute = _library()
        if len(real) < FEWEST_TEXTS:
            raise UserError(
                f"--mauve: {len(real)} real texts to compare samples with: at least {FEWEST_TEXTS} are needed, better"
                " thousands\n  give a larger --count, or a --corpus with more held-out documents"
            )
        self._judge = judge
        self._real_SD = judge.features(real)

    def __call__(self, texts: Sequence[str]) -> float:
        """MAUVE of some texts; compare it at equal numbers of texts only."""
        found = self._compute(p_features=self._real_SD, q_features=self._judge.features(texts), seed=_SEED)
        return float(found.mauve)


def _library() -> Callable[..., Any]:
    try:
        from mauve import compute_mauve
    except ImportError:
        raise UserError("--mauve needs the package mauve-text: pip install 'ltg-mdlm[mauve]'") from None
    compute: Callable[..., Any] = compute_mauve
    return compute


FOLDER = "generation"


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


_SPREAD = ("mauve", "entropy", "js_distance")


def result_folder(out: Path, trained: TrainedModel) -> Path:
    """Where the results of a model belong."""
    return out / trained.name / trained.revision / FOLDER


def write_results(folder: Path, examined: Examination) -> None:
    """Write a result folder, in place of an older one, complete or not at all.

    Raises UserError if it cannot be written.
    """
    aside = temporary_name(folder)
    rows = (row for quality in examined.sampled for row in _sample_rows(quality))
    try:
        aside.mkdir(parents=True)
        write_file(aside / "samples.jsonl", "".join(map(to_json, rows)))
        write_file(aside / "summary.json", to_json(examined.summary(), indent=2))
        publish_folder(aside, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; choose another folder with --out") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def quality_table(examined: Examination) -> Table:
    """A line per rule, and one of real text; figures that were not asked for have no column."""
    columns = {name: layout for name, layout in _COLUMNS.items() if name in examined.real.figures}
    table = Table("sampler", "steps", box=None, pad_edge=False)
    for heading, _ in columns.values():
        table.add_column(heading, justify="right")
    for quality in (*examined.sampled, examined.real):
        table.add_row(*_names(quality), *(_cell(quality, name, form) for name, (_, form) in columns.items()))
    return table


def _names(quality: Quality) -> tuple[str, str]:
    if quality.rule is None:
        return "real text", ""
    return quality.rule.sampler, "one per token" if quality.rule.steps is None else str(quality.rule.steps)


def _cell(quality: Quality, name: str, form: str) -> str:
    value = quality.figures[name]
    if math.isnan(value):
        return "-"
    spread = f" ± {form.format(quality.spread[name])}" if name in _SPREAD and name in quality.spread else ""
    return form.format(value) + spread


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
