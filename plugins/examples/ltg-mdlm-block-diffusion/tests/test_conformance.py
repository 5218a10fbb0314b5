"""The checks that every plugin for ltg-mdlm passes."""

from typing import ClassVar

from ltg_mdlm.testing import PluginConformance


class TestBlockDiffusion(PluginConformance):
    """Several blocks in a document."""

    plugin = "block_diffusion"
    options: ClassVar = {"block_length": 4}
