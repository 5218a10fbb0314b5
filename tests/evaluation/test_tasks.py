"""Evaluation tasks on top of a scorer whose scores are known."""

import csv
import json
import math
from itertools import combinations

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import real_data
from support.scorers import TableScorer

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation.multiple_choice import (
    Blimp,
    Comps,
    EntityTracking,
    Ewok,
    WugAdjectives,
    WugPastTenses,
    share_of_first,
)
from ltg_mdlm.evaluation.reading import EYE_TRACKING, SELF_PACED, Reading
from ltg_mdlm.inference.choices import answer
from ltg_mdlm.inference.texts import NextWord, Question, Text, TextScore


def write_rows(file, *rows):
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file.parent


def write_table(file, rows):
    file.parent.mkdir(exist_ok=True, parents=True)
    with file.open("w", encoding="utf-8", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file.parent


def prefers(*good):
    """A scorer to which texts that hold one of these are likely, and all others are equally unlikely."""
    return TableScorer(lambda text: 0.0 if any(part in text.prefix + text.completion for part in good) else -1.0)


# Multiple choice.


def test_scores_that_are_no_numbers_are_a_tie_and_lose_against_numbers():
    question = Question((Text("", "a"), Text("", "b")), "uid")
    nothing, something = TextScore(math.nan, 1), TextScore(-5.0, 1)
    assert answer(question, [nothing, nothing]).correct == 0.5
    assert answer(question, [nothing, something]).correct == 0
    assert answer(question, [something, nothing]).correct == 1


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=5), st.data())
def test_a_tie_counts_what_guessing_among_the_best_would(values, data):
    right = data.draw(st.integers(0, len(values) - 1))
    question = Question(tuple(Text("", str(i)) for i in range(len(values))), "uid", right)
    found = answer(question, [TextScore(float(value), 1) for value in values])
    winners = [i for i in range(len(values)) if values[i] >= max(values)]
    expected = sum(winner == right for winner in winners) / len(winners)
    assert (found.chosen, found.correct, found.tied) == (int(np.argmax(values)), expected, len(winners) > 1)
    assert found.margin == values[right] - max(value for i, value in enumerate(values) if i != right)


def test_minimal_pairs_are_whole_sentences_and_divided_in_three_ways(tmp_path):
    pair = {"sentence_good": "Dogs run.", "sentence_bad": "Dogs runs.", "UID": "sva", "field": "syntax_semantics"}
    rows = [pair | {"linguistics_term": "agreement"}, pair | {"UID": "other", "linguistics_term": "agreement"}]
    write_rows(tmp_path / "blimp_fast" / "sva.jsonl", rows[0], rows[1], rows[0] | {"sentence_good": "Dogs walk."})
    scorer = prefers("run.")
    result = Blimp().run(tmp_path / "blimp_fast", scorer)
    assert scorer.asked[:2] == [Text("", "Dogs run."), Text("", "Dogs runs.")]
    assert result.breakdown == {
        "field": {"syntax/semantics": pytest.approx(2.5 / 3)},
        "UID": {"sva": 0.75, "other": 1.0},
        "linguistics_term": {"agreement": pytest.approx(2.5 / 3)},
    }
    assert (result.value, result.figures["tie_rate"], result.questions) == (0.875, pytest.approx(1 / 3), 3)
    assert (result.place, result.validated) == ("blimp/blimp_fast", True)
    assert result.predictions["sva"]["predictions"] == [
        {"id": "sva_0", "pred": "Dogs run."},
        {"id": "sva_1", "pred": "Dogs walk."},
    ]
    assert result.items[2] == {
        "id": "sva_1",
        "uid": "sva",
        "correct": 0.5,
        "log_likelihoods": [-1.0, -1.0],
        "tokens": [2, 2],
    }


def test_the_supplement_is_divided_as_the_official_report_does(tmp_path):
    folder = write_rows(tmp_path / "supplement_fast" / "hypernym.jsonl", {"sentence_good": "A.", "sentence_bad": "B."})
    result = Blimp().run(folder, prefers("A"))
    assert result.breakdown == {
        "field": {"supplement": 1.0},
        "UID": {"hypernym": 1.0},
        "linguistics_term": {"supplement": 1.0},
    }
    assert result.place == "blimp/supplement_fast"


EWOK = {
    "Context1": "It is hot.",
    "Context2": "It is cold.",
    "Target1": "She sweats.",
    "Target2": "She freezes.",
    "Domain": "physics",
    "ContextType": "direct",
    "ContextDiff": "antonym",
    "TargetDiff": "verb",
}


def test_ewok_compares_two_targets_after_the_first_context(tmp_path):
    folder = write_rows(tmp_path / "ewok_fast" / "physics.jsonl", EWOK, EWOK | {"Target1": "She melts.", "Domain": "b"})
    scorer = prefers("sweats")
    result = Ewok().run(folder, scorer)
    assert scorer.asked[:2] == [Text("It is hot.", " She sweats."), Text("It is hot.", " She freezes.")]
    assert result.breakdown["UID"] == {"physics": 1.0, "b": 0.5}
    assert list(result.breakdown) == ["UID", "context_type", "context_contrast", "target_contrast"]
    assert result.predictions["physics"]["predictions"] == [{"id": "physics_0", "pred": " She sweats."}]
    assert (result.value, result.validated) == (0.75, False)


def tracking(numops, right="the ball."):
    return {"input_prefix": "Box 0 contains ", "options": [right, "nothing.", "the key."], "numops": numops}


def test_entity_tracking_is_averaged_over_splits_of_numbers_of_operations(tmp_path):
    """regular: (1 + 1/3) / 2; move_contents: 0; so one third."""
    folder = tmp_path / "entity_tracking"
    write_rows(folder / "regular.jsonl", tracking(0), tracking(1, "the cup."))
    write_rows(folder / "move_contents.jsonl", tracking(0, "the cup.") | {"options": ["a", "the ball."]})
    scorer = prefers("ball")
    result = EntityTracking().run(folder, scorer)
    assert scorer.asked[:2] == [Text("Box 0 contains ", "a"), Text("Box 0 contains ", "the ball.")]
    assert result.breakdown == {
        "UID": {"move_contents_0_ops": 0.0, "regular_0_ops": 1.0, "regular_1_ops": pytest.approx(1 / 3)}
    }
    assert result.value == pytest.approx(1 / 3)
    assert result.predictions["move_contents_0_ops"]["predictions"][0]["pred"] == "the ball."


def test_comps_compares_one_phrase_after_two_subjects(tmp_path):
    row = {"prefix_acceptable": "A robin", "prefix_unacceptable": "A trout", "property_phrase": "can fly."}
    write_rows(tmp_path / "comps" / "comps_base.jsonl", row)
    write_rows(tmp_path / "comps" / "comps_wugs_dist-in-between.jsonl", row | {"prefix_acceptable": "A wren"})
    scorer = prefers("robin")
    result = Comps().run(tmp_path / "comps", scorer)
    assert scorer.asked[:2] == [Text("A robin ", "can fly."), Text("A trout ", "can fly.")]
    assert result.breakdown == {"UID": {"base": 1.0, "wugs_dist_in_between": 0.5}}
    assert result.predictions["base"]["predictions"] == [{"id": "base_0", "pred": "A robin can fly."}]


@pytest.mark.parametrize(
    ("task", "row", "complaint"),
    [
        (Blimp(), {"sentence_good": "A dog."}, "sentence_bad is missing"),
        (Ewok(), EWOK | {"Context1": 3}, "Context1 must be text"),
        (EntityTracking(), tracking(True), "numops must be a count"),
        (EntityTracking(), tracking(1) | {"options": ["one"]}, "options must be a list of at least 2"),
        (Comps(), {"prefix_acceptable": "A", "property_phrase": "b"}, "prefix_unacceptable is missing"),
        (WugAdjectives(), {"sentences": "only one", "ratio": 0.5}, "at least two candidates with a tab"),
        (WugAdjectives(), {"sentences": "a\tb", "ratio": 1.5}, r"ratio must be a share in 0\.\.1, not 1\.5"),
        (WugPastTenses(), {"sentences": "a\tb", "ratio": "half"}, "ratio must be a number"),
    ],
)
def test_a_malformed_row_is_reported_with_its_file_and_line(tmp_path, task, row, complaint):
    folder = write_rows(tmp_path / "data" / "rows.jsonl", row)
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: .*{complaint}"):
        task.run(folder, TableScorer())


def test_a_model_whose_scores_are_not_numbers_is_not_measured(tmp_path):
    folder = write_rows(tmp_path / "blimp" / "a.jsonl", {"sentence_good": "A.", "sentence_bad": "B."})
    with pytest.raises(UserError, match=r"the likelihood of 'A\.' is not a number"):
        Blimp().run(folder, TableScorer(lambda text: math.nan))


# WUG.


@given(st.lists(st.floats(-800, 0), min_size=2, max_size=4))
def test_the_share_of_the_first_candidate_is_a_softmax(values):
    shares = scipy.special.softmax(values)
    assert share_of_first([TextScore(value, 1) for value in values]) == pytest.approx(shares[0])


def test_wug_correlates_the_models_preference_with_peoples(tmp_path):
    rows = [
        {"sentences": f"form {'a' * i}\tform b\tform c", "ratio": ratio} for i, ratio in ((1, 0.9), (4, 0.2), (3, 0.5))
    ]
    folder = write_rows(tmp_path / "wug_past_tense" / "wug_past_tense.jsonl", *rows)
    result = WugPastTenses().run(folder, TableScorer())
    assert result.figures == {"spearman": pytest.approx(1.0), "tie_rate": 1.0}
    first = result.predictions["wug_past"]["predictions"][0]
    assert first == {"id": "wug_past_0", "pred": "form a", "prob": pytest.approx(1 / 3)}
    assert result.items[0]["human_share"] == 0.9
    assert result.place == "wug_past/wug_past_tense"


def test_wug_files_are_read():
    folder = real_data("babylm_eval_2025", "fast_eval")
    adjectives = WugAdjectives().read(folder / "wug_adj_nominalization")
    tenses = WugPastTenses().read(folder / "wug_past_tense")
    assert (len(adjectives), len(tenses)) == (200, 50)
    assert {len(entry.question.candidates) for entry in adjectives} == {2}
    scorer = TableScorer(lambda text: -float(text.completion.count("e")))
    result = WugPastTenses().run(folder / "wug_past_tense", scorer)
    scores = [[scorer.log_likelihood(text) for text in entry.question.candidates] for entry in tenses]
    expected = scipy.stats.spearmanr([scipy.special.softmax(s)[0] for s in scores], [e.ratio for e in tenses])[0]
    assert result.value == pytest.approx(expected)


def test_minimal_pairs_of_the_published_files_are_all_asked():
    folder = real_data("babylm_eval_2025", "fast_eval")
    blimp, supplement = (Blimp().run(folder / name, TableScorer()) for name in ("blimp_fast", "supplement_fast"))
    assert (blimp.questions, len(blimp.breakdown["UID"])) == (13_400, 67)
    assert (supplement.questions, len(supplement.breakdown["UID"])) == (250, 5)
    assert set(blimp.breakdown["field"]) == {"morphology", "syntax", "semantics", "syntax/semantics"}
    assert all(len(group["predictions"]) == 200 for group in blimp.predictions.values())


# Reading.


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
