"""The conformance kit in pytest: every check is a test method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from ltg_mdlm.testing.all_checks import CHECKS
from ltg_mdlm.testing.plugin_under_test import Check, Examination, PluginUnderTest
from ltg_mdlm.testing.training_steps import Steps, train_steps


class PluginConformance:
    """Subclass this as `Test...`, name the plugin, and pytest runs every check of `ltg-mdlm plugins check`.

    Tests of your own go into the same class; `five_step_run` gives them a trained run.
    """

    plugin: ClassVar[str]
    """Name of the entry point."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Options to check it with; subclass once for each set that matters."""
    sets: ClassVar[Sequence[str]] = ()
    """Further settings, as `--set` takes them: options of other plugins, `plugins.NAME.option=value`, and slots."""

    @classmethod
    def subject(cls) -> PluginUnderTest:
        """The plugin with these options."""
        return PluginUnderTest(cls.plugin, cls.options, cls.sets)

    @classmethod
    def examination(cls) -> Examination:
        """The verdicts so far: checks that build upon others do not repeat them."""
        if "_examination" not in cls.__dict__:
            cls._examination = Examination(cls.subject())
        return cls._examination

    _examination: ClassVar[Examination]

    @pytest.fixture
    def five_step_run(self) -> Steps:
        """Five steps of the real trainer at a tiny size: logged rows, losses, components and their state."""
        return train_steps(self.subject(), steps=5)


def _as_test(check: Check) -> Callable[[PluginConformance], None]:
    def test(self: PluginConformance) -> None:
        __tracebackhide__ = True
        verdict = self.examination().verdict(check)
        if verdict.outcome == "not applicable":
            pytest.skip(verdict.reason)
        if verdict.outcome == "failed":
            # The lines of the kit say nothing; those of an error in the plugin do.
            raise AssertionError(verdict.reason) from verdict.crash

    test.__doc__ = check.function.__doc__
    test.__name__ = f"test_{check.name}"
    return test


for _check in CHECKS:
    setattr(PluginConformance, f"test_{_check.name}", _as_test(_check))
