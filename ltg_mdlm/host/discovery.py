"""Discovery of installed plugins from the metadata of their distributions; listing plugins imports none of them.

The environment variable `LTG_MDLM_PLUGINS` restricts which plugins are considered in addition to the built-in ones:
`off` allows none, and does not even read the metadata of other distributions; `name,name` allows only these plugins.
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
from pathlib import Path

from ltg_mdlm.core.config import Provider
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import did_you_mean
from ltg_mdlm.host.hookspecs import PROJECT

VARIABLE = "LTG_MDLM_PLUGINS"

OFF = "off"

BUILT_IN = "ltg_mdlm_plugins"
"""The package of the built-in plugins."""

HOST = "ltg-mdlm"
"""The distribution of the built-in plugins."""


@dataclass(frozen=True)
class Installed:
    """A plugin according to the metadata of its distribution."""

    name: str
    target: str
    """`module:Class`"""
    distribution: str
    version: str
    entry_point: EntryPoint

    @classmethod
    def of(cls, point: EntryPoint) -> Installed:
        """The plugin of an entry point."""
        dist = point.dist
        name = dist.metadata["Name"] if dist else "an unknown distribution"
        return cls(point.name, point.value, name, dist.version if dist else "?", point)

    @property
    def origin(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}"

    @property
    def package(self) -> str:
        """The top-level package or module in which it is defined."""
        return self.entry_point.module.partition(".")[0]

    @property
    def is_built_in(self) -> bool:
        """Whether the plugin comes with the host."""
        return _normalised(self.distribution) == HOST

    @property
    def provider(self) -> Provider:
        """The origin as a run records it; `str` of it names the plugin, its distribution, version and file."""
        file = module_file(self.entry_point.module) or f"no file of {self.entry_point.module} found"
        return Provider(plugin=self.name, distribution=self.distribution, version=self.version, file=file)


@dataclass(frozen=True)
class Restriction:
    """The plugins that `LTG_MDLM_PLUGINS` allows, in addition to the built-in ones."""

    text: str
    """Value of the variable; empty if it is not set, and all plugins are allowed."""

    @staticmethod
    def of_environment() -> Restriction:
        """The restriction that is set in the environment."""
        return Restriction(os.environ.get(VARIABLE, "").strip())

    def __str__(self) -> str:
        return f"{VARIABLE}={self.text}"

    @property
    def built_in_only(self) -> bool:
        """Whether only built-in plugins are allowed."""
        return self.text == OFF

    @property
    def names(self) -> tuple[str, ...]:
        """The plugins that are listed in the variable."""
        return () if self.built_in_only else tuple(name for part in self.text.split(",") if (name := part.strip()))

    def permits(self, plugin: Installed) -> bool:
        """Whether a plugin is allowed."""
        return not self.text or plugin.is_built_in or plugin.name in self.names

    def notes(self) -> list[str]:
        """Remarks for `plugins list`."""
        if not self.text:
            return []
        if self.built_in_only:
            return [f"{self}: only built-in plugins are considered; unset the variable to use others"]
        missing = [name for name in self.names if name not in installed_plugins()]
        absent = [f"{VARIABLE} lists {name!r}, which is not installed" for name in missing]
        return [f"{self}: no others are considered, except the built-in ones", *absent]


@functools.cache
def installed_plugins() -> Mapping[str, tuple[Installed, ...]]:
    """All allowed plugins by name; several plugins of one name are a conflict between distributions."""
    restriction = Restriction.of_environment()
    found: dict[str, dict[str, Installed]] = {}
    for plugin in map(Installed.of, _built_in_points() if restriction.built_in_only else entry_points(group=PROJECT)):
        if restriction.permits(plugin):
            # A distribution may be listed twice: as a checkout on the path and as an installation.
            found.setdefault(plugin.name, {})[_normalised(plugin.distribution)] = plugin
    return {name: tuple(found[name].values()) for name in sorted(found)}


def find(name: str) -> Installed:
    """The installed plugin of this name.

    Raises UserError if there is none, if there are several, or if `LTG_MDLM_PLUGINS` does not allow it; and if the
    program and the built-in plugins come from two copies of ltg-mdlm.
    """
    require_one_installation()
    known = installed_plugins()
    if name not in known:
        raise _not_found(name, known)
    if len(known[name]) > 1:
        origins = " and ".join(plugin.origin for plugin in known[name])
        built_in = any(plugin.is_built_in for plugin in known[name])
        choice = f", or use only built-in plugins with {VARIABLE}={OFF}" if built_in else ""
        raise UserError(
            f"two distributions provide a plugin called {name!r}: {origins}\n  uninstall one of them{choice}"
        )
    return known[name][0]


def _not_found(name: str, known: Iterable[str]) -> UserError:
    restriction = Restriction.of_environment()
    near, listing = did_you_mean(name, known), ", ".join(known)
    if restriction.built_in_only:
        return UserError(
            f"no built-in plugin is called {name!r}{near}, and others are not considered because of {restriction}"
            f"\n  built-in plugins: {listing}\n  to use {name}, unset {VARIABLE}"
        )
    if restriction.text:
        for point in entry_points(group=PROJECT, name=name):
            return UserError(
                f"plugin {name!r} of {Installed.of(point).origin} is installed, but {restriction} does not list it"
                f"\n  allow it with {VARIABLE}={','.join([*restriction.names, name])}, or unset the variable"
            )
    also = f"; {restriction} excludes others" if restriction.text else ""
    return UserError(
        f"no installed plugin is called {name!r}{near}\n  installed: {listing}{also}        (ltg-mdlm plugins list)"
    )


def require_one_installation() -> None:
    """Raises UserError if this program and the built-in plugins come from two copies of ltg-mdlm that differ.

    `python -m ltg_mdlm.train` in a checkout imports the program from the current folder, but finds the plugins of an
    older installation.  Their folders differ in that case only: both packages lie side by side in an installation, and
    a checkout has the plugins in its folder `plugins`, from where an editable installation imports them, too.
    """
    file = module_file(BUILT_IN)
    program = Path(__file__).resolve().parents[1]
    plugins = Path(file).resolve().parent if file else program
    beside = (program.parent, program.parent / "plugins")
    if file is None or plugins.parent in beside:
        return
    copies = [(program, *(folder / BUILT_IN for folder in beside))]
    copies.append((*(folder / program.name for folder in (plugins.parent, plugins.parent.parent)), plugins))
    sources = [
        {
            f"{package.name}/{path.relative_to(package)}": path.read_bytes()
            for package in packages
            for path in package.rglob("*.py")
        }
        for packages in copies
    ]
    # Only what both copies have is compared: another layout may have the plugins alone in their folder.
    if any(sources[1].get(path, source) != source for path, source in sources[0].items()):
        raise UserError(
            f"two different copies of ltg-mdlm are mixed:\n  the program:          {program}"
            f"\n  the built-in plugins: {plugins}"
            f"\n  install the checkout (pip install -e .), or start the program from a folder outside it"
        )


def module_file(name: str) -> str | None:
    """File of a module, without importing it; None if it is not found."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return getattr(loaded, "__file__", None)
    first, *rest = name.split(".")
    try:
        spec: ModuleSpec | None = find_spec(first)
        for i, _ in enumerate(rest, 2):
            within = spec.submodule_search_locations if spec else None
            # `importlib.util.find_spec` would import the parent package.
            spec = PathFinder.find_spec(".".join(name.split(".")[:i]), within) if within else None
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


def _built_in_points() -> Iterable[EntryPoint]:
    try:
        return distribution(HOST).entry_points.select(group=PROJECT)
    except PackageNotFoundError:
        return ()


def _normalised(distribution: str) -> str:
    return distribution.lower().replace("_", "-")
