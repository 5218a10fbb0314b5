"""The cost of a run on this machine, as `ltg-mdlm check` estimates it."""

from __future__ import annotations

import json

import pytest
from support.runs import TINY

from ltg_mdlm.training import check

SETS = [part for text in TINY for part in ("--set", text)]


@pytest.fixture
def costs(monkeypatch, run):
    """The report of `check` for a machine with this matrix peak, in FLOP per second."""

    def report(peak: float) -> dict:
        monkeypatch.setattr(check, "matrix_peak", lambda device, **_: peak)
        code, out, err = run("check", *SETS, "--json")
        assert code == 0, err
        return json.loads(out)

    return report


def test_hours_here_are_inversely_proportional_to_the_peak_of_the_machine(costs):
    slow, fast = costs(1e3), costs(4e3)
    assert slow["hours_here"] == pytest.approx(4 * fast["hours_here"], rel=1e-4)


def test_padding_costs_as_much_as_text(run):
    def hours(*sets: str) -> float:
        code, out, err = run("check", *SETS, *(part for text in sets for part in ("--set", text)), "--json")
        assert code == 0, err
        return json.loads(out)["h200_hours"]

    assert hours("training.packing=one_document") == pytest.approx(hours(), rel=1e-6)


def test_hours_too_few_to_matter_are_not_shown_as_a_power_of_ten(run):
    _, out, _ = run("check", *SETS)
    assert "\nH200 hours   less than 0.01 (" in out


def test_a_run_of_days_on_a_cpu_is_a_warning(costs):
    assert not [text for text in costs(1e12)["warnings"] if "days" in text]
    (warning,) = [text for text in costs(1.0)["warnings"] if "days" in text]
    assert "--config laptop_wide" in warning
