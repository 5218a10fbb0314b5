"""The checks that every plugin for ltg-mdlm passes."""

from ltg_mdlm.testing import PluginConformance


class TestComplementary(PluginConformance):
    """The plugin as it comes."""

    plugin = "complementary"
