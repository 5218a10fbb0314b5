"""my_plugin keeps the rules of the host, and its mathematics is what it says."""

import pytest
import torch
from ltg_mdlm_my_plugin.plugin import length_weights, scale_to_rate

from ltg_mdlm.testing import PluginConformance


class TestMyPlugin(PluginConformance):
    plugin = "my_plugin"
    options = {"power": 1.0}


@pytest.mark.parametrize("rate", [0.001, 0.3, 0.7, 0.999])
def test_the_mean_probability_is_the_rate_and_longer_tokens_are_masked_more(rate):
    weight_BT = length_weights(["a", "bb", "cccc", "dddddddd"], power=0.5).unsqueeze(0)
    maskable_BT = torch.tensor([[True, True, True, False]])
    p_BT = scale_to_rate(weight_BT, torch.tensor([[rate]], dtype=torch.float64), maskable_BT)
    assert p_BT[maskable_BT].mean().item() == pytest.approx(rate)
    assert p_BT[0].tolist() == sorted(p_BT[0].tolist())
    assert 0 <= p_BT[maskable_BT].min() < p_BT[maskable_BT].max() <= 1


def test_power_zero_is_uniform_masking():
    weight_BT = length_weights(["a", "bb"], power=0.0).unsqueeze(0)
    p_BT = scale_to_rate(weight_BT, torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[True, True]]))
    assert p_BT[0].tolist() == pytest.approx([0.3, 0.3])
