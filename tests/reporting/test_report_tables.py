"""Tables of the report: averages, their errors, which group is marked as the best, and which results share a line."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.fabricated import fabricate_run

from ltg_mdlm.reporting.html_report.run_groups import group_runs, read_record
from ltg_mdlm.reporting.html_report.tables import (
    Value,
    best_of,
    figure_tables,
    held_out_values,
    html_table,
    leader_sentence,
    read_result,
    summarise,
    welch_test,
)

GROUPS = [SimpleNamespace(code=code, label=code, measured=((0, 0, 0), True)) for code in "AB"]


def compared(first, second, *, lower_is_better=False):
    """Which of two groups (mean, error, runs) is marked."""
    frame = pd.DataFrame([first, second], columns=["mean", "error", "runs"]).assign(lower_is_better=lower_is_better)
    return "".join(code for code, best in zip("AB", best_of(frame), strict=True) if best)


def values_of(**groups):
    return [Value("f", "", code, v, None, "{:.2f}", False, "") for code, some in groups.items() for v in some]


def test_several_runs_are_averaged_with_the_standard_error_of_their_mean():
    found = summarise(GROUPS, values_of(A=[1.0, 2.0, 4.0])).iloc[0]
    assert (found["mean"], found["runs"]) == (pytest.approx(7 / 3), 3)
    assert found["error"] == pytest.approx(np.std([1, 2, 4], ddof=1) / math.sqrt(3))
    assert found["text"] == "2.33\u00a0±\u00a00.88"


def test_a_property_of_the_text_that_is_equal_in_all_runs_has_no_error():
    assert summarise(GROUPS, values_of(A=[0.1, 0.1, 0.1])).iloc[0]["text"] == "0.10"


def test_values_that_are_not_finite_are_left_out_and_the_number_of_the_others_is_named():
    assert (
        summarise(GROUPS, values_of(A=[1.0, math.nan, 3.0])).iloc[0]["text"]
        == "2.00\u00a0±\u00a01.00 (n\u00a0=\u00a02)"
    )
    assert summarise(GROUPS, values_of(A=[math.nan])).empty


@pytest.mark.parametrize(("lead", "expected"), [(0.0, ""), (2.7, ""), (2.85, "B")])
def test_the_errors_of_single_runs_decide_as_in_a_z_test(lead, expected):
    """1.96 standard errors of the difference of two values with error 1 are 2.77."""
    assert compared((50.0, 1.0, 1), (50.0 + lead, 1.0, 1)) == expected


@pytest.mark.parametrize("lead", [1.0, 2.0, 3.0, 4.0, 6.0])
def test_over_seeds_the_best_is_marked_if_welchs_t_test_is_significant(lead):
    one, other = [50.0, 51.0, 54.0, 49.0], [51.0 + lead, 52.0 + lead, 51.5 + lead]
    significant = stats.ttest_ind(one, other, equal_var=False).pvalue < 0.05
    found = summarise(GROUPS, values_of(A=one, B=other))
    assert found["best"].tolist() == [False, significant]


def test_the_p_values_are_those_of_scipy():
    mean, error, runs = np.array([5.0, 5.3, 4.1]), np.array([0.1, 0.02, 0.4]), np.array([3.0, 5.0, 2.0])
    expected = [
        stats.ttest_ind_from_stats(5.0, 0.1 * 3**0.5, 3, m, e * n**0.5, n, equal_var=False).pvalue
        for m, e, n in zip(mean, error, runs, strict=True)
    ]
    assert welch_test(mean, error, runs, 0) == pytest.approx(expected, rel=1e-10)


def test_nothing_is_marked_if_an_error_is_unknown_or_no_direction_is_better():
    assert compared((50.0, 1.0, 1), (90.0, math.nan, 1)) == ""
    assert compared((50.0, 1.0, 1), (90.0, 1.0, 1), lower_is_better=None) == ""
    assert compared((50.0, 1.0, 1), (90.0, 1.0, 1), lower_is_better=True) == "A"


def test_a_group_with_a_remark_is_not_compared():
    values = values_of(A=[1.0, 1.1, 1.2], B=[5.0, 5.1, 5.2])
    values = [value._replace(remark="at step 3" if value.group == "B" else "") for value in values]
    assert not summarise(GROUPS, values)["best"].any()


def test_few_groups_are_columns_and_many_groups_are_lines():
    many = [SimpleNamespace(code=f"G{i}", label=f"G{i} x", measured=((0,), True)) for i in range(8)]
    values = [
        Value(figure, "pll", group.code, 1.0, None, "{:.1f}", False, "") for figure in "abcdefgh" for group in many
    ]
    (narrow,) = figure_tables(many[:6], summarise(many, values))
    assert (narrow.shape, narrow.columns[2]) == ((8, 8), "G0 x")
    first, second = figure_tables(many, summarise(many, values))
    assert (first.shape, first.columns[1], second.columns[-1]) == ((8, 7), "a, pll", "h, pll")


def test_tables_have_headings_of_lines_and_columns_and_escape_text():
    page = html_table(pd.DataFrame({"a<b": ["<i>&" * 20], "c": [None]}), "say <it>")
    assert '<th scope="col">a&lt;b</th>' in page
    assert f'<th scope="row">{"&lt;i&gt;&amp;" * 20}</th>' in page
    assert "<td>–</td>" in page
    assert 'aria-label="say &lt;it&gt;"' in page


def test_pseudo_log_likelihoods_share_a_line_wherever_a_model_predicts(tmp_path):
    found = []
    for score in ("pll", "mntp", "causal"):
        summary = {"task": "blimp", "data": "blimp_fast", "metric": "accuracy", "accuracy": 0.5, "standard_error": 0.01}
        (tmp_path / "summary.json").write_text(json.dumps(summary | {"score": score, "weights": "ema"}))
        result = read_result(tmp_path / "summary.json")
        assert (result.figure, result.value, result.standard_error) == ("blimp/blimp_fast, accuracy, %", 50.0, 1.0)
        found.append(result.scoring)
    assert found == ["pll", "pll", "causal"]


@pytest.mark.parametrize(
    ("task", "protocol", "expected"),
    [("ewok", "2025", "protocol 2025"), ("ewok", None, "protocol 2025"), ("ewok", "2026", ""), ("blimp", "2025", "")],
)
def test_answers_to_other_questions_have_another_line(tmp_path, task, protocol, expected):
    summary = {"task": task, "data": "fast", "metric": "accuracy", "accuracy": 0.5}
    (tmp_path / "summary.json").write_text(json.dumps(summary | ({"protocol": protocol} if protocol else {})))
    assert read_result(tmp_path / "summary.json").scoring == expected


def test_bounds_on_different_texts_are_not_compared(tmp_path):
    """A corpus of equally frequent words has another bound: the runs of the usual one are compared without it."""
    runs = [
        fabricate_run(tmp_path / f"{lr}-{exponent}-{seed}", "uniform_mdlm", *sets, seed=seed, level=level)
        for lr, exponent, level in ((0.1, 1.0, 5.0), (0.2, 1.0, 5.5), (0.1, 0.0, 3.0))
        for seed in range(3)
        for sets in [(f"optimizer.lr={lr}", f"data.builtin_zipf_exponent={exponent}")]
    ]
    groups = group_runs([read_record(run) for run in runs])
    found = held_out_values(groups)
    best = found[found["best"] & found["figure"].str.startswith("bound")]["group"].iloc[0]
    assert {group.code: group.name for group in groups}[best] == "builtin_zipf_exponent=1.0, lr=0.1"
    assert leader_sentence(groups, found).count("has the lowest bound") == 1
    assert leader_sentence(groups, found).startswith("Among runs with builtin_zipf_exponent=1.0, ")
