"""my_plugin keeps the rules of the host, and its mathematics is what it says."""

import torch
from ltg_mdlm_my_plugin.plugin import capped_weight

from ltg_mdlm.testing import PluginConformance


class TestMyPlugin(PluginConformance):
    plugin = "my_plugin"
    options = {"cap": 3.0}


def test_weights_are_slope_over_rate_up_to_the_cap():
    slope, rate = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.5, 0.01, 1.0])
    assert torch.allclose(capped_weight(slope, 1 / rate, cap=5.0), torch.tensor([2.0, 5.0, 2.0], dtype=torch.float64))
