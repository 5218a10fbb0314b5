"""The conformance kit for pytest: a class with a test method for every check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from ltg_mdlm.testing.plugin_under_test import Check, Examination, PluginUnderTest
from ltg_mdlm.testing.rank_server import start_server
from ltg_mdlm.testing.training_checks import CHECKS
from ltg_mdlm.testing.training_steps import Steps, train_steps


class PluginConformance:
    """Base class of conformance tests. pytest runs all checks of `ltg-mdlm plugins check` on a subclass `Test...`.

    The subclass sets `plugin`, and may add tests of its own, which can use the fixture `five_step_run`.
    """

    plugin: ClassVar[str]
    """Name of the entry point."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Options of the plugin. Write one subclass for every relevant set of options."""
    sets: ClassVar[Sequence[str]] = ()
    """Further settings as for `--set`: options of plugins, `plugins.NAME.option=value`, and `slots.SLOT=NAME`."""

    @classmethod
    def subject(cls) -> PluginUnderTest:
        """The plugin with these options."""
        return PluginUnderTest(cls.plugin, cls.options, cls.sets)

    @classmethod
    def examination(cls) -> Examination:
        """The verdicts so far, so that checks that others require run only once."""
        if "_examination" not in cls.__dict__:
            start_server()
            cls._examination = Examination(cls.subject())
        return cls._examination

    _examination: ClassVar[Examination]

    @pytest.fixture
    def five_step_run(self) -> Steps:
        """Five training steps of a tiny model: logged rows, losses, components and their state."""
        return train_steps(self.subject(), steps=5)


def _as_test(check: Check) -> Callable[[PluginConformance], None]:
    def test(self: PluginConformance) -> None:
        __tracebackhide__ = True
        verdict = self.examination().verdict(check)
        if verdict.outcome == "not applicable":
            pytest.skip(verdict.reason)
        if verdict.outcome == "failed":
            # Hide the traceback of the kit, but show that of an exception in the plugin.
            raise AssertionError(verdict.reason) from verdict.crash

    test.__doc__ = check.function.__doc__
    test.__name__ = f"test_{check.name}"
    return test


for _check in CHECKS:
    setattr(PluginConformance, f"test_{_check.name}", _as_test(_check))
