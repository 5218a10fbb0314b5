"""The checks that every plugin for ltg-mdlm passes."""

from typing import ClassVar

from ltg_mdlm.testing import PluginConformance


class TestDual(PluginConformance):
    """With the built-in masking, schedule and conditioning."""

    plugin = "dual"


class TestNextToken(PluginConformance):
    """Masked tokens are predicted one position earlier, as published."""

    plugin = "dual"
    options: ClassVar = {"next_token": True, "causal_share": 0.5}


class TestWithFrequencyMasking(PluginConformance):
    """With hazards that differ between tokens."""

    plugin = "dual"
    sets = ("plugins.freq_mdlm.power=1", "plugins.freq_mdlm.weighting=token")
