"""The checks that every plugin for ltg-mdlm passes."""

from ltg_mdlm.testing import PluginConformance


class TestLearnedSchedule(PluginConformance):
    """The plugin as it comes."""

    plugin = "learned_schedule"
