"""my_plugin keeps the rules of the host, and its mathematics is what it says."""

import torch
from ltg_mdlm_my_plugin.plugin import PowerOfRate

from ltg_mdlm.testing import PluginConformance


class TestMyPlugin(PluginConformance):
    plugin = "my_plugin"
    options = {"exponent": 0.25}


def test_the_value_is_a_power_of_the_mask_rate():
    rate_B = torch.tensor([0.04, 0.25, 1.0], dtype=torch.float64)
    assert torch.allclose(PowerOfRate(0.5).value_for_rate(rate_B), torch.tensor([0.2, 0.5, 1.0]))
