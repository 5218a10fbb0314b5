"""The checks that every plugin for ltg-mdlm passes."""

from typing import ClassVar

from ltg_mdlm.testing import PluginConformance


class TestGIDD(PluginConformance):
    """A tenth of random tokens."""

    plugin = "gidd"


class TestMasksOnly(PluginConformance):
    """Without random tokens, it is masked diffusion."""

    plugin = "gidd"
    options: ClassVar = {"uniform_share": 0.0}
