"""Write a plugin's distribution: the templates, with its names in place of their stand-ins.

From the name that a user gives to the names of plugin, distribution, module and class.
"""

from __future__ import annotations

import datetime
import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path

from ltg_mdlm import __version__
from ltg_mdlm.core.components import PluginOptions
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_errors, written_folder
from ltg_mdlm.host.discovery import HOST, OFF, VARIABLE, installed_plugins, module_file
from ltg_mdlm.scaffold import Kind


def files_of(kind: Kind) -> dict[str, str]:
    """Template of every file of a distribution, by its place there, which has stand-ins, too."""
    return {
        "pyproject.toml": "distribution/pyproject.toml",
        "README.md": "distribution/README.md",
        "LICENSE": "distribution/LICENSE",
        ".gitignore": "distribution/gitignore",
        ".github/workflows/tests.yml": "distribution/tests.yml",
        "src/ltg_mdlm_my_plugin/__init__.py": "distribution/package.py",
        "src/ltg_mdlm_my_plugin/plugin.py": f"kinds/{kind}.py",
        "tests/test_plugin.py": f"kinds/{kind}_tests.py",
    }


def stand_ins(names: Names, kind: Kind) -> dict[str, str]:
    """What takes the place of every stand-in."""
    template = import_module(f"ltg_mdlm.scaffold.kinds.{kind}")
    summary = (template.__doc__ or "").partition("my_plugin: ")[2].strip()
    return {
        "my_plugin": names.plugin,
        "my-plugin": names.hyphenated,
        "MyPlugin": names.plugin_class,
        "PLUGIN_SUMMARY": summary[0].upper() + summary[1:],
        "OPTION_SETTING": _another_value(template.Options),
        "0.0.0": __version__,
        "CURRENT_YEAR": str(datetime.date.today().year),
    }


def _another_value(options: type[PluginOptions]) -> str:
    """`option=value` for the first option, with half its default."""
    name, field = next(iter(options.model_fields.items()))
    return f"{name}={field.default / 2:g}"


def render(text: str, replacements: Mapping[str, str]) -> str:
    """The text with every stand-in replaced."""
    for stand_in, replacement in replacements.items():
        text = text.replace(stand_in, replacement)
    return text


def write_distribution(name: str, kind: Kind, out: Path | None = None) -> tuple[Names, Path]:
    """Write a distribution to `out`, by default a new folder of its name; complete or not at all.

    Returns its names and folder.  Raises UserError for a name that cannot be used, and a folder that is not empty or
    cannot be written.
    """
    names = Names.of(name)
    folder = Path(names.distribution) if out is None else out
    final = folder.resolve()
    _require_free(folder, final)
    replacements = stand_ins(names, kind)
    with write_errors(folder), written_folder(final) as aside:
        for place, template in files_of(kind).items():
            text = (resources.files("ltg_mdlm.scaffold") / template).read_text(encoding="utf-8")
            file = aside / render(place, replacements)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(render(text, replacements), encoding="utf-8")
    return names, folder


def _require_free(folder: Path, final: Path) -> None:
    if final.exists() and not (final.is_dir() and not any(final.iterdir())):
        raise UserError(f"{folder} exists already; choose a new or empty folder with --out")
    if final == Path.cwd():
        # An empty folder is replaced, which would leave the user's shell in one that is gone.
        raise UserError(f"{folder} is the current folder; name a folder within it with --out")


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
