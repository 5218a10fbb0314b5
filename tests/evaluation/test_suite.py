"""The suite: what is found, what is left out and why, and what one broken file does to the others."""

import io
import json
import math

import pytest
from rich.console import Console
from support.corpora import real_data, small_tokenizer
from support.scorers import TableScorer
from support.trained import write_run

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation.age_of_acquisition import AgeOfAcquisition
from ltg_mdlm.evaluation.suite import (
    Outcome,
    all_tasks,
    require_success,
    run_suite,
    suite_table,
    suite_tasks,
    write_suite,
)
from ltg_mdlm.evaluation.tasks import find_data, task_of
from ltg_mdlm.inference.scoring import ScoringRule
from ltg_mdlm.inference.trained_model import open_model

PAIR = {"sentence_good": "A dog runs.", "sentence_bad": "A dog run."}
EWOK = {"Context1": "Hot.", "Context2": "Cold.", "Target1": "A.", "Target2": "B.", "Domain": "d"}
TRACKING = {"input_prefix": "Box", "options": [" a", " bc"], "numops": 0}
PIQA = {"prompt": "Cake", "solution0": "a", "solution1": "b", "label": 1, "example_id": "x"}
COMPS = {"prefix_acceptable": "A wren", "prefix_unacceptable": "A big trout", "property_phrase": "flies."}
WUG = {"sentences": "a\tb", "ratio": 0.5}


def write(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
    return file.parent


def printed(outcomes):
    console = Console(width=400, file=io.StringIO())
    console.print(suite_table(outcomes))
    return console.file.getvalue().splitlines()


AGES = AgeOfAcquisition(milestones=[], model="my_model", tokenizer=small_tokenizer())
TASKS = suite_tasks("2026", AGES)
OLD_TASKS = suite_tasks("2025", AGES)


def test_surprisals_of_words_are_sums_whatever_compares_candidates(tmp_path):
    trained = open_model(write_run(tmp_path / "run", words_seen=[10**6, 2 * 10**6, 3 * 10**6]), Ranks.alone())
    rule = ScoringRule(score="pll", normalise="tokens")
    (ages,) = (task for task in all_tasks(trained, rule, Ranks.alone(), "2026", None) if task.name == AGES.name)
    assert len(ages.milestones) == 3
    assert {milestone.open().rule for milestone in ages.milestones} == {ScoringRule(score="pll")}


@pytest.mark.parametrize(
    ("folder", "row", "expected"),
    [
        ("blimp_fast", PAIR, "blimp"),
        ("supplement_filtered", PAIR, "blimp"),
        ("ewok_fast", EWOK, "ewok"),
        ("entity_tracking", TRACKING, "entity_tracking"),
        ("comps", COMPS, "comps"),
        ("wug_adj_nominalization", WUG, "wug_adj"),
        ("wug_past_tense", WUG, "wug_past"),
        ("glue_filtered", {"sentence1": "a", "label": 1}, "glue"),
        ("global_piqa_parallel", PIQA, "global_piqa_parallel"),
        ("global_piqa_nonparallel", PIQA, "global_piqa_nonparallel"),
        ("cakes", PIQA | {"solution2": "c", "solution3": "d"}, "global_piqa_parallel"),
        ("cakes", PIQA, "global_piqa_nonparallel"),
        ("my_pairs", PAIR, "blimp"),
        ("world", EWOK, "ewok"),
        ("boxes", TRACKING, "entity_tracking"),
        ("concepts", COMPS, "comps"),
        ("entailment", {"sentence1": "a", "label": 1}, "glue"),
        ("chat", {"prompt": "hello"}, None),
        ("broken", "{", None),
    ],
)
def test_data_are_recognised_by_their_folders_name_and_else_by_their_fields(tmp_path, folder, row, expected):
    for tasks in (TASKS, OLD_TASKS):
        found = task_of(write(tmp_path / folder / "rows.jsonl", row), tasks)
        assert (found.name if found else None) == expected


def test_a_task_is_found_by_the_name_of_a_file_as_well(tmp_path):
    write(tmp_path / "wug_past_tense.jsonl", WUG)
    task = task_of(tmp_path / "wug_past_tense.jsonl", OLD_TASKS)
    assert task is not None
    assert task.name == "wug_past"


def test_data_are_found_at_any_level_even_below_a_folder_that_is_called_like_a_task(tmp_path):
    write(tmp_path / "blimp_data" / "full_eval" / "blimp_filtered" / "a.jsonl", PAIR)
    write(tmp_path / "blimp_data" / "full_eval" / "ewok_filtered" / "a.jsonl", EWOK)
    write(tmp_path / "blimp_data" / ".cache" / "comps" / "a.jsonl", COMPS)
    write(tmp_path / "blimp_data" / "settings.yaml", "a: 1")
    found = list(find_data(tmp_path / "blimp_data", TASKS))
    assert [(path.name, task.name) for path, task in found] == [("blimp_filtered", "blimp"), ("ewok_filtered", "ewok")]


def test_all_that_is_found_is_run_and_the_rest_is_skipped_with_a_reason(tmp_path):
    write(tmp_path / "blimp_fast" / "a.jsonl", PAIR)
    write(tmp_path / "entity_tracking" / "regular.jsonl", TRACKING)
    write(tmp_path / "glue_filtered" / "rte.train.jsonl", {"label": 0})
    write(tmp_path / "cdi_childes" / "words.json", "{}")
    write(tmp_path / "other" / "rows.jsonl", {"prompt": "hello"})
    said: list[str] = []
    outcomes = list(run_suite(TASKS, TableScorer(), tmp_path, say=said.append))
    assert said == ["1/5 blimp_fast", "2/5 cdi_childes", "3/5 entity_tracking", "4/5 glue_filtered"]
    assert [(o.task, o.data, o.status) for o in outcomes] == [
        ("blimp", "blimp_fast", "done"),
        ("AoA_word", "cdi_childes", "skipped"),
        ("entity_tracking", "entity_tracking", "done"),
        ("glue", "glue_filtered", "skipped"),
        ("-", "other", "skipped"),
        ("supplement", "-", "skipped"),
        ("ewok", "-", "skipped"),
        ("comps", "-", "skipped"),
        ("global_piqa_parallel", "-", "skipped"),
        ("global_piqa_nonparallel", "-", "skipped"),
        ("reading", "-", "skipped"),
    ]
    require_success(outcomes)
    lines = printed(outcomes)
    assert len(lines) == 1 + 5 + 1
    assert "accuracy 0.0% (chance 50.0%), tie rate 0.0%" in lines[1]
    assert "unvalidated" not in lines[1]
    assert "accuracy 100.0%" in lines[3]
    assert "unvalidated" in lines[3]
    for line, reason in (
        (2, "chck_*"),
        (4, "add --finetune"),
        (5, "not the data of a known task"),
        (6, "no data: supplement*, ewok*, comps*, global_piqa_parallel*, global_piqa_nonparallel*, reading*"),
    ):
        assert reason in lines[line]


def test_data_of_another_protocol_are_named_and_not_scored(tmp_path):
    write(tmp_path / "blimp_fast" / "a.jsonl", PAIR)
    write(tmp_path / "wug_past_tense" / "rows.jsonl", WUG)
    write(tmp_path / "global_piqa_parallel" / "eng_latn.jsonl", PIQA | {"solution2": "c", "solution3": "d"})
    write(tmp_path / "cakes" / "eng_latn.jsonl", PIQA)

    def reasons(tasks):
        return {o.data: o.reason for o in run_suite(tasks, TableScorer(), tmp_path) if o.status == "skipped"}

    assert reasons(TASKS)["wug_past_tense"] == "not in this protocol; add --protocol 2025"
    for name in ("global_piqa_parallel", "cakes"):
        assert reasons(OLD_TASKS)[name] == "not in this protocol; add --protocol 2026"
        assert name not in reasons(TASKS)


def test_a_standard_error_stands_beside_the_accuracy(tmp_path):
    rows = ({"sentence_good": f"good {i}", "sentence_bad": f"bad {i}"} for i in range(8))
    write(tmp_path / "blimp_fast" / "a.jsonl", *rows)
    outcomes = list(
        run_suite(TASKS, TableScorer(lambda text: float("bad" in text.completion and "5" in text.completion)), tmp_path)
    )
    # seven ties and a wrong answer: mean 7/16, standard deviation 0.5 / sqrt(8)
    assert "accuracy 43.8% ± 6.2% (chance 50.0%), tie rate 87.5%" in printed(outcomes)[1]


def test_a_malformed_file_fails_its_own_task_alone(tmp_path):
    write(tmp_path / "blimp_fast" / "a.jsonl", PAIR, "{")
    write(tmp_path / "supplement_fast" / "b.jsonl", PAIR)
    outcomes = list(run_suite(TASKS, TableScorer(), tmp_path))
    assert [o.status for o in outcomes[:2]] == ["failed", "done"]
    assert "a.jsonl:2: not JSON" in printed(outcomes)[1]
    with pytest.raises(UserError, match=r"^1 of \d+ tasks failed\n  blimp_fast: .*a\.jsonl:2: not JSON"):
        require_success(outcomes)


def test_results_of_two_folders_of_one_name_are_not_mixed_up(tmp_path):
    for name in ("fast_eval", "full_eval"):
        write(tmp_path / name / "blimp" / "a.jsonl", PAIR)
    first, second, *_ = run_suite(TASKS, TableScorer(), tmp_path)
    assert (first.status, second.status) == ("done", "skipped")
    assert "fast_eval/blimp has the same name" in second.reason


@pytest.mark.parametrize("folder", ["", "nothing", "other"])
def test_a_folder_without_data_of_any_task_is_the_users_error(tmp_path, folder):
    write(tmp_path / "other" / "rows.jsonl", {"prompt": "hello"})
    (tmp_path / "empty").mkdir()
    path = tmp_path / folder if folder else tmp_path / "empty"
    with pytest.raises(UserError, match="no such folder" if folder == "nothing" else "no evaluation data"):
        list(run_suite(TASKS, TableScorer(), path))


def test_fine_tuning_runs_where_it_is_asked_for_and_counts_its_tasks_alike(tmp_path):
    folder = write(tmp_path / "glue_filtered" / "rte.train.jsonl", {"label": 0})
    summaries = [
        {"task": "rte", "metric": "accuracy", "mean": {"accuracy": 0.5, "f1": 0.1}, "valid": {"rows": 139}},
        {"task": "mrpc", "metric": "f1", "mean": {"accuracy": 0.1, "f1": 0.7}, "valid": {"rows": 204}},
    ]
    asked = []
    tasks = suite_tasks("2026", AGES, finetune=lambda path: asked.append(path) or summaries)
    result = next(run_suite(tasks, TableScorer(), tmp_path)).result
    assert asked == [folder]
    assert (result.task, result.value, result.questions) == ("glue", pytest.approx(0.6), 139 + 204)
    assert result.figures["accuracy"] == pytest.approx(0.3)
    assert result.breakdown == {"UID": {"rte": 0.5, "mrpc": 0.7}}
    assert result.place is None


def test_fine_tuning_data_in_folders_of_one_name_are_all_used(tmp_path):
    folders = [
        write(tmp_path / language / "arc" / f"arc_{language}.train.jsonl", {"label": 0}) for language in ("en", "nl")
    ]
    summary = {"task": "arc", "metric": "accuracy", "mean": {"accuracy": 0.5}, "valid": {"rows": 9}}
    asked = []
    tasks = suite_tasks("2026", AGES, finetune=lambda path: asked.append(path) or [summary])
    done = [outcome for outcome in run_suite(tasks, TableScorer(), tmp_path) if outcome.status == "done"]
    assert asked == folders
    assert len(done) == 2


def test_the_json_file_holds_all_figures_and_null_for_undefined_ones(tmp_path):
    write(tmp_path / "wug_past_tense" / "rows.jsonl", WUG, WUG)
    outcomes = [*run_suite(OLD_TASKS, TableScorer(), tmp_path)][:2]
    assert math.isnan(outcomes[0].result.value)
    write_suite(tmp_path / "suite.json", {"model": "my_model", "score": "pll"}, outcomes)
    assert json.loads((tmp_path / "suite.json").read_text()) == {
        "model": "my_model",
        "score": "pll",
        "tasks": [
            {
                "task": "wug_past",
                "data": "wug_past_tense",
                "status": "done",
                "metric": "spearman",
                "value": None,
                "figures": {"spearman": None, "tie_rate": 1.0},
                "breakdown": {"UID": {"avg": None}},
                "questions": 2,
                "validated": True,
            },
            {"task": "blimp", "data": "-", "status": "skipped", "reason": outcomes[1].reason},
        ],
    }


def test_reasons_are_shown_as_they_are():
    outcome = Outcome(task="blimp", data="[red]", status="failed", reason="rows.jsonl:2: ['a']")
    assert "[red]" in printed([outcome])[1]
    assert "['a']" in printed([outcome])[1]


def test_the_published_fast_evaluation_is_run_as_far_as_it_is_there():
    scorer = TableScorer(surprisal=lambda word: len(word.word) ** 0.5)
    outcomes = list(run_suite(OLD_TASKS, scorer, real_data("babylm_eval_2025")))
    assert {(o.task, o.data): o.result.questions for o in outcomes if o.result} == {
        ("blimp", "blimp_fast"): 13_400,
        ("blimp", "supplement_fast"): 250,
        ("reading", "reading"): 1726,
        ("wug_adj", "wug_adj_nominalization"): 200,
        ("wug_past", "wug_past_tense"): 50,
    }
    assert {o.task for o in outcomes if o.status == "skipped"} == {
        "glue",
        "ewok",
        "entity_tracking",
        "comps",
    }
