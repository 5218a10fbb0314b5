"""Age of acquisition: does a model learn words in the same order as children (Chang and Bergen 2022, TACL 10)?

The age of a word is the midpoint of a sigmoid. For children, the sigmoid is fitted to the share of children that use
the word at each age in months. For a model, it is fitted to the negative surprisal of the word over log10 of the words
seen in training.

Shape suffixes: M checkpoints (milestones), A words in context, N points of a curve, P free parameters, G curves of a
grid.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.json_files import parse_object, read_text
from ltg_mdlm.data.records import only_file, read_table
from ltg_mdlm.evaluation.statistics import Floats, pearson
from ltg_mdlm.evaluation.tasks import Skip, Task, TaskResult, ask, data_name
from ltg_mdlm.inference.texts import Scorer, Text

MIN_CHECKPOINTS = 5
"""A sigmoid has four parameters."""

MIN_CONTEXTS = 20
"""Words with fewer contexts are left out, as in the published evaluation."""

MONTHS = tuple(range(16, 31))
"""Ages at which the use of words by children is known."""

_CHECKPOINT_NAME = re.compile(r"chck_(\d+)M")

_GRID = 81
"""Number of midpoints, and of slopes, in the initial grid search."""

_STEEPEST = 200.0
"""Largest slope of the grid, times the range of x; a steeper curve is a step between two points."""


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
    """Words seen by the checkpoint with this name; 0 for names other than `chck_<millions>M`."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    return int(match[1]) * 1_000_000 if match else 0


def milestones(folder: Path, open_scorer: Callable[[Path], Scorer]) -> list[Milestone]:
    """The `chck_*` checkpoints in a folder, in the order of training."""
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
        context = self.context.strip()
        return Text(f"{context} " if context else "", self.word)


class Ages(NamedTuple):
    """The ages of a word; None where the curve gives no age."""

    model: float | None
    """log10 of words seen"""
    human: float | None
    """months"""


class AgeOfAcquisition(Task):
    """Correlation between the ages at which a model and children learn words."""

    name = "AoA_word"
    prefixes = ("cdi_childes", "aoa", "AoA")
    fields = frozenset({"word", *map(str, MONTHS)})

    def __init__(self, milestones: Sequence[Milestone], model_name: str) -> None:
        self.milestones = milestones
        self.model_name = model_name

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Score all words with one checkpoint after the other; `scorer` is not used.

        The data are a JSON file {word: [{"context": text}, ...]} and a CSV file with the columns word, 16, ..., 30.
        """
        if len(self.milestones) < MIN_CHECKPOINTS:
            raise Skip(f"needs at least {MIN_CHECKPOINTS} chck_* checkpoints; found {len(self.milestones)}")
        words, shares = read_contexts(only_file(path, ".json")), read_shares(only_file(path, ".csv"))
        texts = [[word.text] for word in words]
        surprisal_MA = np.array(
            [[-score.log_likelihood for (score,) in ask(milestone.open(), texts)] for milestone in self.milestones]
        )
        log_words_M = np.log10([milestone.words for milestone in self.milestones])
        columns: dict[str, list[int]] = defaultdict(list)
        for column, entry in enumerate(words):
            columns[entry.word].append(column)
        ages = {
            word: Ages(
                model_age(log_words_M, surprisal_MA[:, own].mean(1)),
                human_age(shares[word]) if word in shares else None,
            )
            for word, own in columns.items()
        }
        both = [(age.model, age.human) for age in ages.values() if age.model is not None and age.human is not None]
        return TaskResult(
            task=self.name,
            data=data_name(path),
            metric="pearson",
            figures={
                "pearson": pearson([model for model, _ in both], [human for _, human in both]),
                "words": len(both),
                "words_without_model_age": sum(age.model is None for age in ages.values()),
                "words_without_human_age": sum(age.human is None for age in ages.values()),
            },
            questions=len(words),
            items=[{"id": word, "uid": self.name, **age._asdict()} for word, age in ages.items()],
            predictions=self._official_predictions(words, surprisal_MA),
            place=self.name,
            predictions_file="surprisal.json",
            validated=False,
        )

    def _official_predictions(self, words: Sequence[WordInContext], surprisal_MA: Floats) -> dict[str, Any]:
        steps = len(self.milestones)
        return {
            "metadata": {
                "model_name": self.model_name,
                "use_bos_only": False,
                "total_steps": steps,
                "completed_steps": steps,
            },
            "results": [
                {
                    "step": milestone.name,
                    "word_count": milestone.words,
                    "target_word": entry.word,
                    "context_id": entry.context_id,
                    "context": entry.context,
                    "surprisal": surprisal,
                }
                for milestone, surprisal_A in zip(self.milestones, surprisal_MA.tolist(), strict=True)
                for entry, surprisal in zip(words, surprisal_A, strict=True)
            ],
        }


def model_age(log_words_M: Floats, surprisal_M: Floats) -> float | None:
    """log10 of words seen at the midpoint of the fitted sigmoid.

    None if the negative surprisal does not rise, or the midpoint is outside the range of the checkpoints.
    """
    curve = fit_sigmoid(log_words_M, -surprisal_M)
    is_within = log_words_M.min() < curve.middle < log_words_M.max()
    return curve.middle if curve.high > curve.low and is_within else None


def human_age(shares: Floats) -> float | None:
    """Age in months at which half of the children use a word, by a logistic curve; None if it is outside the months."""
    known = ~np.isnan(shares)
    if known.sum() < 3:
        return None
    months = np.array(MONTHS, np.float64)[known]
    middle = fit_sigmoid(months, shares[known], asymptotes=(0.0, 1.0)).middle
    return middle if months.min() < middle < months.max() else None


def read_contexts(file: Path) -> list[WordInContext]:
    """All contexts of the words with at least two letters and `MIN_CONTEXTS` contexts.

    Raises UserError for any other format.
    """
    words: list[WordInContext] = []
    for word, entries in parse_object(read_text(file), file).items():
        if not isinstance(entries, list):
            raise UserError(f"{file}: {word!r}: expected a list of contexts")
        for number, entry in enumerate(entries, 1):
            if not isinstance(entry, dict) or not isinstance(entry.get("context"), str):
                raise UserError(f'{file}: {word!r}, number {number}: expected {{"context": text, ...}}')
        if len(word) > 1 and len(entries) >= MIN_CONTEXTS:
            words += [WordInContext(word, i, entry["context"]) for i, entry in enumerate(entries)]
    if not words:
        raise UserError(f"{file}: no word with {MIN_CONTEXTS} contexts or more")
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


class Sigmoid(NamedTuple):
    """low + (high - low) / (1 + exp(-slope (x - middle))), with a positive slope; it falls if high < low."""

    low: float
    high: float
    middle: float
    """x of the value halfway between the asymptotes"""
    slope: float


def fit_sigmoid(x_N: Floats, y_N: Floats, asymptotes: tuple[float, float] | None = None) -> Sigmoid:
    """The least-squares sigmoid, with free or with given asymptotes.

    The fit starts from the best curve of a grid over midpoints and slopes, because the error has several local minima.
    It is refined by the Levenberg-Marquardt method.
    """
    from scipy.optimize import least_squares

    start, span = float(x_N.min()), float(np.ptp(x_N))
    assert span > 0, "all x are equal"
    unit_N = (x_N - start) / span
    initial_4 = _best_of_grid(unit_N, y_N, asymptotes)
    fixed_F = initial_4[:0] if asymptotes is None else initial_4[:2]

    def parts(free_P: Floats) -> tuple[Floats, float, float, Floats]:
        """[low, high, middle, log slope], rise, slope, and the logistic curve."""
        parameters_4 = np.concatenate([fixed_F, free_P])
        low, high, middle, log_slope = parameters_4.tolist()
        slope = math.exp(min(max(log_slope, -20), 20))
        return parameters_4, high - low, slope, _logistic(slope * (unit_N - middle))

    def error(free_P: Floats) -> Floats:
        parameters_4, rise, _, shape_N = parts(free_P)
        residual_N: Floats = parameters_4[0] + rise * shape_N - y_N
        return residual_N

    def jacobian(free_P: Floats) -> Floats:
        parameters_4, rise, slope, shape_N = parts(free_P)
        bend_N = rise * slope * shape_N * (1 - shape_N)
        columns_N4 = np.stack([1 - shape_N, shape_N, -bend_N, bend_N * (unit_N - parameters_4[2])], axis=1)
        return columns_N4[:, len(fixed_F) :]

    tolerances = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
    fitted = least_squares(error, initial_4[len(fixed_F) :], jacobian, method="lm", x_scale="jac", **tolerances)
    low, high, middle, log_slope = np.concatenate([fixed_F, fitted.x]).tolist()
    return Sigmoid(low, high, start + span * middle, math.exp(min(log_slope, 700)) / span)


def _best_of_grid(x_N: Floats, y_N: Floats, asymptotes: tuple[float, float] | None) -> Floats:
    """[low, high, middle, log slope] for x in 0..1; free asymptotes are a linear regression for every curve."""
    middle_G = np.linspace(0, 1, _GRID).repeat(_GRID)
    log_slope_G = np.tile(np.linspace(0, np.log(_STEEPEST), _GRID), _GRID)
    shape_GN = _logistic(np.exp(log_slope_G)[:, None] * (x_N - middle_G[:, None]))
    if asymptotes is None:
        varying_GN = shape_GN - shape_GN.mean(1, keepdims=True)
        rise_G = varying_GN @ y_N / np.maximum(np.square(varying_GN).sum(1), np.finfo(np.float64).tiny)
        low_G = y_N.mean() - rise_G * shape_GN.mean(1)
    else:
        low_G, rise_G = np.full(_GRID**2, asymptotes[0]), np.full(_GRID**2, asymptotes[1] - asymptotes[0])
    error_G = np.square(low_G[:, None] + rise_G[:, None] * shape_GN - y_N).sum(1)
    best = int(error_G.argmin())
    return np.array([low_G[best], low_G[best] + rise_G[best], middle_G[best], log_slope_G[best]])


def _logistic(x: Floats) -> Floats:
    value: Floats = 0.5 * (1 + np.tanh(x / 2))
    return value
