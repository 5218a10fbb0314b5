"""Tasks in which a model chooses, against a literal statement of the official rules, for scores that are known."""

import json
import math
import zlib
from collections import defaultdict
from statistics import fmean

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
    BLIMP,
    CHOICE_TASKS,
    COMPS,
    ENTITY_TRACKING,
    EWOK,
    GLOBAL_PIQA_NONPARALLEL,
    GLOBAL_PIQA_PARALLEL,
    SUPPLEMENT,
    WUG_ADJECTIVES,
    WUG_PAST_TENSES,
    ChoiceTask,
    each_row,
    macro_weights,
    same_questions,
    share_of_first,
)
from ltg_mdlm.evaluation.result_folders import temperature_report
from ltg_mdlm.inference.choices import answer
from ltg_mdlm.inference.texts import Question, Text, TextScore


def write_rows(file, *rows):
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file.parent


EWOK_ROW = {
    "Context1": "The box is above the table.",
    "Context2": "The box is below the table.",
    "Target1": "The table is below the box.",
    "Target2": "The table is above the box.",
    "Domain": "spatial-relations",
    "ContextType": "direct",
    "ContextDiff": "antonym",
    "TargetDiff": "concept swap",
}
PIQA_ROW = {
    "prompt": "A birthday cake",
    "solution0": "has wheels.",
    "solution1": "is often decorated with candles and eaten by the guests.",
    "solution2": "is stone.",
    "solution3": "can bark.",
    "label": 1,
    "example_id": "ex_17",
}


# The official rules, row by row.


def literal_row(task, protocol, stem, row):
    """(texts before the scored part, scored parts, index of the right one, uid, predictions), or None."""
    if task == "blimp":
        sentences = [row["sentence_good"], row["sentence_bad"]]
        return ["", ""], sentences, 0, row["UID"] if "field" in row else stem, sentences
    if task == "ewok" and protocol == "2026":
        contexts, target = [row["Context1"], row["Context2"]], " " + row["Target1"]
        return contexts, [target, target], 0, row["Domain"], [context + target for context in contexts]
    if task == "ewok":
        targets = [" " + row["Target1"], " " + row["Target2"]]
        return [row["Context1"]] * 2, targets, 0, row["Domain"], targets
    if task == "entity_tracking":
        if protocol == "2026" and any("nothing" in option for option in row["options"]):
            return None
        options = row["options"]
        return [row["input_prefix"]] * len(options), options, 0, f"{stem}_{row['numops']}_ops", options
    if task == "comps":
        uid = {
            "comps_base": "base",
            "comps_wugs": "wugs",
            "comps_wugs_dist-before": "wugs_dist_before",
            "comps_wugs_dist-in-between": "wugs_dist_in_between",
        }[stem]
        starts, phrase = [row["prefix_acceptable"] + " ", row["prefix_unacceptable"] + " "], row["property_phrase"]
        return starts, [phrase, phrase], 0, uid, [start + phrase for start in starts]
    count = 4 if task == "global_piqa_parallel" else 2
    solutions = [" " + row[f"solution{i}"] for i in range(count)]
    return [row["prompt"]] * count, solutions, row["label"], row["example_id"], solutions


def literal(task, protocol, files, scorer):
    """Possible predictions of every uid, in order, and the accuracy with random guesses in ties."""
    possible, correct = defaultdict(list), defaultdict(list)
    for stem, rows in sorted(files.items()):
        for row in rows:
            found = literal_row(task, protocol, stem, row)
            if found is None:
                continue
            before, scored, right, uid, predictions = found
            values = [scorer.log_likelihood(Text(*text)) for text in zip(before, scored, strict=True)]
            if task.startswith("global_piqa"):
                values = [value / len(part.split()) for value, part in zip(values, scored, strict=True)]
            values = [-math.inf if math.isnan(value) else value for value in values]
            best = [i for i, value in enumerate(values) if value == max(values)]
            best_written = best[:1] if protocol == "2025" else best
            possible[uid].append({predictions[i] for i in best_written})
            correct[uid].append((right in best) / len(best))
    accuracy = {uid: fmean(values) for uid, values in correct.items()}
    if task != "entity_tracking":
        return possible, fmean(accuracy.values())
    splits = [
        fmean(values)
        for split in ("regular", "ambiref", "move_contents")
        if (values := [value for uid, value in accuracy.items() if uid.startswith(split)])
    ]
    return possible, fmean(splits)


WORDS = ("the dog", "a cat", "nothing.", "two tall trees")
words = st.sampled_from(WORDS)


def rows_of(task):
    if task == "blimp":
        return st.fixed_dictionaries({"sentence_good": words, "sentence_bad": words})
    if task == "ewok":
        texts = dict.fromkeys(("Context1", "Context2", "Target1", "Target2"), words)
        return st.fixed_dictionaries({**texts, "Domain": st.sampled_from("ab")})
    if task == "entity_tracking":
        # "nothing" in one option of three
        options = st.lists(words, min_size=2, max_size=4)
        return st.fixed_dictionaries({"input_prefix": words, "options": options, "numops": st.integers(0, 2)})
    if task == "comps":
        return st.fixed_dictionaries(
            dict.fromkeys(("prefix_acceptable", "prefix_unacceptable", "property_phrase"), words)
        )
    texts = {"prompt": words, **{f"solution{i}": words for i in range(4)}}
    return st.fixed_dictionaries({**texts, "label": st.integers(0, 1), "example_id": st.uuids().map(str)})


FILES = {
    "blimp": ("hypernym", "turn_taking"),
    "ewok": ("one", "two"),
    "entity_tracking": ("ambiref", "regular"),
    "comps": ("comps_base", "comps_wugs_dist-in-between"),
    "global_piqa_parallel": ("eng_latn",),
    "global_piqa_nonparallel": ("eng_latn",),
}


@pytest.mark.parametrize(
    ("protocol", "task"), [(protocol, task) for protocol, tasks in CHOICE_TASKS.items() for task in tasks]
)
@given(data=st.data())
def test_every_prediction_is_one_that_the_official_rules_allow(tmp_path_factory, protocol, task, data):
    """With few different scores, so that there are ties, and with some that are not numbers."""
    stems = FILES[task.name]
    files = {stem: data.draw(st.lists(rows_of(task.name), min_size=1, max_size=5)) for stem in stems}
    folder = tmp_path_factory.mktemp("data")
    for stem, rows in files.items():
        write_rows(folder / f"{stem}.jsonl", *rows)
    seed = data.draw(st.integers(0, 1000))

    def log_likelihood(text):
        drawn = zlib.crc32(f"{seed} {text}".encode()) % 7
        return math.nan if drawn == 6 else -float(1 + drawn % 3) * len(text.completion.split())

    scorer = TableScorer(log_likelihood)
    asked = [
        Text(*text) for stem, rows in files.items() for row in rows for text in texts_of(task, protocol, stem, row)
    ]
    if all(math.isnan(log_likelihood(text)) for text in asked):
        return  # other tests: no question, or a model with broken weights
    possible, accuracy = literal(task.name, protocol, files, scorer)
    result = task.run(folder, scorer)
    assert result.value == pytest.approx(accuracy)
    assert list(result.predictions) == list(possible)
    for uid, allowed in possible.items():
        written = result.predictions[uid]["predictions"]
        assert [row["id"] for row in written] == [f"{uid}_{i}" for i in range(len(allowed))]
        assert all(row["pred"] in some for row, some in zip(written, allowed, strict=True))
    assert scorer.asked == asked


def texts_of(task, protocol, stem, row):
    found = literal_row(task.name, protocol, stem, row)
    return [] if found is None else zip(found[0], found[1], strict=True)


def test_a_tie_is_drawn_at_random_and_the_same_in_every_evaluation(tmp_path):
    folder = write_rows(
        tmp_path / "ewok" / "a.jsonl", *(EWOK_ROW | {"Context1": f"{i}.", "Context2": f"-{i}."} for i in range(200))
    )
    scorer = TableScorer(lambda text: -1.0)
    first, again = (EWOK.run(folder, scorer) for _ in range(2))
    assert first.predictions == again.predictions
    rows = first.predictions["spatial-relations"]["predictions"]
    good = sum(not row["pred"].startswith("-") for row in rows)
    assert scipy.stats.binomtest(good, 200).pvalue > 0.01
    assert (first.value, first.figures["chance"], first.figures["tie_rate"]) == (0.5, 0.5, 1.0)
    first_wins = next(task for task in CHOICE_TASKS["2025"] if task.name == "ewok").run(folder, scorer)
    written = {row["pred"] for row in first_wins.predictions["spatial-relations"]["predictions"]}
    assert written == {" The table is below the box."}


def test_ewok_compares_one_target_after_two_contexts_and_writes_the_sentence(tmp_path):
    folder = write_rows(tmp_path / "ewok_fast" / "spatial.jsonl", EWOK_ROW)
    scorer = TableScorer(lambda text: 0.0 if "above" in text.prefix else -1.0)
    result = EWOK.run(folder, scorer)
    assert scorer.asked == [
        Text("The box is above the table.", " The table is below the box."),
        Text("The box is below the table.", " The table is below the box."),
    ]
    assert list(result.breakdown) == ["UID", "context_type", "context_contrast", "target_contrast"]
    assert result.predictions["spatial-relations"]["predictions"] == [
        {"id": "spatial-relations_0", "pred": "The box is above the table. The table is below the box."}
    ]
    wrong = EWOK.run(folder, TableScorer(lambda text: 0.0 if "below" in text.prefix else -1.0))
    assert wrong.predictions["spatial-relations"]["predictions"][0]["pred"] == (
        "The box is below the table. The table is below the box."
    )
    assert (result.value, wrong.value, result.place) == (1.0, 0.0, "ewok/ewok_fast")


class GivenScores(TableScorer):
    """Log-likelihoods and numbers of tokens in the order of the candidates."""

    def __init__(self, values, tokens):
        super().__init__()
        self.values, self.tokens = values, tokens

    def __call__(self, groups, *, per_token=False):
        pairs = zip(self.values, self.tokens, strict=True)
        return [[TextScore(value / (count if per_token else 1), count) for value, count in pairs] for _ in groups]


def test_global_piqa_chooses_by_the_log_likelihood_per_token(tmp_path):
    """The sum would choose the third solution."""
    folder = write_rows(tmp_path / "global_piqa_parallel" / "eng_latn.jsonl", PIQA_ROW)
    result = GLOBAL_PIQA_PARALLEL.run(folder, GivenScores([-14.0, -40.0, -13.0, -15.0], [3, 12, 3, 3]))
    assert result.predictions == {
        "ex_17": {
            "predictions": [
                {"id": "ex_17_0", "pred": " is often decorated with candles and eaten by the guests."},
            ]
        }
    }
    assert (result.value, result.figures["chance"]) == (1.0, 0.25)
    assert result.place == "global_piqa_parallel/global_piqa_parallel"
    assert result.breakdown == {"UID": {"ex_17": 1.0}}
    assert [row["uid"] for row in result.items] == ["eng_latn"]


def test_the_standard_error_of_global_piqa_is_over_its_rows(tmp_path):
    rows = [PIQA_ROW | {"example_id": f"ex_{i}", "prompt": f"{i}", "label": i % 2} for i in range(20)]
    folder = write_rows(tmp_path / "global_piqa_nonparallel" / "eng_latn.jsonl", *rows)
    scorer = TableScorer(lambda text: 0.0 if int(text.prefix) < 5 and "wheels" in text.completion else -9.0)
    result = GLOBAL_PIQA_NONPARALLEL.run(folder, scorer)
    correct = [row["correct"] for row in result.items]
    assert result.value == pytest.approx(np.mean(correct))
    assert result.figures["standard_error"] == pytest.approx(np.std(correct, ddof=1) / 20**0.5)
    assert macro_weights("global_piqa_nonparallel", ["eng_latn"]).tolist() == [1.0]


def test_the_standard_error_of_a_macro_average_is_that_of_its_uids(tmp_path):
    rng = np.random.default_rng(0)
    right = {uid: rng.random(count) < 0.6 for uid, count in (("a", 30), ("b", 80))}
    for uid, values in right.items():
        rows = [
            {"sentence_good": f"{uid}{i} {'yes' if v else 'no'}", "sentence_bad": "x"} for i, v in enumerate(values)
        ]
        write_rows(tmp_path / "supplement_fast" / f"{uid}.jsonl", *rows)
    result = SUPPLEMENT.run(
        tmp_path / "supplement_fast",
        TableScorer(lambda text: {"yes": 0.0, "x": -1.0}.get(text.completion[-3:].strip(), -2.0)),
    )
    variances = [np.var(values, ddof=1) / len(values) for values in right.values()]
    assert result.figures["standard_error"] == pytest.approx(np.sqrt(sum(variances)) / 2)
    assert result.value == pytest.approx(np.mean([values.mean() for values in right.values()]))


def tracking(numops, right="the ball.", *others):
    return {"input_prefix": "Box 0 contains ", "options": [right, *(others or ("the key.",))], "numops": numops}


def test_entity_tracking_is_averaged_over_splits_and_leaves_nothing_out(tmp_path):
    """regular: (1 + 0) / 2; move_contents: 0; so one quarter. The row with "nothing" is no question."""
    folder = tmp_path / "entity_tracking"
    write_rows(
        folder / "regular.jsonl", tracking(0), tracking(1, "the cup.", "the ball."), tracking(1, "a", "nothing.")
    )
    write_rows(folder / "move_contents.jsonl", tracking(0, "the cup.", "the ball."))
    result = ENTITY_TRACKING.run(folder, TableScorer(lambda text: 0.0 if "ball" in text.completion else -1.0))
    assert result.breakdown == {
        "UID": {
            "move_contents_0_ops": 0.0,
            "regular_0_ops": 1.0,
            "regular_1_ops": 0.0,
            "move_contents": 0.0,
            "regular": 0.5,
        }
    }
    assert (result.value, result.questions) == (0.25, 3)
    assert result.predictions["move_contents_0_ops"]["predictions"][0]["pred"] == "the ball."
    report = temperature_report(result).splitlines()
    assert report[:4] == ["TEMPERATURE: 1.00", "", "### UID ACCURACY", "move_contents_0_ops: 0.00"]
    assert report[-3:] == ["### AVERAGE ACCURACY", "25.00", ""]


def test_minimal_pairs_are_divided_in_three_ways(tmp_path):
    pair = {"sentence_good": "Dogs run.", "sentence_bad": "Dogs runs.", "UID": "sva", "field": "syntax_semantics"}
    rows = [pair | {"linguistics_term": "agreement"}, pair | {"UID": "other", "linguistics_term": "agreement"}]
    folder = write_rows(
        tmp_path / "blimp_fast" / "sva.jsonl", rows[0], rows[1], rows[0] | {"sentence_good": "Dogs walk."}
    )
    result = BLIMP.run(folder, TableScorer(lambda text: 0.0 if "run." in text.completion else -1.0))
    assert result.breakdown == {
        "field": {"syntax/semantics": pytest.approx(2.5 / 3)},
        "UID": {"sva": 0.75, "other": 1.0},
        "linguistics_term": {"agreement": pytest.approx(2.5 / 3)},
    }
    assert (result.value, result.figures["tie_rate"], result.questions) == (0.875, pytest.approx(1 / 3), 3)
    assert (result.place, result.validated) == ("blimp/blimp_fast", True)
    assert result.items[2] == {
        "id": "sva_1",
        "uid": "sva",
        "correct": 0.5,
        "log_likelihoods": [-1.0, -1.0],
        "tokens": [2, 2],
    }


def test_a_new_task_is_a_function_of_a_row_and_an_entry(tmp_path):
    task = ChoiceTask(
        name="colours",
        key="colours",
        prefixes=("colours",),
        fields=frozenset({"thing", "colours"}),
        read=each_row(
            lambda row: Question(tuple(Text(row.text("thing"), f" is {c}.") for c in row.texts("colours", 2)), "all")
        ),
    )
    folder = write_rows(tmp_path / "colours" / "rows.jsonl", {"thing": "Grass", "colours": ["green", "blue", "red"]})
    result = task.run(folder, TableScorer(lambda text: float("green" in text.completion)))
    assert (result.value, result.predictions["all"]["predictions"][0]["pred"]) == (1.0, " is green.")


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=5), st.data())
def test_a_tie_counts_what_guessing_among_the_best_would(values, data):
    right = data.draw(st.integers(0, len(values) - 1))
    question = Question(tuple(Text("", str(i)) for i in range(len(values))), "uid", right)
    found = answer(question, [TextScore(float(value), 1) for value in values])
    winners = [i for i in range(len(values)) if values[i] >= max(values)]
    expected = sum(winner == right for winner in winners) / len(winners)
    assert (list(found.best), found.correct, found.tied) == (winners, expected, len(winners) > 1)
    assert found.margin == values[right] - max(value for i, value in enumerate(values) if i != right)


def test_scores_that_are_no_numbers_are_a_tie_and_lose_against_numbers():
    question = Question((Text("", "a"), Text("", "b")), "uid")
    nothing, something = TextScore(math.nan, 1), TextScore(-5.0, 1)
    assert answer(question, [nothing, nothing]).correct == 0.5
    assert answer(question, [nothing, something]).correct == 0
    assert answer(question, [something, nothing]).correct == 1


def test_likelihoods_that_are_no_numbers_are_counted_and_a_model_with_no_others_is_refused(tmp_path):
    pairs = [{"sentence_good": f"good {i}", "sentence_bad": f"bad {i}"} for i in range(4)]
    folder = write_rows(tmp_path / "blimp" / "a.jsonl", *pairs)
    result = BLIMP.run(folder, TableScorer(lambda text: math.nan if text.completion == "good 2" else -1.0))
    assert result.figures["nan_rate"] == 1 / 8
    assert result.items[2]["correct"] == 0
    with pytest.raises(UserError, match="no likelihood is a number; the weights of the model may be broken"):
        BLIMP.run(folder, TableScorer(lambda text: math.nan))


@pytest.mark.parametrize(
    ("task", "row", "complaint"),
    [
        (BLIMP, {"sentence_good": "A dog."}, "sentence_bad is missing"),
        (EWOK, EWOK_ROW | {"Context2": 3}, "Context2 must be text"),
        (ENTITY_TRACKING, tracking(True), "numops must be a count"),
        (ENTITY_TRACKING, tracking(1) | {"options": ["one"]}, "options must be a list of at least 2"),
        (COMPS, {"prefix_acceptable": "A", "property_phrase": "b"}, "prefix_unacceptable is missing"),
        (GLOBAL_PIQA_PARALLEL, PIQA_ROW | {"label": 4}, "label must be a number from 0 to 3, not 4"),
        (GLOBAL_PIQA_NONPARALLEL, PIQA_ROW | {"label": 2}, "label must be a number from 0 to 1, not 2"),
        (GLOBAL_PIQA_PARALLEL, PIQA_ROW | {"label": "1"}, "label must be a count"),
        (GLOBAL_PIQA_PARALLEL, PIQA_ROW | {"solution3": ""}, "solution3 must be text"),
        (GLOBAL_PIQA_PARALLEL, PIQA_ROW | {"example_id": None}, "example_id must be text"),
        (WUG_ADJECTIVES, {"sentences": "only one", "ratio": 0.5}, "at least two candidates with a tab"),
        (WUG_ADJECTIVES, {"sentences": "a\tb", "ratio": 1.5}, r"ratio must be a share in 0\.\.1, not 1\.5"),
        (WUG_PAST_TENSES, {"sentences": "a\tb", "ratio": "half"}, "ratio must be a number"),
    ],
)
def test_a_malformed_row_is_reported_with_its_file_and_line(tmp_path, task, row, complaint):
    folder = write_rows(tmp_path / "data" / "rows.jsonl", row)
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: .*{complaint}"):
        task.run(folder, TableScorer())


def test_a_file_whose_rows_are_all_filtered_is_an_error(tmp_path):
    folder = write_rows(tmp_path / "entity_tracking" / "regular.jsonl", tracking(0, "nothing."))
    with pytest.raises(UserError, match="no row is a question of entity_tracking"):
        ENTITY_TRACKING.run(folder, TableScorer())


def test_protocols_ask_different_questions_where_the_pipeline_changed():
    assert {name for name in FILES if not same_questions(name, "2025", "2026")} == {
        "ewok",
        "entity_tracking",
        "global_piqa_parallel",
        "global_piqa_nonparallel",
    }
    assert same_questions("rte", "2025", "2026")


def test_keys_of_the_tasks_are_those_of_a_submission():
    assert [task.key for task in CHOICE_TASKS["2026"]] == [
        "blimp",
        "blimp_supplement",
        "ewok",
        "entity_tracking_filtered",
        "comps",
        "global_piqa_parallel",
        "global_piqa_nonparallel",
    ]


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
    result = WUG_PAST_TENSES.run(folder, TableScorer())
    assert result.figures == {"spearman": pytest.approx(1.0), "tie_rate": 1.0}
    first = result.predictions["wug_past"]["predictions"][0]
    assert first == {"id": "wug_past_0", "pred": "form a", "prob": pytest.approx(1 / 3)}
    assert result.items[0]["human_share"] == 0.9
    assert result.place == "wug_past/wug_past_tense"


def test_wug_files_are_read():
    folder = real_data("babylm_eval_2025", "fast_eval")
    adjectives = WUG_ADJECTIVES.read(folder / "wug_adj_nominalization")
    tenses = WUG_PAST_TENSES.read(folder / "wug_past_tense")
    assert (len(adjectives), len(tenses)) == (200, 50)
    assert {len(question.candidates) for question, _ in adjectives} == {2}
    scorer = TableScorer(lambda text: -float(text.completion.count("e")))
    result = WUG_PAST_TENSES.run(folder / "wug_past_tense", scorer)
    scores = [[scorer.log_likelihood(text) for text in question.candidates] for question, _ in tenses]
    expected = scipy.stats.spearmanr([scipy.special.softmax(s)[0] for s in scores], [ratio for _, ratio in tenses])[0]
    assert result.value == pytest.approx(expected)


def test_minimal_pairs_of_the_published_files_are_all_asked():
    folder = real_data("babylm_eval_2025", "fast_eval")
    blimp = BLIMP.run(folder / "blimp_fast", TableScorer())
    supplement = SUPPLEMENT.run(folder / "supplement_fast", TableScorer())
    assert (blimp.questions, len(blimp.breakdown["UID"])) == (13_400, 67)
    assert (supplement.questions, len(supplement.breakdown["UID"])) == (250, 5)
    assert set(blimp.breakdown["field"]) == {"morphology", "syntax", "semantics", "syntax/semantics"}
    assert all(len(group["predictions"]) == 200 for group in blimp.predictions.values())
