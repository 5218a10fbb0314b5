"""Reading times: does a word's surprisal explain how long people look at it, beyond length, frequency and place?

Words of 205 sentences with eye-tracking and self-paced reading times (de Varda, Marelli and Amenta 2024,
Behavior Research Methods 56). Suffixes: N words, P predictors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.records import Record, only_file, read_table
from ltg_mdlm.evaluation.statistics import Floats, explained_by_last
from ltg_mdlm.evaluation.tasks import Task, TaskResult, ask_surprisals, data_name
from ltg_mdlm.inference.texts import NextWord, Scorer

EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")


SELF_PACED = "self_paced_reading_time"


_OF_WORD = ("Subtlex_log10", "length", "context_length")


_OF_PREVIOUS = "prev_length"


class ReadWord(NamedTuple):
    """A word where it was read."""

    own: NextWord
    previous: NextWord | None
    """The word before it; None if that one begins the sentence."""
    numbers: dict[str, float]
    """Reading times and predictors; NaN where the file has none."""


class Surprised(NamedTuple):
    """A word and what a model makes of it."""

    word: ReadWord
    surprisal: float
    """in nats"""
    previous: float
    """Surprisal of the word before it; NaN if there is none."""


class Reading(Task):
    """Gain in explained variance by surprisal, in per cent, for eye tracking (mean of four) and self-paced reading."""

    name = "reading"
    prefixes = ("reading",)
    fields = frozenset({"item", "word", "RTfirstfix", SELF_PACED})

    def read(self, path: Path) -> list[ReadWord]:
        """The words of the CSV file in a folder.  Raises UserError for data that cannot be read."""
        return [_read_word(record) for record in read_table(only_file(path, ".csv"))]

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Surprisals of all words and of the words before them."""
        words = self.read(path)
        surprisal = ask_surprisals(
            scorer, (asked for word in words for asked in (word.own, word.previous) if asked is not None)
        )
        rows = [
            Surprised(word, surprisal[word.own], surprisal[word.previous] if word.previous else float("nan"))
            for word in words
        ]
        gains = _gains(rows, path)
        return TaskResult(
            task=self.name,
            data=data_name(path),
            metric="eye_tracking_gain_percent",
            figures={
                "eye_tracking_gain_percent": fmean(gains[measure] for measure in EYE_TRACKING),
                "self_paced_reading_gain_percent": gains[SELF_PACED],
            },
            questions=len(rows),
            breakdown={"measure": gains},
            items=[_item(i, row) for i, row in enumerate(rows)],
            predictions={
                "reading": {
                    "predictions": [
                        {"id": i, "pred": row.surprisal, "prev_pred": row.previous} for i, row in enumerate(rows)
                    ]
                }
            },
            place=self.name,
        )


def _read_word(record: Record) -> ReadWord:
    # The published file was written by pandas, which took the context "None" of one sentence for an empty cell; the
    # published evaluation reads it back as text, and the same text as the context of a previous word as none.
    context = str(record.values.get("item", "")) or "None"
    has_previous = record.values.get("prev_item", "") not in ("", "None")
    return ReadWord(
        own=NextWord(context, record.text("word")),
        previous=NextWord(record.text("prev_item"), record.text("prev_word")) if has_previous else None,
        numbers={key: record.number_or_missing(key) for key in (*EYE_TRACKING, SELF_PACED, *_OF_WORD, _OF_PREVIOUS)},
    )


def _item(i: int, row: Surprised) -> dict[str, str | float | None]:
    return {
        "id": f"reading_{i}",
        "uid": "reading",
        "word": row.word.own.word,
        "surprisal": row.surprisal,
        "previous_surprisal": row.previous if row.word.previous else None,
    }


def _gains(rows: Sequence[Surprised], path: Path) -> dict[str, float]:
    """Per cent for each measure.  Self-paced reading lags, so there the word before counts among the predictors."""
    table = {key: np.array([row.word.numbers[key] for row in rows]) for key in rows[0].word.numbers}
    of_word = [table[key] for key in _OF_WORD]
    of_previous = [table[_OF_PREVIOUS], np.array([row.previous for row in rows])]
    surprisal_N = np.array([row.surprisal for row in rows])
    gains = {measure: gain_percent(table[measure], of_word, surprisal_N) for measure in EYE_TRACKING}
    gains[SELF_PACED] = gain_percent(table[SELF_PACED], [*of_word, *of_previous], surprisal_N)
    undefined = [measure for measure, gain in gains.items() if np.isnan(gain)]
    if undefined:
        raise UserError(f"{path}: too few rows, or always the same number, in {', '.join(undefined)}")
    return gains


def gain_percent(target_N: Floats, baseline: Sequence[Floats], surprisal_N: Floats) -> float:
    """Per cent of the variance that baseline predictors and their products leave unexplained, which surprisal explains.

    Words of which a number is missing (NaN) are left out.
    """
    products = [a_N * b_N for a_N, b_N in combinations(baseline, 2)]
    table_NP = np.stack([target_N, *baseline, *products, surprisal_N], axis=1)
    table_NP = table_NP[~np.isnan(table_NP).any(1)]
    return 100 * explained_by_last(table_NP[:, 1:], table_NP[:, 0])
