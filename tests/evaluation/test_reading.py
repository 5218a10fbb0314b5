"""Reading times, on top of a scorer whose surprisals are known."""

import csv
import json
from itertools import combinations

import numpy as np
import pytest
from support.corpora import real_data
from support.scorers import TableScorer

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation.reading import EYE_TRACKING, SELF_PACED, Reading
from ltg_mdlm.inference.texts import NextWord


def write_table(file, rows):
    file.parent.mkdir(exist_ok=True, parents=True)
    with file.open("w", encoding="utf-8", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file.parent


def official_gain(table, target, predictors, surprisal_N):
    """(R2 - R2 of the baseline) / (1 - R2 of the baseline), by projections onto the columns."""
    columns = [*predictors, *(table[a] * table[b] for a, b in combinations_of(table, predictors))]
    base = np.column_stack([np.ones(len(surprisal_N)), *(table[c] if isinstance(c, str) else c for c in columns)])
    known = ~np.isnan(np.column_stack([base, table[target], surprisal_N])).any(1)
    target_N, base = table[target][known], base[known]

    def r2(design):
        q = np.linalg.qr(design / np.linalg.norm(design, axis=0))[0]
        rest = target_N - q @ (q.T @ target_N)
        return 1 - rest @ rest / np.square(target_N - target_N.mean()).sum()

    r2_base, r2_all = r2(base), r2(np.column_stack([base, surprisal_N[known]]))
    return 100 * (r2_all - r2_base) / (1 - r2_base)


def combinations_of(table, names):
    return list(combinations(names, 2))


def reading_row(**changes):
    numbers = dict.fromkeys(
        (*EYE_TRACKING, SELF_PACED, "Subtlex_log10", "length", "context_length", "prev_length"), 1.0
    )
    return {"item": "He", "word": "ran.", "prev_item": "", "prev_word": "", **numbers, **changes}


def test_gains_of_the_published_reading_times_are_those_of_the_official_formula():
    folder = real_data("babylm_eval_2025", "fast_eval", "reading")
    scorer = TableScorer(surprisal=lambda word: len(word.word) ** 0.5 + (len(word.context) * 7 % 13) / 5)
    result = Reading().run(folder, scorer)
    assert result.questions == 1726
    assert len(scorer.words) == len(set(scorer.words))
    with (folder / "reading_data.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    keys = (*EYE_TRACKING, SELF_PACED, "Subtlex_log10", "length", "context_length", "prev_length")
    table = {key: np.array([float(row[key] or "nan") for row in rows]) for key in keys}
    surprisal_N = np.array([scorer.surprisal(NextWord(row["item"] or "None", row["word"])) for row in rows])
    table["prev_pred"] = np.array(
        [
            scorer.surprisal(NextWord(row["prev_item"], row["prev_word"]))
            if row["prev_item"] not in ("", "None")
            else np.nan
            for row in rows
        ]
    )
    of_word = ["Subtlex_log10", "length", "context_length"]
    expected = {measure: official_gain(table, measure, of_word, surprisal_N) for measure in EYE_TRACKING}
    expected[SELF_PACED] = official_gain(table, SELF_PACED, [*of_word, "prev_length", "prev_pred"], surprisal_N)
    assert result.breakdown["measure"] == pytest.approx(expected, abs=1e-8)
    assert result.value == pytest.approx(np.mean([expected[measure] for measure in EYE_TRACKING]))
    assert result.figures["self_paced_reading_gain_percent"] == pytest.approx(expected[SELF_PACED])
    assert result.other_files["report.txt"].splitlines() == [
        f"EYE TRACKING SCORE: {result.value:.2f}",
        f"SELF-PACED READING SCORE: {expected[SELF_PACED]:.2f}",
    ]
    predictions = result.predictions["reading"]["predictions"]
    assert [row["pred"] for row in predictions] == surprisal_N.tolist()
    assert np.array_equal([row["prev_pred"] for row in predictions], table["prev_pred"], equal_nan=True)


def test_the_first_word_of_a_sentence_may_be_called_none(tmp_path):
    """pandas wrote that context as an empty cell, and reads it as none where it comes before a previous word."""
    rows = [reading_row(item="", word="of"), reading_row(item="None of", word="us", prev_item="None", prev_word="of")]
    words = Reading().read(write_table(tmp_path / "reading" / "data.csv", rows))
    assert [(word.own, word.previous) for word in words] == [
        (NextWord("None", "of"), None),
        (NextWord("None of", "us"), None),
    ]


def test_surprisal_that_explains_all_that_is_left_gains_a_hundred_per_cent(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        predictors = {name: rng.normal() for name in ("Subtlex_log10", "length", "context_length", "prev_length")}
        surprisal = i * i % 17
        times = dict.fromkeys(
            (*EYE_TRACKING, SELF_PACED), 3 * surprisal + predictors["length"] * predictors["context_length"]
        )
        rows.append(reading_row(word="w" * (surprisal + 1), item=f"It {i}", **predictors, **times))
        rows[-1] |= {"prev_item": "It", "prev_word": f"{i % 7 * 'x'}y"}
    result = Reading().run(write_table(tmp_path / "reading" / "data.csv", rows), TableScorer())
    assert list(result.figures.values()) == pytest.approx([100, 100])


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([reading_row(RTfirstfix="slow")], r"data\.csv:2: RTfirstfix must be a number, not 'slow'"),
        ([reading_row(word=" ")], r"data\.csv:2: word must be text"),
        ([reading_row(prev_item="He")], r"data\.csv:2: prev_word must be text"),
        ([{"item": "He", "word": "ran."}], "RTfirstfix is missing"),
        ([reading_row()] * 30, f"always the same number, in {', '.join((*EYE_TRACKING, SELF_PACED))}"),
    ],
)
def test_reading_times_that_cannot_be_used_are_the_users_error(tmp_path, rows, complaint):
    with pytest.raises(UserError, match=complaint):
        Reading().run(write_table(tmp_path / "reading" / "data.csv", rows), TableScorer())


def test_the_other_official_files_hold_every_measure_that_the_data_have(tmp_path):
    rng = np.random.default_rng(0)
    columns = (*EYE_TRACKING, SELF_PACED, "N400", "Subtlex_log10", "length", "context_length", "prev_length")
    rows = [
        reading_row(word=f"w{i}", prev_item="He", prev_word="a", **{name: float(rng.normal()) for name in columns})
        for i in range(60)
    ]
    rows[3]["N400"] = ""
    surprisals = {NextWord("He", f"w{i}"): float(rng.normal()) for i in range(60)} | {NextWord("He", "a"): 1.0}
    files = (
        Reading()
        .run(write_table(tmp_path / "reading" / "t.csv", rows), TableScorer(surprisal=surprisals.__getitem__))
        .other_files
    )
    measures = [*EYE_TRACKING, SELF_PACED, "N400"]
    lines = dict(line.split("\t") for line in files["correlations.txt"].splitlines())
    assert list(lines) == measures
    without = [i for i in range(60) if i != 3]
    n400 = [rows[i]["N400"] for i in without], [surprisals[NextWord("He", f"w{i}")] for i in without]
    assert lines["N400"] == f"{np.corrcoef(*n400)[0, 1]:.4f}"
    for name in ("predictive_power", "predictive_power_spillover"):
        found = [json.loads(line) for line in files[f"{name}.jsonl"].splitlines()]
        assert [row["Predicted variable"] for row in found] == measures
        assert all(0 <= row["P-value"] <= 1 and row["Change in R2 from baseline"] >= -1e-9 for row in found)
    first = json.loads(files["prediction.jsonl"].splitlines()[0])
    assert first == {
        "Index": 0,
        "Sentence": "He",
        "Word": "w0",
        "Logprob": surprisals[NextWord("He", "w0")],
        "Prev_Logprob": 1.0,
    }
