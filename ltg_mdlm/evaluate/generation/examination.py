"""Everything that `ltg-mdlm eval generation` measures of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.errors import UserError
from ltg_mdlm.evaluate.generation.acceptance import Grammar
from ltg_mdlm.evaluate.generation.judge import open_judge
from ltg_mdlm.evaluate.generation.measure import Examiner, Quality, corpus_of
from ltg_mdlm.generate import SamplingRule
from ltg_mdlm.trained_model import TrainedModel


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
