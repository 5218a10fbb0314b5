"""From result folders to a comparison: grouping, matching of questions, and the figures in the table."""

import csv
import json

import numpy as np
import pytest
from support.results import write_result

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation.answers import TaskName, baseline_first, collect_groups, find_results
from ltg_mdlm.evaluation.comparison import compare, comparison_table, explanation, left_out
from ltg_mdlm.evaluation.multiple_choice import ENTITY_TRACKING

FIRST = {"agreement": [1, 1, 0, 0], "island": [1, 0.5]}
SECOND = {"agreement": [1, 1, 1, 1], "island": [0, 0.5]}


def compared(paths, named=(), **options):
    groups, _ = collect_groups(paths, named)
    return [row.record() for row in compare(groups, **{"by_uid": False, "draws": 500, "seed": 0, **options})]


def noise(seed, questions=40, better=0.0):
    """Answers that are right half of the time, or more often, as one uid."""
    rng = np.random.default_rng(seed)
    return {"uid": (rng.random(questions) < 0.5 + better).astype(int).tolist()}


def test_two_models_are_compared_on_the_macro_average(tmp_path):
    a, b = write_result(tmp_path, "a", FIRST), write_result(tmp_path, "b", SECOND)
    baseline, record = compared([a, b])
    assert (baseline["model"], baseline["accuracy"], baseline["difference"]) == ("a", 0.625, None)
    assert (record["model"], record["accuracy"], record["difference"]) == ("b", 0.625, 0.0)
    assert (record["won"], record["lost"], record["questions"]) == (2, 1, 6)
    assert record["p_mcnemar"] == 1
    assert record["p"] == record["p_holm"] == 1
    assert record["low"] < 0 < record["high"]
    assert record["sd"] is record["p_seeds"] is None


def test_questions_are_matched_by_id_in_whatever_order(tmp_path):
    a = write_result(tmp_path, "a", FIRST)
    b = write_result(tmp_path, "b", dict(reversed(FIRST.items())))
    lines = (b / "items.jsonl").read_text().splitlines()
    (b / "items.jsonl").write_text("\n".join(reversed(lines)))
    record = compared([a, b])[1]
    assert (record["won"], record["lost"], record["difference"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({**FIRST, "island": [1]}, r"island_1 \(island\)"),
        ({**FIRST, "binding": [0, 1, 1, 1]}, r"binding_0 \(binding\), .* and 1 more"),
    ],
)
def test_other_questions_are_refused_by_name(tmp_path, other, named):
    a, b = write_result(tmp_path, "a", FIRST), write_result(tmp_path, "b", other)
    with pytest.raises(UserError, match=rf"blimp/blimp_fast: not the same questions in (.|\n)*{named}"):
        compared([a, b])


def test_names_that_are_equal_up_to_the_seed_are_averaged(tmp_path):
    right = {"uniform-s0": [1, 0, 0, 0], "uniform-s1": [1, 1, 0, 0], "freq-s0": [1, 1, 1, 0], "freq-s1": [1, 1, 1, 1]}
    for model, values in right.items():
        write_result(tmp_path, model, {"uid": values})
    first, second = compared([tmp_path])
    assert (first["model"], first["seeds"], first["accuracy"], first["runs"]) == ("freq", 2, 0.875, "freq-s0 freq-s1")
    assert (second["model"], second["seeds"], second["accuracy"]) == ("uniform", 2, 0.375)
    assert second["sd"] == pytest.approx(np.std([0.25, 0.5], ddof=1))
    assert second["difference"] == -0.5
    assert second["won"] is second["p_mcnemar"] is None
    assert 0 < second["p_seeds"] < 1


def test_groups_can_be_named(tmp_path):
    for model in ("a", "b", "c"):
        write_result(tmp_path, model, FIRST)
    records = compared([tmp_path / "a"], [f"others={tmp_path / 'b'},{tmp_path / 'c'}"])
    assert [(record["model"], record["seeds"]) for record in records] == [("a", 1), ("others", 2)]


def test_one_model_scored_in_two_ways_is_two_groups(tmp_path):
    for score in ("pll", "bound"):
        write_result(tmp_path, "a-s0", FIRST, score=score)
    assert {record["model"] for record in compared([tmp_path])} == {"a (score=pll)", "a (score=bound)"}


def test_fine_tuned_results_belong_to_the_model_however_it_was_scored(tmp_path):
    for model, score in (("a", "pll"), ("b", "causal")):
        write_result(tmp_path, model, FIRST, score=score)
        fine_tuned = write_result(tmp_path, model, FIRST, task="rte", data="glue")
        summary = json.loads((fine_tuned / "summary.json").read_text())
        (fine_tuned / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k != "score"}))
    assert [(r["model"], r["task"]) for r in compared([tmp_path])] == [
        ("a (score=pll)", "blimp"),
        ("b (score=causal)", "blimp"),
        ("a (score=pll)", "rte"),
        ("b (score=causal)", "rte"),
    ]


def test_models_scored_in_different_ways_say_so(tmp_path):
    write_result(tmp_path, "a", FIRST, time="zero", rate=0.15)
    write_result(tmp_path, "b", FIRST, time="constant", rate=0.3)
    write_result(tmp_path, "c", FIRST, time="zero", rate=0.3)
    assert [r["model"] for r in compared([tmp_path])] == [
        "a (time=zero)",
        "b (time=constant, rate=0.3)",
        "c (time=zero)",
    ]


def test_pseudo_log_likelihoods_are_one_score_wherever_a_model_predicts(tmp_path):
    for model, score in (("a", "pll"), ("b", "mntp"), ("c", "causal")):
        write_result(tmp_path, model, FIRST, score=score)
    names = [record["model"] for record in compared([tmp_path])]
    assert names == ["a (score=pll)", "b (score=pll)", "c (score=causal)"]
    assert [record["model"] for record in compared([tmp_path / "a", tmp_path / "b"])] == ["a", "b"]
    group = f"both={tmp_path / 'a'},{tmp_path / 'b'}"
    assert compared([], [group])[0]["seeds"] == 2


@pytest.mark.parametrize(("task", "differs"), [("blimp", False), ("ewok", True), ("entity_tracking", True)])
def test_results_of_two_protocols_are_compared_where_the_questions_are_the_same(tmp_path, task, differs):
    write_result(tmp_path, "a", FIRST, task=task)  # an older result, without a protocol
    write_result(tmp_path, "b", FIRST, task=task, protocol="2025")
    assert len(compared([tmp_path])) == 2
    write_result(tmp_path, "c", FIRST, task=task, protocol="2026")
    if differs:
        with pytest.raises(UserError, match=rf"{task}/.*: the protocols 2026 and 2025 ask different questions"):
            compared([tmp_path])
    else:
        assert len(compared([tmp_path])) == 3
    write_result(tmp_path, "d", FIRST, task=task, protocol="1999")
    with pytest.raises(UserError, match=r"summary\.json:1: protocol must be 2026 or 2025, not '1999'"):
        compared([tmp_path])


def test_a_metric_other_than_accuracy_may_count_for_a_fine_tuned_task(tmp_path):
    write_result(tmp_path, "a", FIRST, task="mrpc", data="glue", metric="f1")
    assert compared([tmp_path])[0]["accuracy"] == 0.625


def test_the_baseline_can_be_chosen_by_the_name_of_its_group_or_of_a_run(tmp_path):
    for model, score in (("a-s0", "pll"), ("b-s0", "pll"), ("b-s1", "pll"), ("c-s0", "causal"), ("c-s0", "pll")):
        write_result(tmp_path, model, FIRST, score=score)
    groups, _ = collect_groups([tmp_path], [])
    assert [group.name for group in groups] == ["a (score=pll)", "b (score=pll)", "c (score=causal)", "c (score=pll)"]
    for name in ("b (score=pll)", "b", "b-s1"):
        assert [group.name[0] for group in baseline_first(groups, name)] == ["b", "a", "c", "c"]
    with pytest.raises(UserError, match=r"--baseline c: several groups have this name\n  groups: a \(score=pll\), b"):
        baseline_first(groups, "c")
    with pytest.raises(UserError, match="--baseline d: no such group"):
        baseline_first(groups, "d")


def test_another_checkpoint_of_a_model_is_another_group(tmp_path):
    for revision in ("main", "chck_1M"):
        write_result(tmp_path, "a-s0", FIRST, revision=revision)
    assert {record["model"] for record in compared([tmp_path])} == {"a", "a@chck_1M"}


def test_a_single_recipe_has_a_mean_and_a_spread(tmp_path):
    for seed in range(3):
        write_result(tmp_path, f"a-s{seed}", noise(seed))
    (record,) = compared([tmp_path])
    assert record["seeds"] == 3
    assert record["sd"] > 0
    assert record["difference"] is None


def test_tasks_that_some_lack_are_left_out_and_said(tmp_path):
    for model in ("a", "b"):
        write_result(tmp_path, model, FIRST)
    write_result(tmp_path, "a", FIRST, data="supplement_fast")
    groups, _ = collect_groups([tmp_path], [])
    assert left_out(groups) == ["blimp/supplement_fast"]
    assert {record["data"] for record in compared([tmp_path])} == {"blimp_fast"}


def test_tasks_without_right_answers_are_not_compared(tmp_path):
    write_result(tmp_path, "a", FIRST)
    wug = write_result(tmp_path, "a", FIRST, task="wug_adj", data="wug_adj", metric="spearman")
    groups, others = collect_groups([tmp_path], [])
    assert groups[0].tasks == [TaskName("blimp", "blimp_fast")]
    assert others == [wug]


def test_entity_tracking_is_averaged_as_the_task_averages_it(tmp_path):
    correct = {"regular_0_ops": [1, 1], "regular_1_ops": [1, 0], "ambiref_0_ops": [0, 0, 1]}
    write_result(tmp_path, "a", correct, task="entity_tracking", data="entity_tracking")
    expected = ENTITY_TRACKING.macro({uid: float(np.mean(values)) for uid, values in correct.items()})
    assert compared([tmp_path])[0]["accuracy"] == pytest.approx(expected)
    assert expected != pytest.approx(np.mean([1, 0.5, 1 / 3]))


def test_every_uid_is_compared_on_request(tmp_path):
    a, b = write_result(tmp_path, "a", FIRST), write_result(tmp_path, "b", SECOND)
    records = compared([a, b], by_uid=True)
    assert [(r["uid"], r["model"], r["accuracy"]) for r in records[2:]] == [
        ("agreement", "a", 0.5),
        ("agreement", "b", 1.0),
        ("island", "a", 0.75),
        ("island", "b", 0.25),
    ]
    assert [(r["won"], r["lost"]) for r in (records[3], records[5])] == [(2, 0), (0, 1)]
    assert records[3]["p_mcnemar"] == pytest.approx(0.5)


def test_p_values_are_corrected_for_their_number_in_the_table(tmp_path):
    for model, better in (("a", 0), ("b", 0.2), ("c", 0.4)):
        write_result(tmp_path, model, noise(5, better=better))
    _, b, c = compared([tmp_path])
    small, large = sorted((b, c), key=lambda record: record["p_mcnemar"])
    assert small["p_mcnemar_holm"] == pytest.approx(2 * small["p_mcnemar"])
    assert large["p_mcnemar_holm"] == pytest.approx(max(large["p_mcnemar"], small["p_mcnemar_holm"]))


def test_the_same_seed_gives_the_same_table(tmp_path):
    for model in ("a", "b"):
        write_result(tmp_path, model, noise(len(model) + ord(model[0])))
    assert compared([tmp_path], by_uid=True) == compared([tmp_path], by_uid=True)
    assert compared([tmp_path], seed=1) != compared([tmp_path])


def test_the_table_shows_what_there_is_and_says_what_it_means(tmp_path):
    for model in ("a-s0", "a-s1", "b-s0"):
        write_result(tmp_path, model, noise(ord(model[-1])))
    groups, _ = collect_groups([tmp_path], [])
    rows = compare(groups, by_uid=False, draws=100, seed=0)
    columns = [column.header for column in comparison_table(rows).columns]
    assert columns == ["task", "model", "seeds", "accuracy", "sd", "difference", "95 % interval", "p"]
    assert [line.split(":")[0] for line in explanation(rows).splitlines()] == ["accuracy", "sd", "difference", "p"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a, [a, a]), "blimp_fast: given twice"),
        (lambda a, b: (a, [a.parents[5], a]), "blimp_fast: given twice"),
        (lambda a, b: (a, [a.parents[5] / "nowhere"]), "nowhere: no results"),
        (lambda a, b: ((a / "summary.json").unlink(), [a]), "summary.json: no such file"),
        (lambda a, b: ((a / "summary.json").write_text("{}"), [a]), "summary.json:1: metric is missing"),
        (lambda a, b: ((a / "items.jsonl").write_text('{"id": "x_0"}\n'), [a]), "items.jsonl:1: uid is missing"),
        (
            lambda a, b: ((a / "items.jsonl").write_text('{"id": "x", "uid": "x", "correct": 2}\n'), [a]),
            "items.jsonl:1: correct must be a number from 0 to 1, not 2",
        ),
        (
            lambda a, b: ((a / "items.jsonl").write_text('{"id": "x", "uid": "x", "correct": 1}\n' * 2), [a]),
            "items.jsonl: 2 questions have the id x",
        ),
    ],
)
def test_results_that_cannot_be_read_are_named(tmp_path, change, message):
    a, b = (write_result(tmp_path, model, FIRST) for model in ("a", "b"))
    _, paths = change(a, b)
    with pytest.raises(UserError, match=message):
        compared(paths)


def test_what_cannot_be_compared_is_refused(tmp_path):
    a = write_result(tmp_path, "a", FIRST)
    b = write_result(tmp_path, "b", FIRST, data="supplement_fast")
    bound = write_result(tmp_path, "c", FIRST, score="bound")
    copy = write_result(tmp_path / "again", "a", FIRST)
    for paths, named, message in (
        ([], [], "no results to compare"),
        ([a, b], [], "no task that all models have results of\n  a: blimp/blimp_fast\n  b: blimp/supplement_fast"),
        ([a, copy], [], "two results of a on blimp/blimp_fast, scored in the same way"),
        ([a], [f"a={copy}"], "two groups are called a"),
        ([a], [f"b={a}"], "given twice"),
        ([], [f"b={a},{a}"], "given twice"),
        ([a], ["b"], "--group b: expected NAME=PATH"),
        ([a], [f"both={copy},{bound}"], "group both: its models were not scored in the same way"),
    ):
        with pytest.raises(UserError, match=message):
            compared(paths, named)


def test_unfinished_results_are_not_read(tmp_path):
    a = write_result(tmp_path, "a", FIRST)
    a.rename(a.with_name(".tmp-1-blimp_fast"))
    with pytest.raises(UserError, match="no results"):
        find_results(tmp_path)


def test_the_command_prints_a_table_and_writes_all_figures(tmp_path, run):
    for model in ("a-s0", "b-s0"):
        write_result(tmp_path, model, FIRST)
    write_result(tmp_path, "b-s0", FIRST, data="supplement_fast")
    code, out, err = run("eval", "compare", str(tmp_path), "--csv", str(tmp_path / "t.csv"), "--draws", "100")
    assert code == 0
    assert [line.split()[:4] for line in out.splitlines()[1:3]] == [
        ["blimp/blimp_fast", "a", "1", "62.50"],
        ["blimp/blimp_fast", "b", "1", "62.50"],
    ]
    assert err == "note: not compared, since not all models have results: blimp/supplement_fast\n"
    records = json.loads(run("eval", "compare", str(tmp_path), "--json", "--draws", "100")[1])
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [{key: "" if value is None else str(value) for key, value in row.items()} for row in records]


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("summary.json", "[" * 100_000, r"summary\.json:1: JSON nested too deeply"),
        ("summary.json", '{"metric": "",\n"rate": 1,\n"rate": 2}', r"summary\.json:3: the key 'rate' is given twice"),
        ("summary.json", '{"metric": "accuracy", "rate": NaN}', r"summary\.json: 'rate' must be a finite number"),
        ("summary.json", '{"metric": "accuracy", "score": ["pll"]}', r"summary\.json:1: score must be text or a n"),
        ("summary.json", '{"metric": ["accuracy"]}', r"summary\.json:1: metric must be text"),
        (
            "items.jsonl",
            '{"id": "a", "uid": "b", "correct": 1}\n{"id": 1, "id": 2}',
            r"jsonl:2: the key 'id' is",
        ),
        (
            "items.jsonl",
            '{"id": "a", "uid": "b", "correct": ' + "9" * 5000 + "}",
            r"jsonl:1: .* too many digits",
        ),
        ("items.jsonl", '{"id": "a", "uid": "b", "correct": 1e999}', r"l:1: correct must be a number, not inf"),
        (
            "items.jsonl",
            '{"id": "a", "uid": "b", "correct": NaN}',
            r"l:1: correct must be a number, not nan",
        ),
    ],
)
def test_a_damaged_result_is_named_with_its_line(tmp_path, file, content, complaint):
    folder = write_result(tmp_path, "a", FIRST)
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=complaint):
        find_results(tmp_path)
