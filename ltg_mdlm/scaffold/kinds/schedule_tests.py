"""my_plugin keeps the rules of the host, and its mathematics is what it says."""

import pytest
import torch
from ltg_mdlm_my_plugin.plugin import PowerSchedule

from ltg_mdlm.testing import PluginConformance

T = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000


class TestMyPlugin(PluginConformance):
    plugin = "my_plugin"
    options = {"exponent": 1.5}


@pytest.mark.parametrize("exponent", [1.0, 1.5, 3.0])
def test_slope_and_density_are_those_of_the_rate(exponent):
    schedule, h = PowerSchedule(exponent), 1e-6
    t = T[50:]  # next to 0, the difference is less exact than what it is to test
    difference = (schedule.rate(t + h, 0.0) - schedule.rate(t - h, 0.0)) / (2 * h)
    assert torch.allclose(schedule.slope(t, 0.0), difference, rtol=1e-6)
    assert torch.allclose(schedule.density(schedule.rate(t, 0.0), 0.0), 1 / difference, rtol=1e-6)


def test_the_mean_rate_is_one_over_exponent_plus_one():
    assert PowerSchedule(2.0).rate(T, 0.0).mean().item() == pytest.approx(1 / 3, abs=1e-6)
