"""The plugin host: imports, checks and registers the selected plugins, and fills the slots with their components.

Only selected plugins are imported, so a broken plugin that is not selected never breaks a command.  Errors of a
selected plugin name the plugin, its distribution, version and file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pluggy
import torch
from torch import Tensor, nn

from ltg_mdlm.core.components import Component, CorpusStatistics, Plugin, PluginOptions, RunContext
from ltg_mdlm.core.config import BUILT_IN_OPTIMIZERS, RunConfig
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.optimizer import Optimizer, ParameterGroup
from ltg_mdlm.core.random import stream_key
from ltg_mdlm.core.settings import did_you_mean, origin, validate
from ltg_mdlm.host import hookspecs
from ltg_mdlm.host.discovery import Installed, find, installed_plugins
from ltg_mdlm.host.failures import PluginError, attributed_to
from ltg_mdlm.host.hookspecs import API_VERSION, PROJECT
from ltg_mdlm.host.result_checks import require_compatible, require_tensor
from ltg_mdlm.host.slots import OPTIONAL_SLOTS, SLOT_TYPES, SLOTS, Components, Filled

FALLBACK = "uniform_mdlm"
"""The plugin that fills every slot that no selected plugin fills."""

C = TypeVar("C")


class Host:
    """The selected plugins of one run, imported, checked and registered.

    Each plugin has a pluggy manager of its own: hooks are called one plugin at a time, so that every result and every
    exception can be attributed to its plugin.

    Raises UserError for an unknown, broken or outdated plugin, and for options that the plugin does not accept.
    """

    config: RunConfig
    """The settings with all options of all plugins, and the plugins' versions; `build` adds the provenance."""

    def __init__(self, config: RunConfig, sources: Mapping[str, str] | None = None) -> None:
        """`sources` says where each setting comes from, for error messages; see `core.settings.Settings`."""
        self.selected = {name: find(name) for name in [*config.plugins, FALLBACK]}
        self._managers: dict[str, pluggy.PluginManager] = {}
        self._options: dict[str, PluginOptions] = {}
        options: dict[str, dict[str, Any]] = {}
        for name, plugin in self.selected.items():
            instance = create_plugin(plugin, config.plugins.get(name, {}), sources or {})
            options[name] = options_as_json(instance.options)
            self._options[name] = instance.options
            self._managers[name] = register(plugin, instance)
        for slot, name in config.slots.items():
            if slot not in SLOTS:
                raise UserError(f"slots.{slot}: no such slot{did_you_mean(slot, SLOTS)}\n  slots: {', '.join(SLOTS)}")
            if name not in self.selected:
                raise UserError(
                    f"slots.{slot}: {name!r} is not a selected plugin{did_you_mean(name, self.selected)}"
                    f"\n  selected: {', '.join(self.selected)}        (add it with --plugin {name})"
                )
        self._require_optimizer(config.optimizer.name, sources or {})
        versions = {name: plugin.origin for name, plugin in self.selected.items()}
        self.config = config.model_copy(update={"plugins": options, "plugin_versions": versions, "provenance": {}})

    def check_config(self) -> list[str]:
        """Call the plugins' checks of the settings; returns their warnings.  Raises UserError if a plugin objects."""
        hook, warnings = "ltg_mdlm_check_config", []
        for name in self.selected:
            try:
                texts = self._call(name, hook, config=self.config)
            except PluginError:
                raise
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            warnings += [f"{name}: {text}" for text in self._as_list(name, hook, texts, str)]
        return warnings

    def component_warnings(self, components: Components) -> list[str]:
        """Warnings of options that belong to a slot of another plugin, and of state that a trained model lacks."""
        providers = components.providers
        warnings = [
            f"{name}: {option} has no effect, because {providers.get(slot, 'no plugin')} provides the {slot}"
            for name, options in self._options.items()
            for option, slot in options.slot_of_option.items()
            if providers.get(slot) != name and option in options.changed_options()
        ]
        slot = "time_conditioning"
        component = components.time_conditioning
        with attributed_to(self.selected[providers[slot]], f"{type(component).__name__}.state_dict"):
            has_state = components.has_state(slot)
        if has_state:
            warnings.append(
                f"{providers[slot]}: evaluation and export open a model without the state of its {slot};"
                " what it learns must be in its `embedding`, which belongs to the model"
            )
        return warnings

    def build(self, context: RunContext, statistics: CorpusStatistics) -> Components:
        """Pass the corpus statistics to the plugins, fill every slot, and record the provenance in `config`.

        Raises UserError if two plugins fill one slot, and for components that exclude each other.
        """
        self._context = context = replace(context, statistics=statistics)
        for name in self.selected:
            self._call(name, "ltg_mdlm_corpus_statistics", stats=statistics, ctx=context)
        parts = {slot: self._part(slot, context) for slot in SLOTS}
        filled = {slot: part for slot, part in parts.items() if part is not None}
        hook = "ltg_mdlm_observers"
        observers = [
            Filled(name, component)
            for name in self.selected
            for component in self._as_list(name, hook, self._call(name, hook, ctx=context), Component)
        ]
        named = filled | {f"observer{i}": part for i, part in enumerate(observers)}
        provenance = {name: self.selected[part.plugin].provider for name, part in named.items()}
        self.config = self.config.model_copy(update={"provenance": provenance})
        components = Components(
            **{slot: part.component for slot, part in filled.items()},
            observers=tuple(part.component for part in observers),
            provenance=provenance,
        )
        require_compatible(components)
        return replace(components, modules=self._modules(components, context))

    def _modules(self, components: Components, context: RunContext) -> dict[str, nn.Module]:
        """The learned parts of the components by `<slot>/<name>`, on the device of the run.

        Raises UserError for parts that are no modules, that no loss would train, or that share a parameter.
        """
        modules: dict[str, nn.Module] = {}
        for slot, name, component in components.named():
            where = f"{self.selected[name].provider}: {type(component).__name__}.modules"
            with attributed_to(self.selected[name], f"{type(component).__name__}.modules"), seeded(context, slot):
                parts = component.modules()
            if not (isinstance(parts, Mapping) and all(isinstance(part, nn.Module) for part in parts.values())):
                raise UserError(f"{where} returned {type(parts).__name__}, not a mapping of names to torch.nn.Module")
            for part, module in parts.items():
                if not part or not part.replace("_", "a").isalnum():
                    raise UserError(f"{where}: {part!r} is not a name; use letters, digits and underscores")
                if not any(parameter.requires_grad for parameter in module.parameters()):
                    raise UserError(f"{where}: {part!r} has no parameter that requires a gradient, so it cannot learn")
                modules[f"{slot}/{part}"] = module.to(context.device)
            if parts and type(component).own_loss is Component.own_loss:
                raise UserError(f"{where} returned learned parts, but {type(component).__name__} defines no own_loss")
            # Parts that are switched off by an option are not an error.
            if type(component).modules is Component.modules and type(component).own_loss is not Component.own_loss:
                raise UserError(
                    f"{where} is not defined, but {type(component).__name__} defines own_loss, so nothing would learn"
                    "\n  define modules, which returns the torch modules that the loss trains"
                )
        first_part: dict[int, str] = {}
        for part, module in modules.items():
            for parameter in module.parameters():
                if (first := first_part.setdefault(id(parameter), part)) != part:
                    raise UserError(
                        f"the learned parts {first} and {part} share a parameter, which would be updated twice in a"
                        " step\n  return them as one torch.nn.ModuleDict"
                    )
        return modules

    def fill(self, slot: str, context: RunContext) -> Filled:
        """The component of a slot that is not optional, and its plugin.

        Raises UserError if two plugins fill the slot, or the plugin chosen under `slots` does not.
        """
        part = self._part(slot, context)
        assert part is not None, slot
        return part

    def _part(self, slot: str, context: RunContext) -> Filled | None:
        """The component of one slot, and its plugin; None for an optional slot that no plugin fills."""
        hook, chosen = f"ltg_mdlm_{slot}", self.config.slots.get(slot)
        parts = [
            Filled(name, component)
            for name in self.selected
            if chosen in (None, name) and (component := self._call(name, hook, ctx=context)) is not None
        ]
        for part in parts:
            self._require_type(part.plugin, hook, part.component, SLOT_TYPES[slot])
        parts = [part for part in parts if part.plugin != FALLBACK] or parts
        if not parts and chosen is None and slot in OPTIONAL_SLOTS:
            return None
        if not parts:
            # The fallback fills every slot, so the settings chose another plugin.
            raise UserError(f"slots.{slot}: plugin {chosen!r} does not fill this slot with its current options")
        if len(parts) > 1:
            claims = " and ".join(f"{part.plugin!r} ({self.selected[part.plugin].origin})" for part in parts)
            raise UserError(
                f"{'both ' if len(parts) == 2 else ''}{claims} fill the slot {slot!r}"
                f"\n  choose one with --set slots.{slot}={parts[0].plugin}"
                f"\n  or in a config file:\n    slots:\n      {slot}: {parts[0].plugin}"
            )
        return parts[0]

    def optimizer(self, groups: Sequence[ParameterGroup]) -> Optimizer | None:
        """The optimiser of the plugin `optimizer.name`, recorded in the provenance; None for the built-in ones.

        Called after `build`.  Raises UserError if the plugin returns anything else, or not all parameters are in it.
        """
        name, hook = self.config.optimizer.name, "ltg_mdlm_optimizer"
        if name in BUILT_IN_OPTIMIZERS:
            return None
        optimizer = self._call(name, hook, groups=groups, settings=self.config.optimizer, ctx=self._context)
        if optimizer is None:
            raise UserError(f"optimizer.name: plugin {name!r} provides no optimiser with its current options")
        self._require_type(name, hook, optimizer, Optimizer)
        assert isinstance(optimizer, Optimizer)
        held = {p for group in getattr(optimizer, "groups", ()) for p in group.parameters}
        if missing := [p for group in groups for p in group.parameters if p not in held]:
            raise UserError(
                f"{self.selected[name].provider}: {hook} returned an optimiser without {len(missing)} of the"
                f" parameters, such as {missing[0]}\n  give all groups to Optimizer.__init__"
            )
        optimizer.provider = self.selected[name].provider
        provenance = {**self.config.provenance, "optimizer": optimizer.provider}
        self.config = self.config.model_copy(update={"provenance": provenance})
        return optimizer

    def _require_optimizer(self, name: str, sources: Mapping[str, str]) -> None:
        """Raises UserError unless `optimizer.name` is either a built-in optimiser or a selected plugin that has one."""
        hook = "ltg_mdlm_optimizer"
        providers = [p for p, manager in self._managers.items() if getattr(manager.hook, hook).get_hookimpls()]
        if name in BUILT_IN_OPTIMIZERS and name in providers:
            raise UserError(
                f"{self.selected[name].provider}: an optimiser named {name!r} is built in; rename the plugin"
            )
        known = (*BUILT_IN_OPTIMIZERS, *providers)
        if name in known:
            return
        listing = f"optimisers: {', '.join(known)}"
        if name in self.selected:
            problem = f"the plugin {name!r} provides no optimiser (hook {hook})"
        elif name in installed_plugins():
            problem, listing = f"the plugin {name!r} is not selected", f"add it with --plugin {name}"
        else:
            problem = f"no optimiser is called {name!r}{did_you_mean(name, known)}"
        raise UserError(f"optimizer.name: {problem}{origin('optimizer.name', sources)}\n  {listing}")

    def unmasking_orders(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """The unmasking orders of all plugins, by name; what they return is checked, and their errors are attributed.

        Raises UserError for a result of another type, and if two plugins have an order of the same name.
        """
        hook = "ltg_mdlm_unmasking_orders"
        orders: dict[str, Callable[[Tensor], Tensor]] = {}
        origin: dict[str, str] = {}
        for name, plugin in self.selected.items():
            given = self._call(name, hook)
            if not isinstance(given, Mapping | None):
                raise UserError(f"{plugin.provider}: {hook} returned {type(given).__name__}, not a mapping")
            for order, certainty in (given or {}).items():
                if not (isinstance(order, str) and order and callable(certainty)):
                    raise UserError(
                        f"{plugin.provider}: {hook} must map names to functions, not {order!r} to {certainty!r}"
                    )
                if order in orders:
                    raise UserError(
                        f"{origin[order]!r} and {name!r} both have an unmasking order {order!r}; select one of them"
                    )
                orders[order], origin[order] = _checked_order(plugin, order, certainty), name
        return orders

    def _call(self, name: str, hook: str, **arguments: Any) -> Any:
        """The result of one plugin's hook; None if the plugin does not implement it."""
        context = arguments.get("ctx")
        with attributed_to(self.selected[name], hook), seeded(context, hook) if context else nullcontext():
            results: Sequence[Any] = getattr(self._managers[name].hook, hook)(**arguments)
        return results[0] if results else None

    def _as_list(self, name: str, hook: str, returned: Any, expected: type[C]) -> list[C]:
        """The result of a hook as a list; None is an empty list.  Raises UserError for items of another type."""
        # A str is an iterable of str, but a hook that returns one meant a list with one item.
        if isinstance(returned, str) or not isinstance(returned, Iterable | None):
            raise UserError(
                f"{self.selected[name].provider}: {hook} returned {type(returned).__name__},"
                f" not a list of {expected.__name__}"
            )
        with attributed_to(self.selected[name], hook):  # it may be a generator
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


def import_plugin(plugin: Installed) -> type[Plugin[Any]]:
    """Import a plugin's class and check its API version.

    Raises UserError that names the distribution and file.
    """
    with attributed_to(plugin, f"importing {plugin.target}"):
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


def create_plugin(plugin: Installed, options: Mapping[str, Any], sources: Mapping[str, str]) -> Plugin[Any]:
    """Import a plugin, validate its options and construct it.  Raises UserError."""
    plugin_class = import_plugin(plugin)
    hint = f"        (ltg-mdlm plugins show {plugin.name})"
    with attributed_to(plugin, "checking its options"):
        accepted = validate(plugin_class.options_model, options, sources, f"plugins.{plugin.name}.", hint)
    with attributed_to(plugin, f"{plugin_class.__name__}()"):
        instance = plugin_class(accepted)
    if getattr(instance, "options", None) is not accepted:
        raise UserError(f"{plugin.provider}: {plugin_class.__name__}.__init__ does not keep its options")
    return instance


def register(plugin: Installed, instance: Plugin[Any]) -> pluggy.PluginManager:
    """A manager with the hooks of this plugin only.  Raises UserError for hooks and arguments that do not exist."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        with attributed_to(plugin, "registering its hooks"):
            manager.register(instance, name=plugin.name)
            manager.check_pending()
    except PluginError as error:
        if not isinstance(error.__cause__, pluggy.PluginValidationError):
            raise
        hooks = [name for name in vars(hookspecs) if name.startswith(f"{PROJECT}_")]
        raise UserError(
            f"{plugin.provider}: {' '.join(str(error.__cause__).split())}\n  hooks of the host: {', '.join(hooks)}"
        ) from None
    return manager


def _checked_order(plugin: Installed, name: str, order: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An unmasking order that raises UserError, with the plugin's name, for errors and for results of wrong shapes."""

    def certainty(logits_NV: Tensor) -> Tensor:
        with attributed_to(plugin, f"unmasking order {name!r}"):
            certainty_N = order(logits_NV)
        where = f"{plugin.provider}: unmasking order {name!r}"
        require_tensor(where, certainty_N, "float", (len(logits_NV),))
        # A position with a non-finite certainty could be sorted after positions that are not masked.
        if not bool(torch.isfinite(certainty_N).all()):
            raise UserError(f"{where} returned values that are not finite")
        return certainty_N

    return certainty


@contextmanager
def seeded(context: RunContext, purpose: str) -> Iterator[None]:
    """Seed torch's default generators inside the block, for the initial weights of learned parts."""
    # Without `devices`, all GPUs of the machine would be initialised, with a warning.
    with torch.random.fork_rng(devices=[context.device] if context.device.type == "cuda" else []):
        torch.manual_seed(stream_key(context.seed, "initial weights", purpose)[0])
        yield


def options_as_json(options: PluginOptions) -> dict[str, Any]:
    """Options as in config.yaml, which can be read again, with sets sorted: their order differs between processes."""
    dump = partial(options.model_dump, by_alias=True, round_trip=True)
    as_json: dict[str, Any] = _with_sorted_sets(dump(), dump(mode="json"))
    return as_json


def _with_sorted_sets(value: Any, as_json: Any) -> Any:
    if isinstance(value, set | frozenset) and isinstance(as_json, list):
        return sorted(as_json, key=repr)
    # A serialiser of the plugin may have made something else of it.
    if isinstance(value, Mapping) and isinstance(as_json, dict) and len(value) == len(as_json):
        pairs = zip(value.values(), as_json.items(), strict=True)
        return {key: _with_sorted_sets(part, part_as_json) for part, (key, part_as_json) in pairs}
    if isinstance(value, list | tuple) and isinstance(as_json, list) and len(value) == len(as_json):
        return [_with_sorted_sets(part, part_as_json) for part, part_as_json in zip(value, as_json, strict=True)]
    return as_json


def hooks_of(plugin_class: type) -> list[str]:
    """Names of the hooks that a plugin implements."""
    manager = pluggy.PluginManager(PROJECT)
    return [name for name in dir(plugin_class) if manager.parse_hookimpl_opts(plugin_class, name)]


def source_file(plugin_class: type) -> str:
    """File in which a plugin is defined."""
    try:
        return inspect.getfile(plugin_class)
    except (OSError, TypeError):
        return "unknown file"
