"""The plugin that is checked, and its components in settings where they can be tried."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from ltg_mdlm.api import (
    Component,
    CorpusStatistics,
    MaskingStrategy,
    NoiseSchedule,
    Objective,
    RowMode,
    RunContext,
    TimeConditioning,
)
from ltg_mdlm.config import Layer, Settings, load_settings
from ltg_mdlm.hookspecs import SLOTS
from ltg_mdlm.host import Components, Host
from ltg_mdlm.installed import find
from ltg_mdlm.testing import toy
from ltg_mdlm.testing.violation import NotApplicable

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
