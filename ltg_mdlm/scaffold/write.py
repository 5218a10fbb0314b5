"""Write a plugin's distribution: the templates, with its names in place of their stand-ins."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Mapping
from importlib import import_module, resources
from pathlib import Path

from ltg_mdlm import __version__
from ltg_mdlm.api import PluginOptions
from ltg_mdlm.durable import publish_folder, temporary_name, write_file
from ltg_mdlm.errors import UserError
from ltg_mdlm.scaffold import Kind
from ltg_mdlm.scaffold.names import Names


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
    aside = temporary_name(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for place, template in files_of(kind).items():
            text = (resources.files("ltg_mdlm.scaffold") / template).read_text(encoding="utf-8")
            file = aside / render(place, replacements)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, render(text, replacements))
        publish_folder(aside, final)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return names, folder


def _require_free(folder: Path, final: Path) -> None:
    if final.exists() and not (final.is_dir() and not any(final.iterdir())):
        raise UserError(f"{folder} exists already; choose a new or empty folder with --out")
    if final == Path.cwd():
        # An empty folder is replaced, which would leave the user's shell in one that is gone.
        raise UserError(f"{folder} is the current folder; name a folder within it with --out")
