"""Find, import, validate and register plugins, and fill the recipe's slots with their components.

Only selected plugins are imported, so that a broken plugin that nobody selected never breaks a command.  Whatever a
selected one does wrong here is an error that names it, its distribution, version and file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pluggy

from ltg_mdlm.core.components import (
    Component,
    CorpusStatistics,
    Plugin,
    PluginOptions,
    RunContext,
)
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import did_you_mean, validate
from ltg_mdlm.host import hookspecs
from ltg_mdlm.host.discovery import Installed, find
from ltg_mdlm.host.failures import PluginError, blamed_on
from ltg_mdlm.host.hookspecs import API_VERSION, PROJECT
from ltg_mdlm.host.slots import _SLOT_TYPES, SLOTS, Components, Filled

FALLBACK = "uniform_mdlm"
"""Fills every slot that no selected plugin fills."""


C = TypeVar("C")


def import_plugin(plugin: Installed) -> type[Plugin[Any]]:
    """Import the plugin's class and check its API version.  Raises UserError naming its distribution and file."""
    with blamed_on(plugin, f"importing {plugin.target}"):
        loaded = plugin.entry_point.load()
    if not (isinstance(loaded, type) and issubclass(loaded, Plugin)):
        raise UserError(f"{plugin.provider}: {plugin.target} is not a subclass of ltg_mdlm.api.Plugin")
    version, model = loaded.api_version, loaded.options_model
    if not isinstance(version, int):
        raise UserError(f"{plugin.provider}: api_version is {version!r}, not a whole number")
    if version not in (API_VERSION, API_VERSION - 1):
        advice = "update ltg-mdlm" if version > API_VERSION else f"update {plugin.distribution}"
        raise UserError(f"{plugin.provider} is written for plugin API {version}; this is API {API_VERSION}: {advice}")
    if not (isinstance(model, type) and issubclass(model, PluginOptions)):
        raise UserError(f"{plugin.provider}: options_model is {model!r}, not a subclass of ltg_mdlm.api.PluginOptions")
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
        versions = {name: plugin.origin for name, plugin in self.selected.items()}
        self.config = config.model_copy(update={"plugins": resolved, "plugin_versions": versions, "provenance": {}})

    def _instantiate(self, plugin: Installed, options: Mapping[str, Any], sources: Mapping[str, str]) -> Plugin[Any]:
        plugin_class = import_plugin(plugin)
        hint = f"        (ltg-mdlm plugins show {plugin.name})"
        with blamed_on(plugin, "checking its options"):
            accepted = validate(plugin_class.options_model, options, sources, f"plugins.{plugin.name}.", hint)
        with blamed_on(plugin, f"{plugin_class.__name__}()"):
            instance = plugin_class(accepted)
        if getattr(instance, "options", None) is not accepted:
            raise UserError(f"{plugin.provider}: {plugin_class.__name__}.__init__ does not keep its options")
        return instance

    def _register(self, name: str, plugin: Installed, instance: Plugin[Any]) -> None:
        try:
            with blamed_on(plugin, "registering its hooks"):
                self._manager.register(instance, name=name)
                self._manager.check_pending()
        except UserError as error:
            if not isinstance(error.__cause__, pluggy.PluginValidationError):
                raise
            hooks = [n for n in vars(hookspecs) if n.startswith(f"{PROJECT}_")]
            raise UserError(
                f"{plugin.provider}: {' '.join(str(error.__cause__).split())}\n  hooks of the host: {', '.join(hooks)}"
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
            try:
                texts = call(config=self.config)
            except PluginError:
                raise
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            warnings += [f"{name}: {text}" for text in self._listed(name, "ltg_mdlm_check_config", texts, str)]
        return warnings

    def build(self, context: RunContext, statistics: CorpusStatistics) -> Components:
        """Hand out the corpus statistics, then fill every slot.  Raises UserError when two plugins want one slot."""
        for _, call in self._implementations("ltg_mdlm_corpus_statistics"):
            call(stats=statistics, ctx=context)
        filled = {slot: self.fill(slot, context) for slot in SLOTS}
        observers = [
            Filled(name, component)
            for name, call in self._implementations("ltg_mdlm_observers")
            for component in self._listed(name, "ltg_mdlm_observers", call(ctx=context), Component)
        ]
        named = filled | {f"observer{i}": part for i, part in enumerate(observers)}
        return Components(
            **{slot: part.component for slot, part in filled.items()},
            observers=tuple(part.component for part in observers),
            provenance={name: self.selected[part.plugin].provider for name, part in named.items()},
        )

    def fill(self, slot: str, context: RunContext) -> Filled:
        """The component of one slot.  Raises UserError when two plugins want it, or a chosen one does not fill it."""
        hook, wanted = f"ltg_mdlm_{slot}", self.config.slots.get(slot)
        offers = [(name, call) for name, call in self._implementations(hook) if wanted in (None, name)]
        parts = [Filled(name, component) for name, call in offers if (component := call(ctx=context)) is not None]
        for part in parts:
            self._require_type(part.plugin, hook, part.component, _SLOT_TYPES[slot])
        others = [part for part in parts if part.plugin != FALLBACK] or parts
        if len(others) > 1:
            raise self._conflict(slot, [part.plugin for part in others])
        if not others:
            # The fallback fills every slot, so this one was chosen.
            raise UserError(f"slots.{slot}: plugin {wanted!r} does not fill this slot with its present options")
        return others[0]

    def _conflict(self, slot: str, names: Sequence[str]) -> UserError:
        claims = " and ".join(f"{name!r} ({self.selected[name].origin})" for name in names)
        both = "both " if len(names) == 2 else ""
        return UserError(
            f"{both}{claims} fill the slot {slot!r}\n  choose one with --set slots.{slot}={names[0]}"
            f"\n  or in a config file:\n    slots:\n      {slot}: {names[0]}"
        )

    def _listed(self, name: str, hook: str, returned: Any, expected: type[C]) -> list[C]:
        """What a hook returned, as a list.  Raises UserError if it is anything but some of `expected`, or None."""
        # A str is an iterable of strings, too, but never meant as one.
        if isinstance(returned, str) or not isinstance(returned, Iterable | None):
            raise UserError(
                f"{self.selected[name].provider}: {hook} returned {type(returned).__name__},"
                f" not a list of {expected.__name__}"
            )
        with blamed_on(self.selected[name], hook):  # it may be a generator
            items = list(returned or ())
        for item in items:
            self._require_type(name, hook, item, expected, " in its list")
        return items

    def _require_type(self, name: str, hook: str, value: Any, expected: type, where: str = "") -> None:
        if not isinstance(value, expected):
            given = f"the class {value.__name__} itself" if isinstance(value, type) else type(value).__name__
            raise UserError(
                f"{self.selected[name].provider}: {hook} returned {given}{where}, not a {expected.__name__}"
            )

    def _implementations(self, hook: str) -> Sequence[tuple[str, Callable[..., Any]]]:
        """(plugin name, callable by keyword) for every implementation, in the order of selection."""
        implementations = {i.plugin_name: i for i in getattr(self._manager.hook, hook).get_hookimpls()}
        return [
            (name, _by_keyword(implementations[name].function, implementations[name].argnames, plugin, hook))
            for name, plugin in self.selected.items()
            if name in implementations
        ]


def _by_keyword(
    function: Callable[..., Any], argnames: Iterable[str], plugin: Installed, hook: str
) -> Callable[..., Any]:
    """Hook implementations may take any subset of the hook's arguments, and answer for what they raise."""
    names = tuple(argnames)

    def call(**kwargs: Any) -> Any:
        with blamed_on(plugin, hook):
            return function(*(kwargs[name] for name in names))

    return call
