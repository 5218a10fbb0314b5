"""Installed plugins, as the metadata of their distributions announces them; nothing is imported to list them.

The environment variable `LTG_MDLM_PLUGINS` restricts what is considered besides the built-in plugins: `off` nothing,
and of other distributions not even the metadata is read; `name,name` only the plugins of these names.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec

from ltg_mdlm.core.config import Provider
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import did_you_mean
from ltg_mdlm.host.hookspecs import PROJECT

VARIABLE = "LTG_MDLM_PLUGINS"


OFF = "off"


HOST = "ltg-mdlm"
"""The distribution whose plugins are built in."""


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

    @property
    def package(self) -> str:
        """The top-level package, or module, that it is defined in."""
        return self.entry_point.module.partition(".")[0]

    @property
    def provider(self) -> Provider:
        """What is recorded of it; `str` of it names the plugin, its distribution, version and file."""
        file = module_file(self.entry_point.module) or f"no file of {self.entry_point.module} found"
        return Provider(plugin=self.name, distribution=self.distribution, version=self.version, file=file)


def module_file(name: str) -> str | None:
    """File of a module, which is not imported if it is not yet; None if there is none."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return getattr(loaded, "__file__", None)
    first, *rest = name.split(".")
    try:
        spec: ModuleSpec | None = find_spec(first)
        for i, _ in enumerate(rest, 2):
            within = spec.submodule_search_locations if spec else None
            # Unlike `find_spec` of importlib.util, this does not import the parent package.
            spec = PathFinder.find_spec(".".join(name.split(".")[:i]), within) if within else None
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


@dataclass(frozen=True)
class Restriction:
    """Which plugins `LTG_MDLM_PLUGINS` leaves to be considered, besides the built-in ones."""

    text: str
    """Value of the variable; empty when it is not set, and everything is considered."""

    @staticmethod
    def of_environment() -> Restriction:
        """The restriction that the user set."""
        return Restriction(os.environ.get(VARIABLE, "").strip())

    def __str__(self) -> str:
        return f"{VARIABLE}={self.text}"

    @property
    def built_in_only(self) -> bool:
        """No third-party plugin is even looked at."""
        return self.text == OFF

    @property
    def names(self) -> tuple[str, ...]:
        """The third-party plugins that may be used, where they are listed."""
        return () if self.built_in_only else tuple(name for part in self.text.split(",") if (name := part.strip()))

    def permits(self, plugin: Installed) -> bool:
        """Whether a plugin is considered."""
        return not self.text or is_built_in(plugin) or plugin.name in self.names

    def notes(self) -> list[str]:
        """What `plugins list` has to say about it."""
        if not self.text:
            return []
        if self.built_in_only:
            return [f"{self}: only built-in plugins are considered; the variable must be unset for others"]
        missing = [name for name in self.names if name not in installed_plugins()]
        absent = [f"{VARIABLE} lists {name!r}, which is not installed" for name in missing]
        return [f"{self}: no others are considered, besides the built-in ones", *absent]


def is_built_in(plugin: Installed) -> bool:
    """Whether a plugin comes with the host."""
    return _normalised(plugin.distribution) == HOST


@functools.cache
def installed_plugins() -> Mapping[str, tuple[Installed, ...]]:
    """Every plugin that may be considered, by name; more than one of a name is a conflict between distributions."""
    restriction = Restriction.of_environment()
    announced = _announced(_built_in_points() if restriction.built_in_only else entry_points(group=PROJECT))
    found: dict[str, dict[str, Installed]] = {}
    for plugin in announced:
        if restriction.permits(plugin):
            # One distribution can be listed twice (a checkout on the path and its installation).
            found.setdefault(plugin.name, {})[_normalised(plugin.distribution)] = plugin
    return {name: tuple(found[name].values()) for name in sorted(found)}


def _built_in_points() -> Iterable[EntryPoint]:
    try:
        return distribution(HOST).entry_points.select(group=PROJECT)
    except PackageNotFoundError:
        return ()


def _announced(points: Iterable[EntryPoint]) -> list[Installed]:
    def installed(point: EntryPoint) -> Installed:
        dist = point.dist
        name = dist.metadata["Name"] if dist else "an unknown distribution"
        return Installed(point.name, point.value, name, dist.version if dist else "?", point)

    return [installed(point) for point in points]


def _normalised(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def find(name: str) -> Installed:
    """The installed plugin of that name.

    Raises UserError when there is none, more than one, or `LTG_MDLM_PLUGINS` keeps it out of consideration.
    """
    known = installed_plugins()
    if name not in known:
        raise _not_found(name, Restriction.of_environment(), known)
    if len(known[name]) > 1:
        origins = " and ".join(plugin.origin for plugin in known[name])
        built_in = any(is_built_in(plugin) for plugin in known[name])
        choice = f", or leave out all but the built-in one with {VARIABLE}={OFF}" if built_in else ""
        raise UserError(
            f"two distributions provide a plugin called {name!r}: {origins}\n  uninstall one of them{choice}"
        )
    return known[name][0]


def _not_found(name: str, restriction: Restriction, known: Iterable[str]) -> UserError:
    near, listing = did_you_mean(name, known), ", ".join(known)
    if restriction.built_in_only:
        return UserError(
            f"no built-in plugin is called {name!r}{near}, and others are not looked at because of {restriction}"
            f"\n  built in: {listing}\n  to use {name}, unset {VARIABLE}"
        )
    kept_out = [p for p in _announced(entry_points(group=PROJECT)) if p.name == name] if restriction.text else []
    if kept_out:
        return UserError(
            f"plugin {name!r} of {kept_out[0].origin} is installed, but {restriction} does not list it"
            f"\n  allow it with {VARIABLE}={','.join([*restriction.names, name])}, or unset the variable"
        )
    also = f"; {restriction} keeps out others" if restriction.text else ""
    return UserError(
        f"no installed plugin is called {name!r}{near}\n  installed: {listing}{also}        (ltg-mdlm plugins list)"
    )
