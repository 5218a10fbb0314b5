"""The checks that every plugin for ltg-mdlm passes."""

from typing import ClassVar

from ltg_mdlm.testing import PluginConformance


class TestAMLM(PluginConformance):
    """As published."""

    plugin = "amlm"


class TestAdaptingInEveryStep(PluginConformance):
    """Weights that have moved."""

    plugin = "amlm"
    options: ClassVar = {"update_every": 1, "history": 0.5}
