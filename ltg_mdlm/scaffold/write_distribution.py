"""Write the distribution of a new plugin.

`write_distribution` renders the templates with the names of the plugin. Every kind of plugin has a template of its
module, `plugin_<kind>.py.jinja`, and of its tests, `test_<kind>.py.jinja`; all other files are the same for all kinds.
"""

from __future__ import annotations

import datetime
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2

from ltg_mdlm import __version__
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import write_errors, written_folder
from ltg_mdlm.host.discovery import HOST, OFF, VARIABLE, installed_plugins, module_file
from ltg_mdlm.scaffold import Kind

SUMMARIES: dict[Kind, str] = {
    "masking": "Masks long tokens more often, at an unchanged mean rate per row.",
    "schedule": "Draws mask rates gamma = t ** exponent.",
    "objective": "Limits the weights of the masked diffusion objective.",
    "conditioning": "Conditions the model on a power of the mask rate.",
    "observer": "Logs the accuracy on lightly and on heavily masked rows.",
    "order": "Unmasks first where the most likely token is far ahead of others.",
}
"""Description of the plugin in its README, pyproject.toml and docstrings."""

EXAMPLE_SETTINGS: dict[Kind, str] = {
    "masking": "power=0.25",
    "schedule": "exponent=1",
    "objective": "cap=5",
    "conditioning": "exponent=0.25",
    "observer": "split=0.15",
    "order": "rank=3",
}
"""A value other than the default for an option of the plugin, used in the README."""

DISTRIBUTION_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
"""A name that packaging tools accept (PEP 508)."""

RESERVED = {
    OFF: f"{VARIABLE}={OFF} disables all third-party plugins",
    "torch": "run folders record the version of torch under this name",
    "valid": "validation metrics are logged as valid/...",
}
"""Names that a plugin cannot have, and why."""


@dataclass(frozen=True)
class Names:
    """The names of a new plugin."""

    plugin: str
    """For `--plugin` and `plugins.NAME.option`: lower-case words joined by underscores."""
    distribution: str
    """Name on a package index."""
    module: str
    """Import package. Its prefix avoids clashes with other packages."""
    plugin_class: str
    """Class that the entry point names."""


def names_of(text: str) -> Names:
    """Derive the names of a plugin from the name that the user typed.

    As on package indexes, case and the choice of `-`, `_` or `.` do not matter. Raises `UserError` if the name is
    invalid, reserved or taken by an installed plugin or module.
    """
    if not DISTRIBUTION_NAME.fullmatch(text):
        raise UserError(
            f"{text!r} cannot be the name of a distribution: use letters and digits, with - _ . only between them"
        )
    hyphenated = re.sub(r"[-_.]+", "-", text).lower().removeprefix(f"{HOST}-")
    plugin = hyphenated.replace("-", "_")
    names = Names(
        plugin=plugin,
        distribution=f"{HOST}-{hyphenated}",
        module=f"{HOST}-{hyphenated}".replace("-", "_"),
        plugin_class="".join(word.capitalize() for word in plugin.split("_")) + "Plugin",
    )
    if not plugin.isidentifier():
        raise UserError(
            f"{plugin!r} cannot be the name of a plugin: it must begin with a letter, as names in Python do"
        )
    if keyword.iskeyword(plugin):
        raise UserError(f"{plugin!r} is a keyword of Python; choose another name")
    if plugin in RESERVED:
        raise UserError(f"{plugin!r} cannot be the name of a plugin: {RESERVED[plugin]}")
    if plugin in installed_plugins():
        origin = installed_plugins()[plugin][0].origin
        raise UserError(f"a plugin called {plugin!r} is already installed, from {origin}; choose another name")
    if (file := module_file(names.module)) is not None:
        raise UserError(f"a module called {names.module} is already installed ({file}); choose another name")
    return names


def files_of(kind: Kind, module: str) -> dict[str, str]:
    """Map every file of a distribution, relative to its folder, to the name of its template."""
    return {
        "pyproject.toml": "pyproject.toml.jinja",
        "README.md": "README.md.jinja",
        "LICENSE": "LICENSE.jinja",
        ".gitignore": "gitignore.jinja",
        ".github/workflows/tests.yml": "tests.yml.jinja",
        f"src/{module}/__init__.py": "package.py.jinja",
        f"src/{module}/plugin.py": f"plugin_{kind}.py.jinja",
        "tests/test_plugin.py": f"test_{kind}.py.jinja",
    }


def write_distribution(name: str, kind: Kind, out: Path | None = None) -> tuple[Names, Path]:
    """Write a distribution to `out`, by default a new folder with the name of the distribution.

    The folder is written completely or not at all. Returns the names of the plugin and the folder. Raises `UserError`
    if the name cannot be used, or if the folder is not empty or cannot be written.
    """
    names = names_of(name)
    folder = Path(names.distribution) if out is None else out
    final = folder.resolve()
    if final.exists() and not (final.is_dir() and not any(final.iterdir())):
        raise UserError(f"{folder} already exists; choose a new or empty folder with --out")
    if final == Path.cwd():
        # The finished folder replaces an empty one, which would leave the user's shell in a deleted folder.
        raise UserError(f"{folder} is the current folder; choose a folder inside it with --out")

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("ltg_mdlm.scaffold"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    variables = {
        "names": names,
        "kind": kind,
        "summary": SUMMARIES[kind],
        "setting": EXAMPLE_SETTINGS[kind],
        "version": __version__,
        "year": datetime.date.today().year,
    }
    with write_errors(folder), written_folder(final) as unfinished:
        for place, template in files_of(kind, names.module).items():
            file = unfinished / place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(templates.get_template(template).render(variables), encoding="utf-8")
    return names, folder
