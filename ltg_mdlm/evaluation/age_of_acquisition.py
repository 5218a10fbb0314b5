"""Age of acquisition: does a model learn words in the order in which children do (Chang and Bergen 2022, TACL 10)?

A word's age is the middle of a sigmoid: for children, fitted to the share that uses the word at each age in months;
for a model, fitted to the negative surprisal of the word over log10 of the words seen in training.

Sigmoid curves fitted to points.  Suffixes: N points, P free parameters, G curves of a grid.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.records import Record, only_file, parse_object, read_table, read_text
from ltg_mdlm.evaluation.statistics import Floats, pearson
from ltg_mdlm.evaluation.tasks import Skip, Task, TaskResult, ask, data_name
from ltg_mdlm.inference.texts import Scorer, Text

MIN_CHECKPOINTS = 5
"""A sigmoid has four parameters."""


MIN_CONTEXTS = 20
"""Words with fewer are left out, as in the published evaluation."""


MONTHS = tuple(range(16, 31))


_NAME = re.compile(r"chck_(\d+)M")


class Milestone(NamedTuple):
    """A checkpoint that was kept for the number of words seen until then."""

    name: str
    """`chck_10M`"""
    open: Callable[[], Scorer]

    @property
    def words(self) -> int:
        """Words seen, by its name."""
        return words_of(self.name)


def words_of(name: str) -> int:
    """Words seen by a checkpoint with this name; 0 for any other."""
    match = _NAME.fullmatch(name)
    return int(match[1]) * 1_000_000 if match else 0


def milestones(folder: Path, open_scorer: Callable[[Path], Scorer]) -> list[Milestone]:
    """The `chck_*` checkpoints in a folder, in the order of training."""
    found = sorted(
        (path for path in folder.glob("chck_*") if words_of(path.name)), key=lambda path: words_of(path.name)
    )
    return [Milestone(path.name, partial(open_scorer, path)) for path in found]


class Asked(NamedTuple):
    """A word in one of its contexts."""

    word: str
    context_id: int
    context: str

    @property
    def text(self) -> Text:
        """The word scored after its context."""
        context = self.context.strip()
        return Text(f"{context} " if context else "", self.word)


class Ages(NamedTuple):
    """When a word is learnt; None if no sigmoid says so."""

    model: float | None
    """log10 of words seen"""
    human: float | None
    """months"""


class AgeOfAcquisition(Task):
    """Correlation of the ages at which a model and children learn words."""

    name = "AoA_word"
    prefixes = ("cdi_childes", "aoa", "AoA")
    fields = frozenset({"word", *map(str, MONTHS)})

    def __init__(self, milestones: Sequence[Milestone], model_name: str) -> None:
        self.milestones = milestones
        self.model_name = model_name

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Open one checkpoint after the other; `scorer` is not asked.

        Data are a JSON file {word: [{"context": text}, ...]} and a CSV file with the columns word, 16, ..., 30.
        """
        if len(self.milestones) < MIN_CHECKPOINTS:
            raise Skip(f"needs at least {MIN_CHECKPOINTS} chck_* checkpoints; found {len(self.milestones)}")
        asked, shares = read_contexts(only_file(path, ".json")), read_shares(only_file(path, ".csv"))
        surprisal_MA = np.array([_surprisals(milestone.open(), asked) for milestone in self.milestones])
        ages = self._ages(asked, surprisal_MA, shares)
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
            questions=len(asked),
            items=[{"id": word, "uid": self.name, **age._asdict()} for word, age in ages.items()],
            predictions=self._official(asked, surprisal_MA),
            place=self.name,
            predictions_file="surprisal.json",
            validated=False,
        )

    def _ages(self, asked: Sequence[Asked], surprisal_MA: Floats, shares: Mapping[str, Floats]) -> dict[str, Ages]:
        log_words_M = np.log10([milestone.words for milestone in self.milestones])
        columns: dict[str, list[int]] = defaultdict(list)
        for column, (word, _, _) in enumerate(asked):
            columns[word].append(column)
        return {
            word: Ages(
                model_age(log_words_M, surprisal_MA[:, own].mean(1)),
                human_age(shares[word]) if word in shares else None,
            )
            for word, own in columns.items()
        }

    def _official(self, asked: Sequence[Asked], surprisal_MA: Floats) -> dict[str, Any]:
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
                for entry, surprisal in zip(asked, surprisal_A, strict=True)
            ],
        }


def model_age(log_words_M: Floats, surprisal_M: Floats) -> float | None:
    """log10 of words seen at which the negative surprisal is halfway up; None if it does not rise, or not within."""
    curve = fit_sigmoid(log_words_M, -surprisal_M)
    is_within = log_words_M.min() < curve.middle < log_words_M.max()
    return curve.middle if curve.high > curve.low and is_within else None


def human_age(shares: Floats) -> float | None:
    """Months at which half of the children use a word, by a logistic curve; None if that is not within the months."""
    known = ~np.isnan(shares)
    if known.sum() < 3:
        return None
    months = np.array(MONTHS, np.float64)[known]
    middle = fit_sigmoid(months, shares[known], asymptotes=(0.0, 1.0)).middle
    return middle if months.min() < middle < months.max() else None


def read_contexts(file: Path) -> list[Asked]:
    """Words of two letters or more and of enough contexts, in each of them.  Raises UserError for another format."""
    words = parse_object(read_text(file), file)
    asked = [
        Asked(word, i, context)
        for word, entries in words.items()
        for i, context in enumerate(_contexts(entries, f"{file}: {word!r}"))
        if len(word) > 1 and len(entries) >= MIN_CONTEXTS
    ]
    if not asked:
        raise UserError(f"{file}: no word with {MIN_CONTEXTS} contexts or more")
    return asked


def _contexts(entries: object, where: str) -> list[str]:
    if not isinstance(entries, list):
        raise UserError(f"{where}: expected a list of contexts")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("context"), str):
            raise UserError(f'{where}, number {number}: expected {{"context": text, ...}}')
    return [entry["context"] for entry in entries]


def read_shares(file: Path) -> dict[str, Floats]:
    """float[15] for every word: the share of children who use it at 16 .. 30 months, NaN where unknown.

    Of several rows of one word, the first counts.  Raises UserError for a number that is not a share.
    """
    shares: dict[str, Floats] = {}
    for record in read_table(file):
        shares.setdefault(record.text("word"), np.array([_share(record, str(month)) for month in MONTHS]))
    return shares


def _share(record: Record, month: str) -> float:
    share = record.number_or_missing(month)
    if not (math.isnan(share) or 0 <= share <= 1):
        raise record.error(month, "a share in 0..1")
    return share


def _surprisals(scorer: Scorer, asked: Sequence[Asked]) -> list[float]:
    return [-score.log_likelihood for (score,) in ask(scorer, [[entry.text] for entry in asked])]


_GRID = 81
"""Middles and slopes that are tried first."""


_STEEPEST = 200.0
"""Of them, times the range of x; a steeper curve is a step between two points."""


_STEPS = 200


class Sigmoid(NamedTuple):
    """low + (high - low) / (1 + exp(-slope (x - middle))), with a positive slope; it falls if high < low."""

    low: float
    high: float
    middle: float
    """x of the value halfway between the asymptotes"""
    slope: float


def fit_sigmoid(x_N: Floats, y_N: Floats, asymptotes: tuple[float, float] | None = None) -> Sigmoid:
    """The sigmoid with the smallest sum of squared errors, with free or with given asymptotes.

    The best curve of a grid over middles within the range of x and slopes (in each, free asymptotes are a linear
    regression) is refined by the method of Levenberg and Marquardt.
    """
    start, span = float(x_N.min()), float(np.ptp(x_N))
    assert span > 0, "all x are equal"
    unit_N = (x_N - start) / span
    parameters_4 = _refine(_best_of_grid(unit_N, y_N, asymptotes), unit_N, y_N, free=asymptotes is None)
    low, high, middle, log_slope = parameters_4.tolist()
    return Sigmoid(low, high, start + span * middle, float(np.exp(log_slope)) / span)


def _best_of_grid(x_N: Floats, y_N: Floats, asymptotes: tuple[float, float] | None) -> Floats:
    """[low, high, middle, log slope] for x in 0..1."""
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


def _refine(parameters_4: Floats, x_N: Floats, y_N: Floats, free: bool) -> Floats:
    """Damped Gauss-Newton steps, of which only those that lower the error are made; the asymptotes move if `free`."""
    first = 0 if free else 2
    error_N, slope_N4 = _error_and_slope(parameters_4, x_N, y_N)
    damping = 1e-3
    for _ in range(_STEPS):
        slope_NP = slope_N4[:, first:]
        curvature_PP = slope_NP.T @ slope_NP
        damped_PP = curvature_PP + damping * np.diag(curvature_PP.diagonal() + 1e-12)
        tried_4 = parameters_4.copy()
        tried_4[first:] -= np.linalg.solve(damped_PP, slope_NP.T @ error_N)
        tried_error_N, tried_slope_N4 = _error_and_slope(tried_4, x_N, y_N)
        if tried_error_N @ tried_error_N < error_N @ error_N:
            parameters_4, error_N, slope_N4 = tried_4, tried_error_N, tried_slope_N4
            damping = max(damping / 5, 1e-12)
        else:
            damping *= 5
            if damping > 1e9:  # steps no longer change a float
                break
    return parameters_4


def _error_and_slope(parameters_4: Floats, x_N: Floats, y_N: Floats) -> tuple[Floats, Floats]:
    """float[N], and its derivatives float[N, 4]."""
    low, high, middle, log_slope = parameters_4
    slope = np.exp(np.clip(log_slope, -20, 20))
    shape_N = _logistic(slope * (x_N - middle))
    bend_N = (high - low) * shape_N * (1 - shape_N) * slope
    derivatives_N4 = np.stack([1 - shape_N, shape_N, -bend_N, bend_N * (x_N - middle)], axis=1)
    return low + (high - low) * shape_N - y_N, derivatives_N4


def _logistic(x: Floats) -> Floats:
    value: Floats = 0.5 * (1 + np.tanh(x / 2))
    return value
