"""The conformance kit for plugins, which runs in pytest or as `ltg-mdlm plugins check NAME`.

    from ltg_mdlm.testing import PluginConformance

    class TestMyPlugin(PluginConformance):
        plugin = "my_plugin"                    # entry-point name
        options = {"power": 0.1}

For other tests of plugins: `toy` (a vocabulary, batches, steps and mask rates), `train_steps` (a few training steps),
`run_on_ranks` (several processes with gloo), `NoHostReads` (makes a device synchronisation an error, also on the CPU).
Only `PluginConformance` imports pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltg_mdlm.testing import toy
    from ltg_mdlm.testing.conformance import PluginConformance
    from ltg_mdlm.testing.host_reads import NoHostReads
    from ltg_mdlm.testing.plugin_under_test import PluginUnderTest
    from ltg_mdlm.testing.ranks import run_on_ranks
    from ltg_mdlm.testing.training_steps import train_steps

__all__ = ["NoHostReads", "PluginConformance", "PluginUnderTest", "run_on_ranks", "toy", "train_steps"]

_MODULES = {
    "NoHostReads": "host_reads",
    "PluginConformance": "conformance",
    "PluginUnderTest": "plugin_under_test",
    "run_on_ranks": "ranks",
    "train_steps": "training_steps",
}


def __getattr__(name: str) -> Any:
    if name == "toy":
        return import_module("ltg_mdlm.testing.toy")
    if name in _MODULES:
        return getattr(import_module(f"ltg_mdlm.testing.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
