"""The plugin that is checked, and its components in settings where they can be tried.

Checks of a plugin, and the verdicts that they come to.

What a check raises.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

import ltg_mdlm
from ltg_mdlm.core.components import (
    Component,
    CorpusStatistics,
    MaskingStrategy,
    NoiseSchedule,
    Objective,
    RowMode,
    RunContext,
    TimeConditioning,
)
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import Layer, Settings, load_settings
from ltg_mdlm.host.discovery import find
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.slots import SLOTS, Components
from ltg_mdlm.testing import toy

C = TypeVar("C")


TINY = (
    "data.builtin_words=4000",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "training.max_steps=8",
    "training.seq_len=32",
    "training.global_batch_rows=6",
    "training.precision=fp32",
    "training.threads=1",
    "validation.pairs=null",
    "validation.rows=2",
    "logging.every=1",
    "logging.wandb=off",
)
"""Settings of the runs that plugins are checked in."""


@dataclass(frozen=True)
class Part(Generic[C]):
    """A component that the plugin put into a slot."""

    plugin: str
    slot: str
    component: C

    def where(self, method: str) -> str:
        """Plugin, hook, class, method and line, for messages."""
        owner = type(self.component)
        return f"{self.plugin}: {owner.__name__}.{method} of ltg_mdlm_{self.slot} ({line_of(owner, method)})"


def line_of(owner: type, method: str | None = None) -> str:
    """`file.py:12` of a method, or of the class if it has no such function."""
    for thing in (getattr(owner, method, None) if method else None, owner):
        try:
            _, line = inspect.getsourcelines(cast(Any, thing))
            return f"{Path(inspect.getfile(cast(Any, thing))).name}:{line}"
        except (OSError, TypeError):
            continue
    return owner.__module__


@dataclass(frozen=True)
class PluginUnderTest:
    """An installed plugin with options; every component it gives out is freshly built."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sets: Sequence[str] = ()
    """More settings, `plugins.NAME.option=value` or `slots.SLOT=NAME`, which win over `options`."""

    @property
    def label(self) -> str:
        """The plugin and its distribution, for messages."""
        return f"plugin {self.name!r} ({find(self.name).origin})"

    def settings(self, *sets: str) -> Settings:
        """Settings of a tiny run with this plugin selected."""
        own = Layer("the options under test", {"plugins": {self.name: dict(self.options)}})
        # Options first: what is set on the command line wins over them.
        return load_settings((), [*TINY, *self.sets, *sets], layers=[own])

    def host(self, *sets: str) -> Host:
        """The host of such a run.  Raises UserError as a run would."""
        settings = self.settings(*sets)
        return Host(settings.config, settings.sources)

    def components(self, context: RunContext | None = None, statistics: CorpusStatistics | None = None) -> Components:
        """The recipe's parts on the toy vocabulary, or in the given context."""
        return self.host().build(context or toy.context(), statistics or toy.statistics(toy.zipfian_counts()))

    def own(self, components: Components) -> list[Part[Component]]:
        """The distinct components among these that come from the plugin."""
        return [
            Part(self.label, slot if slot in SLOTS else "observers", component)
            for slot, plugin, component in components.named()
            if plugin == self.name
        ]

    def row_mode(self, components: Components | None = None) -> Part[RowMode]:
        """The plugin's row mode.  Raises NotApplicable if it leaves that slot to others; so do the methods below."""
        return self._part("row_mode", components)

    def noise_schedule(self, components: Components | None = None) -> Part[NoiseSchedule]:
        """The plugin's noise schedule."""
        return self._part("noise_schedule", components)

    def masking(self, components: Components | None = None) -> Part[MaskingStrategy]:
        """The plugin's masking strategy."""
        return self._part("masking", components)

    def objective(self, components: Components | None = None) -> Part[Objective]:
        """The plugin's objective."""
        return self._part("objective", components)

    def time_conditioning(self, components: Components | None = None) -> Part[TimeConditioning]:
        """The plugin's time conditioning."""
        return self._part("time_conditioning", components)

    def _part(self, slot: str, components: Components | None) -> Part[Any]:
        components = components or self.components()
        if components.providers[slot] != self.name:
            raise NotApplicable(f"{self.name} leaves {slot} to {components.providers[slot]}")
        return Part(self.label, slot, getattr(components, slot))


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


class Violation(AssertionError):
    """A promise that the plugin breaks."""

    def __init__(self, where: str, expected: str, found: str) -> None:
        """`where` names plugin, hook, method and line, as `Part.where` does."""
        indented = found.replace("\n", "\n    ")
        super().__init__(f"{where}\n  expected: {expected}\n  found: {indented}")


class NotApplicable(Exception):
    """The plugin has nothing that the check is about, or the check cannot run here; the message says which."""
