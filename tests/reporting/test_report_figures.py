"""Which group a table of the report marks as the best, and which results share a line."""

import json
from types import SimpleNamespace

import pytest

from ltg_mdlm.reporting.html_report.figures import Figure, figure_tables, results_of
from ltg_mdlm.reporting.html_report.run_groups import Spread

GROUPS = [SimpleNamespace(code=code, name=code) for code in "AB"]


def marked(first, second, **options):
    figure = Figure("accuracy", {"A": first, "B": second}, lower_is_better=False, **options)
    ((_, cells),) = figure_tables(GROUPS, [figure])[0].lines
    return "".join(code for code, cell in zip("AB", cells, strict=True) if cell.best)


@pytest.mark.parametrize(("lead", "expected"), [(0.0, ""), (2.7, ""), (2.9, "B")])
def test_a_lead_within_two_standard_errors_of_single_runs_is_not_marked(lead, expected):
    """Two errors of 1 are 1.41 for the difference."""
    errors = {"A": 1.0, "B": 1.0}
    assert marked(Spread(50.0, None, 1), Spread(50.0 + lead, None, 1), errors=errors) == expected


@pytest.mark.parametrize(("lead", "expected"), [(0.0, ""), (2.7, ""), (2.9, "B")])
def test_over_seeds_the_noise_is_that_of_the_mean(lead, expected):
    assert marked(Spread(50.0, 2.0, 4), Spread(50.0 + lead, 2.0, 4), errors={"A": 9.0, "B": 9.0}) == expected


def test_without_a_known_error_the_better_value_is_marked():
    assert marked(Spread(50.0, None, 1), Spread(50.1, None, 1)) == "B"


def test_pseudo_log_likelihoods_share_a_line_wherever_a_model_predicts(tmp_path):
    labels = []
    for score in ("pll", "mntp", "causal"):
        folder = tmp_path / score / "main" / "zero_shot"
        folder.mkdir(parents=True)
        summary = {"task": "blimp", "data": "blimp_fast", "metric": "accuracy", "accuracy": 0.5, "standard_error": 0.01}
        (folder / "summary.json").write_text(json.dumps(summary | {"score": score, "weights": "ema"}))
        (result,) = results_of(SimpleNamespace(name=score), tmp_path)
        labels.append(result.task)
        assert (result.value, result.error) == (50.0, 1.0)
    assert labels == ["blimp/blimp_fast, accuracy (pll)"] * 2 + ["blimp/blimp_fast, accuracy (causal)"]
