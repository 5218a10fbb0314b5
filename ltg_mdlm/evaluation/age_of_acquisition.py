"""Age of acquisition: does a model learn words in the same order as children (Chang and Bergen 2022, TACL 10)?

The formulas are those of the BabyLM pipeline of 2026. A sigmoid a / (1 + exp(-b (x - c))) + d is fitted to the
learning curve of a word. For a model, this is the negative surprisal over log10 of the words seen; for children, the
share that uses the word over the age in months. The age of a word is where its curve crosses a threshold.

Shape suffixes: M checkpoints (milestones), A words in context, N points of a curve.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import parse_object, read_text
from ltg_mdlm.data.records import only_file, read_table
from ltg_mdlm.data.tokenizer import Tokenizer
from ltg_mdlm.evaluation.result_folders import to_json
from ltg_mdlm.evaluation.statistics import Floats, correlation
from ltg_mdlm.evaluation.tasks import Skip, Task, TaskResult, ask, data_name
from ltg_mdlm.inference.texts import Scorer, Text

MILLIONS = (*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100))
"""Words seen, in millions, by the checkpoints that the official pipeline evaluates; up to 100 in the track
strict-small."""

MONTHS = tuple(range(16, 31))
"""Ages at which the use of words by children is known."""

_MIN_POINTS = 3
"""Smallest number of checkpoints, months or words from which anything is computed."""

_SIGNIFICANCE = 0.1
"""A correlation with a larger p counts as 0."""

_CHECKPOINT_NAME = re.compile(r"chck_(\d+)M")


class Milestone(NamedTuple):
    """A checkpoint that was kept at a number of words seen."""

    name: str
    """`chck_10M`"""
    open: Callable[[], Scorer]

    @property
    def words(self) -> int:
        """Words seen, according to the name."""
        return words_seen_by(self.name)


def words_seen_by(name: str) -> int:
    """Words seen by the checkpoint with this name; 0 for names that the official pipeline does not evaluate."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    return int(match[1]) * 1_000_000 if match and int(match[1]) in MILLIONS else 0


def milestones(folder: Path, open_scorer: Callable[[Path], Scorer]) -> list[Milestone]:
    """The official `chck_*` checkpoints in a folder, in the order of training."""
    found = [path for path in folder.glob("chck_*") if words_seen_by(path.name)]
    found.sort(key=lambda path: words_seen_by(path.name))
    return [Milestone(path.name, partial(open_scorer, path)) for path in found]


class WordInContext(NamedTuple):
    """A word in one of its contexts."""

    word: str
    context_id: int
    context: str

    @property
    def text(self) -> Text:
        """The word as the completion of its context."""
        return Text(f"{self.context.strip()} ", self.word.strip())


class Ages(NamedTuple):
    """The ages of a word; None where the curve gives no age."""

    model: float | None
    """log10 of words seen"""
    human: float | None
    """months"""


@dataclass(frozen=True, kw_only=True)
class AgeOfAcquisition(Task):
    """Correlation between the ages at which a model and children learn words.

    Attributes:
        milestones: the checkpoints of the model.
        model: name of the model in the written file.
        tokenizer: tokenizer of the model, which determines the surprisal of chance.
    """

    name: str = "AoA_word"
    prefixes: tuple[str, ...] = ("cdi_childes", "aoa", "AoA")
    fields: frozenset[str] | None = frozenset({"word", *map(str, MONTHS)})
    milestones: Sequence[Milestone]
    model: str
    tokenizer: Tokenizer

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Score all words with one checkpoint after the other; `scorer` is not used.

        The data are a JSON file {word: [{"context": text}, ...]} and a CSV file with the columns word, 16, ..., 30.
        Without the CSV file, there are surprisals and no score, as in the official pipeline.
        """
        if len(self.milestones) < _MIN_POINTS:
            raise Skip(f"needs at least {_MIN_POINTS} chck_* checkpoints; found {len(self.milestones)}")
        folder = path if path.is_dir() else path.parent
        words = read_contexts(_data_file(folder, "cdi_childes.json"))
        shares = read_shares(_data_file(folder, "cdi_human.csv")) if any(folder.glob("*.csv")) else {}
        surprisals = {milestone.name: surprisals_of(words, milestone.open()) for milestone in self.milestones}
        return self.result(words, shares, surprisals, data_name(path))

    def result(
        self,
        words: Sequence[WordInContext],
        shares: Mapping[str, Floats],
        surprisals: Mapping[str, Sequence[float]],
        data: str,
    ) -> TaskResult:
        """The result from the surprisals of all words by the name of the checkpoint, in the order of training."""
        ages = ages_of(words, shares, surprisals, self.tokenizer)
        both = [(age.model, age.human) for age in ages.values() if age.model is not None and age.human is not None]
        pearson, p = correlation([model for model, _ in both], [human for _, human in both])
        score = 0.0 if len(both) < _MIN_POINTS or p > _SIGNIFICANCE else pearson
        score = score if shares else math.nan
        return TaskResult(
            task=self.name,
            data=data,
            metric="aoa",
            figures={
                "aoa": score,
                "pearson": pearson,
                "p": p,
                "words": len(both),
                "words_without_model_age": sum(age.model is None for age in ages.values()),
                "words_without_human_age": sum(age.human is None for age in ages.values()),
            },
            questions=len(words),
            items=[{"id": word, "uid": self.name, **age._asdict()} for word, age in ages.items()],
            predictions=surprisal_file(self.model, words, surprisals),
            place=self.name,
            predictions_file="surprisal.json",
            other_files={"aoa_score.json": to_json({"aoa": score})} if shares else {},
            validated=False,
        )


def surprisals_of(words: Sequence[WordInContext], scorer: Scorer) -> list[float]:
    """Surprisal in nats of every word in its context, under one checkpoint. Raises UserError if one is NaN."""
    return [-score.log_likelihood for (score,) in ask(scorer, [[word.text] for word in words])]


def surprisal_file(
    model: str, words: Sequence[WordInContext], surprisals: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Content of the official `surprisal.json`, for surprisals by the name of the checkpoint."""
    return {
        "metadata": {
            "model_name": model,
            "use_bos_only": False,
            "total_steps": len(surprisals),
            "completed_steps": len(surprisals),
        },
        "results": [
            {
                "step": checkpoint,
                "word_count": words_seen_by(checkpoint),
                "target_word": entry.word,
                "context_id": entry.context_id,
                "context": entry.context,
                "surprisal": surprisal,
            }
            for checkpoint, of_checkpoint in surprisals.items()
            for entry, surprisal in zip(words, of_checkpoint, strict=True)
        ],
    }


def ages_of(
    words: Sequence[WordInContext],
    shares: Mapping[str, Floats],
    surprisals: Mapping[str, Sequence[float]],
    tokenizer: Tokenizer,
) -> dict[str, Ages]:
    """The ages of every word, from its mean surprisal over contexts under each checkpoint."""
    words_seen_M = np.array([words_seen_by(checkpoint) for checkpoint in surprisals], np.float64)
    surprisal_MA = np.array(list(surprisals.values()))
    columns: dict[str, list[int]] = defaultdict(list)
    for column, entry in enumerate(words):
        columns[entry.word].append(column)
    return {
        word: Ages(
            model_age(words_seen_M, surprisal_MA[:, own].mean(1), chance_surprisal(tokenizer, word)),
            human_age(shares[word]) if word in shares else None,
        )
        for word, own in columns.items()
    }


def chance_surprisal(tokenizer: Tokenizer, word: str) -> float:
    """Surprisal in nats of a word whose tokens are drawn uniformly from the vocabulary.

    Tokens of the word are counted after another word. Tokens that the file only adds to its vocabulary do not count.
    """
    tokens = max(1, len(tokenizer.encode(f"The {word}")) - len(tokenizer.encode("The")))
    return tokens * math.log(len(tokenizer.definition["model"]["vocab"]))


def model_age(words_seen_M: Floats, surprisal_M: Floats, chance: float) -> float | None:
    """log10 of the words seen where the fitted surprisal is halfway between chance and the lowest surprisal.

    None if the curve does not rise or does not cross the threshold, or if the age is outside the checkpoints.
    """
    x_M, y_M = np.log10(words_seen_M + 1), -surprisal_M
    span = float(np.ptp(y_M))
    curve = fit_sigmoid(
        x_M,
        y_M,
        start=(span, 1.0, x_M.mean(), y_M.min()),
        lower=(0.0, 0.0, x_M.min() - 1, y_M.min() - 2 * span - 1),
        upper=(10 * span + 1, 100.0, x_M.max() + 1, y_M.max() + 1),
        evaluations=20_000,
    )
    if curve is None or curve.rise <= 1e-6 or curve.slope <= 1e-6:
        return None
    age = curve.crossing(-(chance - 0.5 * (chance - float(surprisal_M.min()))))
    if age is None:
        return None
    with np.errstate(over="ignore"):
        words_seen = np.power(10.0, age) - 1
    return age if words_seen_M[0] <= words_seen <= words_seen_M[-1] else None


def human_age(shares: Floats) -> float | None:
    """Age in months at which half of the children use a word; None without a crossing within the known months."""
    known = ~np.isnan(shares)
    if known.sum() < _MIN_POINTS:
        return None
    months = np.array(MONTHS, np.float64)[known]
    curve = fit_sigmoid(
        months,
        shares[known],
        start=(1.0, 0.1, months.mean(), 0.0),
        lower=(0.0, 0.0, months[0], -0.5),
        upper=(2.0, 1.0, months[-1], 0.5),
        evaluations=1000,
    )
    if curve is None or curve.rise <= 0 or curve.slope <= 0:
        return None
    age = curve.crossing(0.5)
    return age if age is not None and months[0] <= age <= months[-1] else None


class Sigmoid(NamedTuple):
    """rise / (1 + exp(-slope (x - middle))) + low"""

    rise: float
    slope: float
    middle: float
    low: float

    def crossing(self, y: float) -> float | None:
        """x where the sigmoid has the value y; None if it never has it."""
        if not self.low < y < self.low + self.rise:
            return None
        odds = self.rise / (y - self.low) - 1
        return self.middle - math.log(odds) / self.slope if odds > 0 else None


def fit_sigmoid(
    x_N: Floats,
    y_N: Floats,
    *,
    start: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    evaluations: int,
) -> Sigmoid | None:
    """The least-squares sigmoid within bounds, by `scipy.optimize.curve_fit`; None if the fit does not converge.

    The error has several local minima, so the result depends on the start, which belongs to the official definition.
    """
    from scipy.optimize import curve_fit

    def sigmoid(x: Floats, rise: float, slope: float, middle: float, low: float) -> Floats:
        value: Floats = rise / (1 + np.exp(-slope * (x - middle))) + low
        return value

    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("ignore")  # of the covariance, which is not used
        try:
            fitted, _ = curve_fit(sigmoid, x_N, y_N, p0=start, bounds=(lower, upper), maxfev=evaluations)
        except (RuntimeError, ValueError):  # not converged, or bounds without an inside
            return None
    return Sigmoid(*fitted.tolist())


def _data_file(folder: Path, name: str) -> Path:
    """The file with the official name, or else the only one with its suffix."""
    official = folder / name
    return official if official.is_file() else only_file(folder, official.suffix)


def read_contexts(file: Path) -> list[WordInContext]:
    """All contexts of the words with at least two letters. Raises UserError for any other format."""
    words: list[WordInContext] = []
    for word, entries in parse_object(read_text(file), file).items():
        if not isinstance(entries, list):
            raise UserError(f"{file}: {word!r}: expected a list of contexts")
        for number, entry in enumerate(entries, 1):
            if not isinstance(entry, dict) or not isinstance(entry.get("context"), str):
                raise UserError(f'{file}: {word!r}, number {number}: expected {{"context": text, ...}}')
        if len(word) > 1:
            words += [WordInContext(word, i, entry["context"]) for i, entry in enumerate(entries)]
    if not words:
        raise UserError(f"{file}: no word of two letters or more with a context")
    return words


def read_shares(file: Path) -> dict[str, Floats]:
    """float[15] for every word: the share of children who use it at 16 .. 30 months, NaN where unknown.

    If a word has several rows, the first one is used. Raises UserError for a number that is not a share.
    """
    shares: dict[str, Floats] = {}
    for record in read_table(file):
        by_month = {str(month): record.number_or_missing(str(month)) for month in MONTHS}
        for month, share in by_month.items():
            if not (math.isnan(share) or 0 <= share <= 1):
                raise record.error(month, "a share in 0..1")
        shares.setdefault(record.text("word"), np.array(list(by_month.values())))
    return shares
