"""my_plugin keeps the rules of the host, and its mathematics is what it says."""

from types import SimpleNamespace

import pytest
import torch
from ltg_mdlm_my_plugin.plugin import AccuracyByMaskRate, Options

from ltg_mdlm.testing import PluginConformance


class TestMyPlugin(PluginConformance):
    plugin = "my_plugin"
    options = {"split": 0.5}


def test_accuracies_are_averaged_over_steps_and_causal_tokens_left_out():
    component = AccuracyByMaskRate(Options(split=0.5, memory=0.5), torch.device("cpu"), lambda counts: counts)
    rate_N, causal_N = torch.tensor([0.1, 0.1, 0.9, 0.9]), torch.tensor([False, False, False, True])
    for correct in ([True, False, True, True], [True, True, False, True]):
        supervised = SimpleNamespace(rate_N=rate_N, causal_N=causal_N)
        component.observe(SimpleNamespace(supervised=supervised, correct_N=torch.tensor(correct)))
        component.step_end(None)
    # Lightly masked: 1 of 2, at half weight, then 2 of 2; heavily masked: 1 of 1, at half weight, then 0 of 1.
    assert component.metrics()["accuracy_light"].item() == pytest.approx(2.5 / 3)
    assert component.metrics()["accuracy_heavy"].item() == pytest.approx(0.5 / 1.5)
