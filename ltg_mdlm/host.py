"""Find, import, validate and register plugins, and fill the recipe's slots with their components.

Entry-point *metadata* of every installed plugin is read; only selected plugins are imported, so that a broken plugin
that nobody selected never breaks a command.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast

import pluggy
from pydantic_core import PydanticUndefined, to_jsonable_python

from ltg_mdlm import hookspecs
from ltg_mdlm.api import (
    API_VERSION,
    PROJECT,
    Component,
    CorpusStatistics,
    MaskingStrategy,
    NoiseSchedule,
    Objective,
    Plugin,
    PluginOptions,
    RowMode,
    RunContext,
    TimeConditioning,
)
from ltg_mdlm.config import RunConfig, did_you_mean, validate
from ltg_mdlm.errors import UserError
from ltg_mdlm.hookspecs import SLOTS

FALLBACK = "uniform_mdlm"
"""Fills every slot that no selected plugin fills."""

C = TypeVar("C")


@dataclass(frozen=True)
class Installed:
    """One plugin as its distribution's metadata announces it."""

    name: str
    target: str
    distribution: str
    version: str
    entry_point: EntryPoint

    @property
    def origin(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}"


@functools.cache
def installed_plugins() -> Mapping[str, tuple[Installed, ...]]:
    """Every installed plugin by name; more than one entry per name is a conflict between distributions."""
    found: dict[str, dict[str, Installed]] = {}
    for point in entry_points(group=PROJECT):
        dist = point.dist
        name = dist.metadata["Name"] if dist else "an unknown distribution"
        plugin = Installed(point.name, point.value, name, dist.version if dist else "?", point)
        # One distribution can be listed twice (a checkout on the path and its installation).
        found.setdefault(point.name, {})[name.lower().replace("_", "-")] = plugin
    return {name: tuple(found[name].values()) for name in sorted(found)}


def find(name: str) -> Installed:
    """The installed plugin of that name.  Raises UserError when there is none, or more than one."""
    known = installed_plugins()
    if name not in known:
        raise UserError(
            f"no installed plugin is called {name!r}{did_you_mean(name, known)}\n  installed: {', '.join(known)}"
            "        (ltg-mdlm plugins list)"
        )
    if len(known[name]) > 1:
        origins = " and ".join(plugin.origin for plugin in known[name])
        raise UserError(f"two distributions provide a plugin called {name!r}: {origins}\n  uninstall one of them")
    return known[name][0]


def import_plugin(plugin: Installed) -> type[Plugin[Any]]:
    """Import the plugin's class and check its API version.  Raises UserError naming its distribution and file."""
    try:
        loaded = plugin.entry_point.load()
    except Exception as error:
        raise UserError(
            f"plugin {plugin.name!r} of {plugin.origin} cannot be imported from {plugin.target}:"
            f" {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Plugin)):
        raise UserError(
            f"plugin {plugin.name!r} of {plugin.origin}: {plugin.target} is not a subclass of ltg_mdlm.api.Plugin"
        )
    if loaded.api_version not in (API_VERSION, API_VERSION - 1):
        advice = "update ltg-mdlm" if loaded.api_version > API_VERSION else f"update {plugin.distribution}"
        raise UserError(
            f"plugin {plugin.name!r} of {plugin.origin} ({source_file(loaded)}) is written for plugin API"
            f" {loaded.api_version}; this is API {API_VERSION}: {advice}"
        )
    return loaded


def source_file(plugin_class: type) -> str:
    """File a plugin is defined in."""
    try:
        return inspect.getfile(plugin_class)
    except (OSError, TypeError):
        return "unknown file"


def hooks_of(plugin_class: type) -> list[str]:
    """Names of the hooks a plugin implements."""
    return [name for name in dir(plugin_class) if getattr(getattr(plugin_class, name), f"{PROJECT}_impl", None)]


@dataclass(frozen=True)
class OptionHelp:
    """One option of a plugin, for help texts."""

    name: str
    type: str
    default: Any
    description: str


def option_help(model: type[PluginOptions]) -> list[OptionHelp]:
    """Name, type, default and description of a plugin's options."""
    return [
        OptionHelp(name, _type_name(info.annotation), _default(info), info.description or "")
        for name, info in model.model_fields.items()
    ]


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not getattr(annotation, "__args__", None):
        return annotation.__name__
    choices = getattr(annotation, "__args__", ())
    if str(annotation).startswith("typing.Literal"):
        return " | ".join(str(choice) for choice in choices)
    return str(annotation).replace("typing.", "")


def _default(info: Any) -> Any:
    value = info.get_default(call_default_factory=True)
    return None if value is PydanticUndefined else to_jsonable_python(value)


@dataclass(frozen=True)
class PluginDescription:
    """Everything `plugins show` tells about a plugin."""

    name: str
    distribution: str
    version: str
    api_version: int
    summary: str
    file: str
    hooks: list[str]
    options: list[OptionHelp]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def describe_plugin(name: str) -> PluginDescription:
    """Import one plugin and describe it.  Raises UserError when it is unknown or broken."""
    plugin = find(name)
    plugin_class = import_plugin(plugin)
    # Not `inspect.getdoc` of the class, which would find that of `Plugin`.
    documentation = inspect.cleandoc(plugin_class.__doc__ or inspect.getdoc(inspect.getmodule(plugin_class)) or "")
    return PluginDescription(
        name=name,
        distribution=plugin.distribution,
        version=plugin.version,
        api_version=plugin_class.api_version,
        summary=documentation.partition("\n\n")[0],
        file=source_file(plugin_class),
        hooks=hooks_of(plugin_class),
        options=option_help(plugin_class.options_model),
    )


@dataclass(frozen=True)
class Filled:
    """The component of a slot, and the plugin that provides it."""

    plugin: str
    component: Any


@dataclass(frozen=True)
class Components:
    """The recipe's parts: one component per slot, plus observers."""

    row_mode: RowMode
    noise_schedule: NoiseSchedule
    masking: MaskingStrategy
    objective: Objective
    time_conditioning: TimeConditioning
    observers: tuple[Component, ...]
    providers: Mapping[str, str]
    """Name of the plugin behind every slot."""

    def named(self) -> list[tuple[str, str, Component]]:
        """(slot, plugin, component) for every distinct component; one object may fill several slots."""
        rows = [(slot, self.providers[slot], cast(Component, getattr(self, slot))) for slot in SLOTS]
        rows += [(f"observer{i}", self.providers[f"observer{i}"], c) for i, c in enumerate(self.observers)]
        distinct = {id(component): (slot, plugin, component) for slot, plugin, component in reversed(rows)}
        return list(reversed(distinct.values()))


class Host:
    """The selected plugins of one run, imported, checked and registered."""

    def __init__(self, config: RunConfig, sources: Mapping[str, str] | None = None) -> None:
        """Raises UserError for an unknown, broken or outdated plugin, and for options it does not accept."""
        self.selected = {name: find(name) for name in [*config.plugins, FALLBACK]}
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        resolved: dict[str, dict[str, Any]] = {}
        for name, plugin in self.selected.items():
            instance = self._instantiate(plugin, config.plugins.get(name, {}), sources or {})
            resolved[name] = instance.options.model_dump(mode="json")
            self._register(name, plugin, instance)
        self._check_slots(config.slots)
        self.config = config.model_copy(
            update={"plugins": resolved, "plugin_versions": {n: p.origin for n, p in self.selected.items()}}
        )

    def _instantiate(self, plugin: Installed, options: Mapping[str, Any], sources: Mapping[str, str]) -> Plugin[Any]:
        plugin_class = import_plugin(plugin)
        hint = f"        (ltg-mdlm plugins show {plugin.name})"
        return plugin_class(validate(plugin_class.options_model, options, sources, f"plugins.{plugin.name}.", hint))

    def _register(self, name: str, plugin: Installed, instance: Plugin[Any]) -> None:
        try:
            self._manager.register(instance, name=name)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            hooks = [n for n in vars(hookspecs) if n.startswith(f"{PROJECT}_")]
            raise UserError(
                f"plugin {name!r} of {plugin.origin} ({source_file(type(instance))}): {' '.join(str(error).split())}"
                f"\n  hooks of the host: {', '.join(hooks)}"
            ) from None

    def _check_slots(self, slots: Mapping[str, str]) -> None:
        for slot, name in slots.items():
            if slot not in SLOTS:
                raise UserError(f"slots.{slot}: no such slot{did_you_mean(slot, SLOTS)}\n  slots: {', '.join(SLOTS)}")
            if name not in self.selected:
                raise UserError(
                    f"slots.{slot}: {name!r} is not a selected plugin{did_you_mean(name, self.selected)}"
                    f"\n  selected: {', '.join(self.selected)}        (add it with --plugin {name})"
                )

    def check_config(self) -> list[str]:
        """Let the plugins look at the run's settings; returns their warnings.  Raises UserError if one objects."""
        warnings: list[str] = []
        for name, call in self._implementations("ltg_mdlm_check_config"):
            warnings += [f"{name}: {text}" for text in call(config=self.config) or ()]
        return warnings

    def build(self, context: RunContext, statistics: CorpusStatistics) -> Components:
        """Hand out the corpus statistics, then fill every slot.  Raises UserError when two plugins want one slot."""
        for _, call in self._implementations("ltg_mdlm_corpus_statistics"):
            call(stats=statistics, ctx=context)
        filled = {slot: self.fill(slot, context) for slot in SLOTS}
        observers = [
            Filled(name, component)
            for name, call in self._implementations("ltg_mdlm_observers")
            for component in call(ctx=context) or ()
        ]
        providers = {slot: part.plugin for slot, part in filled.items()}
        providers |= {f"observer{i}": part.plugin for i, part in enumerate(observers)}
        return Components(
            **{slot: part.component for slot, part in filled.items()},
            observers=tuple(part.component for part in observers),
            providers=providers,
        )

    def fill(self, slot: str, context: RunContext) -> Filled:
        """The component of one slot.  Raises UserError when two plugins want it, or a chosen one does not fill it."""
        offers = self._implementations(f"ltg_mdlm_{slot}")
        wanted = self.config.slots.get(slot)
        offers = [(name, call) for name, call in offers if wanted in (None, name)]
        parts = [Filled(name, component) for name, call in offers if (component := call(ctx=context)) is not None]
        others = [part for part in parts if part.plugin != FALLBACK] or parts
        if len(others) > 1:
            first, second = others[0].plugin, others[1].plugin
            raise UserError(
                f"both {first!r} ({self.selected[first].origin}) and {second!r} ({self.selected[second].origin})"
                f" fill the slot {slot!r}\n  choose one with --set slots.{slot}={first}"
                f"\n  or in a config file:\n    slots:\n      {slot}: {first}"
            )
        if not others:
            raise UserError(f"slots.{slot}: plugin {wanted!r} does not fill this slot with its present options")
        expected = _SLOT_TYPES[slot]
        if not isinstance(others[0].component, expected):
            name = others[0].plugin
            raise UserError(
                f"plugin {name!r} of {self.selected[name].origin}: ltg_mdlm_{slot} returned"
                f" {type(others[0].component).__name__}, not a {expected.__name__}"
            )
        return others[0]

    def _implementations(self, hook: str) -> Sequence[tuple[str, Callable[..., Any]]]:
        """(plugin name, callable by keyword) for every implementation, in the order of selection."""
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        calls = {impl.plugin_name: _by_keyword(impl.function, impl.argnames) for impl in implementations}
        return [(name, calls[name]) for name in self.selected if name in calls]


_SLOT_TYPES: Mapping[str, type] = {
    "row_mode": RowMode,
    "noise_schedule": NoiseSchedule,
    "masking": MaskingStrategy,
    "objective": Objective,
    "time_conditioning": TimeConditioning,
}


def _by_keyword(function: Callable[..., C], argnames: Iterable[str]) -> Callable[..., C]:
    """Hook implementations may take any subset of the hook's arguments."""
    names = tuple(argnames)
    return lambda **kwargs: function(*(kwargs[name] for name in names))
