"""The plugin under test, checks of it, and their verdicts.

A check is a function of a `PluginUnderTest` that raises `Violation` if the plugin breaks the contract, and
`NotApplicable` if it does not concern the plugin. An `Examination` runs the checks and keeps their verdicts.
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
from ltg_mdlm.core.row_order import RowOrder
from ltg_mdlm.core.settings import Layer, Settings, load_settings
from ltg_mdlm.host.discovery import find
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.slots import SLOTS, Components
from ltg_mdlm.testing import toy

C = TypeVar("C")

TINY = (
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
"""Settings of the runs in which plugins are checked."""


class Violation(AssertionError):
    """The plugin breaks the contract."""

    def __init__(self, where: str, expected: str, found: str) -> None:
        """`where` names the plugin, hook, method and line, as `Part.where` does."""
        indented = found.replace("\n", "\n    ")
        super().__init__(f"{where}\n  expected: {expected}\n  found: {indented}")


class NotApplicable(Exception):
    """The check does not concern the plugin, or cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Part(Generic[C]):
    """A component of the plugin, and its slot."""

    plugin: str
    slot: str
    component: C

    def where(self, method: str) -> str:
        """Plugin, hook, class, method and line, for messages."""
        owner = type(self.component)
        return f"{self.plugin}: {owner.__name__}.{method} of ltg_mdlm_{self.slot} ({line_of(owner, method)})"


def line_of(owner: type, method: str | None = None) -> str:
    """`file.py:12` of a method, or of the class if it does not define it as a function."""
    for thing in (getattr(owner, method, None) if method else None, owner):
        try:
            _, line = inspect.getsourcelines(cast(Any, thing))
            return f"{Path(inspect.getfile(cast(Any, thing))).name}:{line}"
        except (OSError, TypeError):
            continue
    return owner.__module__


@dataclass(frozen=True)
class PluginUnderTest:
    """An installed plugin with options. Every call returns newly built components."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sets: Sequence[str] = ()
    """Further settings, `plugins.NAME.option=value` or `slots.SLOT=NAME`, which override `options`."""

    @property
    def label(self) -> str:
        """The plugin and its distribution, for messages."""
        return f"plugin {self.name!r} ({find(self.name).origin})"

    def settings(self, *sets: str) -> Settings:
        """Settings of a tiny run with this plugin selected."""
        own = Layer("the options under test", {"plugins": {self.name: dict(self.options)}})
        # The options are a layer below the settings of the command line.
        corpus = f"data.corpus={toy.corpus_folder()}"
        return load_settings((), [*TINY, corpus, *self.sets, *sets], layers=[own])

    def host(self, *sets: str) -> Host:
        """The host of such a run, whose settings its plugins have checked, as at the start of `train`.

        Raises `UserError` as in a run.
        """
        settings = self.settings(*sets)
        host = Host(settings.config, settings.sources)
        host.check_config()
        return host

    def components(self, context: RunContext | None = None, statistics: CorpusStatistics | None = None) -> Components:
        """The components of the recipe on the toy vocabulary and the toy corpus, or in the given context."""
        statistics = statistics or toy.statistics(toy.zipfian_counts())
        context = context or toy.context(statistics=statistics, corpus=toy.corpus_view())
        components = self.host().build(context, statistics)
        for module in components.modules.values():
            module.eval()  # as while rows are corrupted
        return components

    def own(self, components: Components) -> list[Part[Component]]:
        """The distinct components that the plugin provides."""
        return [
            Part(self.label, slot if slot in SLOTS else "observers", component)
            for slot, plugin, component in components.named()
            if plugin == self.name
        ]

    def row_mode(self, components: Components | None = None) -> Part[RowMode]:
        """The row mode of the plugin. Raises `NotApplicable` if it has none, like the methods below."""
        return self._part("row_mode", components)

    def noise_schedule(self, components: Components | None = None) -> Part[NoiseSchedule]:
        """The noise schedule of the plugin."""
        return self._part("noise_schedule", components)

    def masking(self, components: Components | None = None) -> Part[MaskingStrategy]:
        """The masking strategy of the plugin."""
        return self._part("masking", components)

    def objective(self, components: Components | None = None) -> Part[Objective]:
        """The objective of the plugin."""
        return self._part("objective", components)

    def time_conditioning(self, components: Components | None = None) -> Part[TimeConditioning]:
        """The time conditioning of the plugin."""
        return self._part("time_conditioning", components)

    def row_order(self, components: Components | None = None) -> Part[RowOrder]:
        """The row order of the plugin."""
        return self._part("row_order", components)

    def _part(self, slot: str, components: Components | None) -> Part[Any]:
        components = components or self.components()
        if components.providers.get(slot) != self.name:
            raise NotApplicable(f"{self.name} leaves {slot} to {components.providers.get(slot, 'no plugin')}")
        return Part(self.label, slot, getattr(components, slot))


Outcome = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True)
class Check:
    """One part of the contract of plugins."""

    name: str
    """A sentence, with underscores for spaces."""
    function: Callable[[PluginUnderTest], None]
    requires: tuple[Check, ...]
    """Checks that must pass before this one is run."""

    @property
    def title(self) -> str:
        """The name as a sentence."""
        return self.name.replace("_", " ")

    def __call__(self, subject: PluginUnderTest) -> None:
        """Run the check. Raises `Violation` or `NotApplicable`."""
        self.function(subject)


def check(*requires: Check) -> Callable[[Callable[[PluginUnderTest], None]], Check]:
    """Decorator that makes a function a check, which runs after the checks `requires`."""
    return lambda function: Check(function.__name__, function, requires)


@dataclass(frozen=True)
class Verdict:
    """The result of a check."""

    check: Check
    outcome: Outcome
    reason: str = ""
    """Why it failed or does not apply."""
    crash: Exception | None = None
    """The exception of the plugin that caused the failure, if any."""
    blocked_by: Check | None = None
    """The failed check because of which this one was not run."""


class Examination:
    """The verdicts on one plugin. Every check runs at most once, after the checks that it requires."""

    def __init__(self, subject: PluginUnderTest) -> None:
        self.subject = subject
        self._verdicts: dict[str, Verdict] = {}

    def verdict(self, check: Check) -> Verdict:
        """Run a check, or return its earlier verdict."""
        if check.name not in self._verdicts:
            self._verdicts[check.name] = self._run(check)
        return self._verdicts[check.name]

    def _run(self, check: Check) -> Verdict:
        for earlier in map(self.verdict, check.requires):
            blocked_by = earlier.check if earlier.outcome == "failed" else earlier.blocked_by
            if blocked_by is not None:
                return Verdict(
                    check, "not applicable", f"not run, because {blocked_by.title!r} failed", None, blocked_by
                )
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
    """An exception that the plugin raised or caused, as a violation."""
    where = f"{subject.label}: {innermost_line(error)}"
    name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return Violation(where, "no error", f"{name}{error}".strip())


def innermost_line(error: BaseException) -> str:
    """`file.py:12 in function`: innermost line of the traceback outside of the host and torch, if there is one."""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    ours = str(Path(ltg_mdlm.__file__).parent)
    foreign = [f for f in frames if not f.filename.startswith(ours) and "/site-packages/torch/" not in f.filename]
    frame = (foreign or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
