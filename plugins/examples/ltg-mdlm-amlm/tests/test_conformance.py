"""The checks that every plugin for ltg-mdlm passes."""

from typing import ClassVar

from ltg_mdlm.testing import PluginConformance


class TestAMLM(PluginConformance):
    """The published options."""

    plugin = "amlm"


class TestAdaptingInEveryStep(PluginConformance):
    """Weights that differ from their initial values."""

    plugin = "amlm"
    options: ClassVar = {"update_every": 1, "history": 0.5}
