"""From the name that a user gives to the names of plugin, distribution, module and class."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

from ltg_mdlm.errors import UserError
from ltg_mdlm.installed import HOST, OFF, VARIABLE, installed_plugins, module_file

_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
"""A name that packaging tools accept (PEP 508)."""
_RESERVED = {
    OFF: f"{VARIABLE}={OFF} means that no third-party plugin is considered",
    "torch": "run folders record the version of torch under this name",
    "valid": "figures on held-out text are logged as valid/...",
}


@dataclass(frozen=True)
class Names:
    """The names of one plugin."""

    plugin: str
    """for `--plugin` and `plugins.NAME.option`: words in lower case, joined by underscores"""

    @staticmethod
    def of(text: str) -> Names:
        """Read a name as for a package index: case, and which of - _ . joins words, do not matter.

        Raises UserError if it cannot name a distribution and a module, means something else, or is taken.
        """
        if not _DISTRIBUTION.fullmatch(text):
            raise UserError(
                f"{text!r} cannot be the name of a distribution: it may have letters, digits, and in between - _ ."
            )
        names = Names(re.sub(r"[-_.]+", "-", text).lower().removeprefix(f"{HOST}-").replace("-", "_"))
        names._require_usable()
        return names

    @property
    def distribution(self) -> str:
        """Name of the distribution, by the custom of naming it after what it plugs into."""
        return f"{HOST}-{self.hyphenated}"

    @property
    def hyphenated(self) -> str:
        """The plugin's name as part of a distribution's."""
        return self.plugin.replace("_", "-")

    @property
    def module(self) -> str:
        """Name of the import package; its prefix keeps it from hiding a module of somebody else."""
        return self.distribution.replace("-", "_")

    @property
    def plugin_class(self) -> str:
        """Name of the class behind the entry point."""
        return "".join(word.capitalize() for word in self.plugin.split("_")) + "Plugin"

    def _require_usable(self) -> None:
        name = self.plugin
        if not name.isidentifier():
            raise UserError(f"{name!r} cannot name a plugin: it must begin with a letter, as names in Python do")
        if keyword.iskeyword(name):
            raise UserError(f"{name!r} is a keyword of Python; choose another name")
        if name in _RESERVED:
            raise UserError(f"a plugin cannot be called {name!r}: {_RESERVED[name]}")
        if name in installed_plugins():
            origin = installed_plugins()[name][0].origin
            raise UserError(f"a plugin called {name!r} is installed already, from {origin}; choose another name")
        if (file := module_file(self.module)) is not None:
            raise UserError(f"a module called {self.module} is installed already ({file}); choose another name")
