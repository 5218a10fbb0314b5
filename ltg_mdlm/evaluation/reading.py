"""Reading times: how much variance does surprisal explain beyond length, frequency and position of a word?

The data are the words of 205 sentences with eye-tracking and self-paced reading times (de Varda, Marelli and Amenta
2024, Behavior Research Methods 56).

Shape suffixes: N words, P predictors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.records import only_file, read_table
from ltg_mdlm.evaluation.result_folders import to_json
from ltg_mdlm.evaluation.statistics import Floats, explained_by_last, fit
from ltg_mdlm.evaluation.tasks import Task, TaskResult, ask_surprisals, data_name
from ltg_mdlm.inference.texts import NextWord, Scorer

EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
"""Columns of the four eye-tracking measures."""

SELF_PACED = "self_paced_reading_time"

MEASURES = (*EYE_TRACKING, SELF_PACED, "ELAN", "LAN", "N400", "P600", "EPNP", "PNP")
"""Columns of all measures; the last six, of EEG, count in no score and may be missing."""

OF_WORD = ("Subtlex_log10", "length", "context_length")
"""Columns of the predictors of a word."""

OF_PREVIOUS = "prev_length"
"""Column of the additional predictor of self-paced reading."""


class ReadWord(NamedTuple):
    """A word of a sentence, with its reading times."""

    own: NextWord
    previous: NextWord | None
    """The word before it; None if that is the first word of the sentence."""
    numbers: dict[str, float]
    """Reading times and predictors; NaN where the file has none."""


@dataclass(frozen=True, kw_only=True)
class Reading(Task):
    """Gain in explained variance by surprisal, in per cent, for eye tracking (mean of four) and self-paced reading."""

    name: str = "reading"
    prefixes: tuple[str, ...] = ("reading",)
    fields: frozenset[str] | None = frozenset({"item", "word", "RTfirstfix", SELF_PACED})

    def read(self, path: Path) -> list[ReadWord]:
        """The words of the CSV file in a folder. Raises UserError for data that cannot be read."""
        words = []
        for record in read_table(only_file(path, ".csv")):
            # pandas wrote the published file, and stored the context "None" of one sentence as an empty cell. The
            # published evaluation reads this cell as text, but the same text as the context of a previous word as
            # missing.
            context = str(record.values.get("item", "")) or "None"
            own, previous = NextWord(context, record.text("word")), None
            if record.values.get("prev_item", "") not in ("", "None"):
                previous = NextWord(record.text("prev_item"), record.text("prev_word"))
            columns = (*EYE_TRACKING, SELF_PACED, *OF_WORD, OF_PREVIOUS)
            eeg = (key for key in MEASURES if key not in columns and key in record.values)
            numbers = {key: record.number_or_missing(key) for key in (*columns, *eeg)}
            words.append(ReadWord(own, previous, numbers))
        return words

    def run(self, path: Path, scorer: Scorer) -> TaskResult:
        """Compute the surprisals of all words and of the words before them."""
        words = self.read(path)
        surprisal_of = ask_surprisals(scorer, (w for word in words for w in (word.own, word.previous) if w is not None))
        surprisals = [surprisal_of[word.own] for word in words]
        previous = [surprisal_of[word.previous] if word.previous else float("nan") for word in words]
        gains = gains_percent(words, surprisals, previous, path)
        eye_tracking, self_paced = fmean(gains[measure] for measure in EYE_TRACKING), gains[SELF_PACED]
        return TaskResult(
            task=self.name,
            data=data_name(path),
            metric="eye_tracking_gain_percent",
            figures={"eye_tracking_gain_percent": eye_tracking, "self_paced_reading_gain_percent": self_paced},
            questions=len(words),
            breakdown={"measure": gains},
            items=[
                {
                    "id": f"reading_{i}",
                    "uid": "reading",
                    "word": word.own.word,
                    "surprisal": surprisals[i],
                    "previous_surprisal": previous[i] if word.previous else None,
                }
                for i, word in enumerate(words)
            ],
            predictions={
                "reading": {
                    "predictions": [
                        {"id": i, "pred": surprisals[i], "prev_pred": previous[i]} for i in range(len(words))
                    ]
                }
            },
            place=self.name,
            other_files={
                **official_files(words, surprisals, previous),
                "report.txt": f"EYE TRACKING SCORE: {eye_tracking:.2f}\nSELF-PACED READING SCORE: {self_paced:.2f}\n",
            },
        )


def gains_percent(
    words: Sequence[ReadWord], surprisals: Sequence[float], previous: Sequence[float], path: Path
) -> dict[str, float]:
    """Gain in per cent for each measure, from the surprisals of the words and of the words before them (NaN: none).

    Self-paced reading lags behind, so its baseline also contains length and surprisal of the previous word.

    Raises UserError, which names `path`, if a gain is undefined.
    """
    table = {key: np.array([word.numbers[key] for word in words]) for key in words[0].numbers}
    of_word = [table[key] for key in OF_WORD]
    of_previous = [table[OF_PREVIOUS], np.array(previous)]
    surprisal_N = np.array(surprisals)
    gains = {measure: gain_percent(table[measure], of_word, surprisal_N) for measure in EYE_TRACKING}
    gains[SELF_PACED] = gain_percent(table[SELF_PACED], [*of_word, *of_previous], surprisal_N)
    undefined = [measure for measure, gain in gains.items() if np.isnan(gain)]
    if undefined:
        raise UserError(f"{path}: too few rows, or always the same number, in {', '.join(undefined)}")
    return gains


def gain_percent(target_N: Floats, baseline: Sequence[Floats], surprisal_N: Floats) -> float:
    """Percentage of the variance that surprisal explains beyond the baseline predictors and their products.

    Words with a missing number (NaN) are left out.
    """
    products = [a_N * b_N for a_N, b_N in combinations(baseline, 2)]
    table_NP = np.stack([target_N, *baseline, *products, surprisal_N], axis=1)
    table_NP = table_NP[~np.isnan(table_NP).any(1)]
    return 100 * explained_by_last(table_NP[:, 1:], table_NP[:, 0])


def official_files(words: Sequence[ReadWord], surprisals: Sequence[float], previous: Sequence[float]) -> dict[str, str]:
    """The other files of the official pipeline by name, for the measures that the data have.

    `correlations.txt` has Pearson's correlation of surprisal with every measure, `predictive_power.jsonl` the
    regression of every measure on surprisal and the predictors of the word, `predictive_power_spillover.jsonl` also on
    those of the previous word, and `prediction.jsonl` the surprisals.

    Args:
        surprisals: of the words.
        previous: of the words before them; NaN: none.
    """
    table = {key: np.array([word.numbers[key] for word in words]) for key in words[0].numbers}
    surprisal_N = np.array(surprisals)
    measures = [measure for measure in MEASURES if measure in table]
    of_word = [table[key] for key in OF_WORD]
    of_previous = [table[OF_PREVIOUS], np.array(previous)]
    correlations, regressions = [], {"predictive_power": of_word, "predictive_power_spillover": of_word + of_previous}
    for measure in measures:
        there_N = ~np.isnan(table[measure])
        r = np.corrcoef(surprisal_N[there_N], table[measure][there_N])[0, 1]
        correlations.append(f"{measure}\t{r:.4f}\n")
    files = {"correlations.txt": "".join(correlations)}
    for name, baseline in regressions.items():
        products = [a_N * b_N for a_N, b_N in combinations(baseline, 2)]
        lines = []
        for measure in measures:
            table_NP = np.stack([table[measure], *baseline, *products, surprisal_N], axis=1)
            table_NP = table_NP[~np.isnan(table_NP).any(1)]
            without, whole = fit(table_NP[:, 1:-1], table_NP[:, 0]), fit(table_NP[:, 1:], table_NP[:, 0])
            lines.append(
                {
                    "Predicted variable": measure,
                    "Coefficient": whole.coefficient,
                    "Number of standard deviations": whole.t,
                    "P-value": whole.p,
                    "R2": whole.r2,
                    "Change in R2 from baseline": whole.r2 - without.r2,
                    "AIC": whole.aic,
                    "Change in AIC from baseline": whole.aic - without.aic,
                }
            )
        files[f"{name}.jsonl"] = "".join(map(to_json, lines))
    files["prediction.jsonl"] = "".join(
        to_json(
            {
                "Index": i,
                "Sentence": word.own.context,
                "Word": word.own.word,
                "Logprob": surprisals[i],
                "Prev_Logprob": previous[i],
            }
        )
        for i, word in enumerate(words)
    )
    return files
