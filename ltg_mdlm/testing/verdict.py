"""Checks of a plugin, and the verdicts that they come to."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ltg_mdlm
from ltg_mdlm.errors import UserError
from ltg_mdlm.testing.subject import PluginUnderTest
from ltg_mdlm.testing.violation import NotApplicable, Violation

Outcome = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True)
class Check:
    """One promise that plugins keep."""

    name: str
    """A sentence with underscores."""
    function: Callable[[PluginUnderTest], None]
    requires: tuple[Check, ...]
    """If one of these fails, this check would only repeat it."""

    @property
    def title(self) -> str:
        """The name as a sentence."""
        return self.name.replace("_", " ")

    def __call__(self, subject: PluginUnderTest) -> None:
        """Raises Violation, or NotApplicable."""
        self.function(subject)


def check(*requires: Check) -> Callable[[Callable[[PluginUnderTest], None]], Check]:
    """Make a check of a function, to run after those that it builds upon."""
    return lambda function: Check(function.__name__, function, requires)


@dataclass(frozen=True)
class Verdict:
    """What came of a check."""

    check: Check
    outcome: Outcome
    reason: str = ""
    """Why it failed, or does not apply."""
    crash: Exception | None = None
    """The error behind a failure, where the plugin's code raised one."""
    blocked_by: Check | None = None
    """The failed check that this one builds upon, perhaps by way of others."""


class Examination:
    """The verdicts on one plugin; each check runs once, after those that it builds upon."""

    def __init__(self, subject: PluginUnderTest) -> None:
        self.subject = subject
        self._verdicts: dict[str, Verdict] = {}

    def verdict(self, check: Check) -> Verdict:
        """Run a check, or remember what came of it."""
        if check.name not in self._verdicts:
            self._verdicts[check.name] = self._come_to(check)
        return self._verdicts[check.name]

    def _come_to(self, check: Check) -> Verdict:
        for earlier in map(self.verdict, check.requires):
            blocked_by = earlier.check if earlier.outcome == "failed" else earlier.blocked_by
            if blocked_by is not None:
                return Verdict(check, "not applicable", f"not run: repair first {blocked_by.title!r}", None, blocked_by)
        try:
            check(self.subject)
        except NotApplicable as reason:
            return Verdict(check, "not applicable", str(reason))
        except Violation as violation:
            return Verdict(check, "failed", str(violation))
        except Exception as error:
            return Verdict(check, "failed", str(as_violation(self.subject, error)), error)
        return Verdict(check, "passed")


def as_violation(subject: PluginUnderTest, error: Exception) -> Violation:
    """An error that the plugin's code raised, or led to, as a violation."""
    where = f"{subject.label}: {innermost_line(error)}"
    name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return Violation(where, "no error", f"{name}{error}".strip())


def innermost_line(error: BaseException) -> str:
    """`file.py:12 in function`: the innermost line of an error that is neither the host's nor torch's, if any is."""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    ours = str(Path(ltg_mdlm.__file__).parent)
    foreign = [f for f in frames if not f.filename.startswith(ours) and "/site-packages/torch/" not in f.filename]
    frame = (foreign or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
