"""What the site takes from the program itself, so that nothing is copied by hand: an MkDocs hook (see mkdocs.yml).

A page holds `<!-- generated: NAME -->` where a reference belongs, and stays readable in the repository; the text is
written in its place when the site is built.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

MARKER = re.compile(r"<!-- generated: (\w+)(?: (\w+))? -->")

Schema = Mapping[str, Any]
"""A part of a JSON schema, as pydantic writes it."""


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs for every page, before it becomes HTML."""
    return MARKER.sub(lambda found: GENERATORS[found[1]](*filter(None, [found[2]])), markdown)


def settings() -> str:
    """Every settings key, one section of the configuration after the other."""
    from ltg_mdlm.core.config import RunConfig

    schema = RunConfig.model_json_schema()
    sections = {name: _section(part, schema) for name, part in schema["properties"].items()}
    plain = {name: part for name, part in schema["properties"].items() if sections[name] is None}
    text = ["## Of the run", _table("key", _rows(plain, schema, ""))]
    for name, section in sections.items():
        if section is not None:
            rows = _rows(section["properties"], schema, f"{name}.")
            text += [f"## {name}", section["description"], _table("key", rows)]
    return "\n\n".join(text)


def options(plugin: str) -> str:
    """The options of one plugin, as `ltg-mdlm plugins show` lists them."""
    from ltg_mdlm.host.discovery import find
    from ltg_mdlm.host.plugin_host import import_plugin

    model: type[BaseModel] = import_plugin(find(plugin)).options_model
    schema = model.model_json_schema()
    return _table("option", _rows(schema["properties"], schema, ""))


def hooks() -> str:
    """Every hook: its signature, what it is for, and its example."""
    from ltg_mdlm.host import hookspecs

    names = [name for name in vars(hookspecs) if name.startswith("ltg_mdlm_")]
    return "\n\n".join(_hook(name, getattr(hookspecs, name)) for name in names)


def api() -> str:
    """Every public name of `ltg_mdlm.api`, for mkdocstrings to write out."""
    from ltg_mdlm import api as module

    groups: dict[str, list[str]] = {title: [] for title in ("Plugins", "Components", "Data", "Functions", "Constants")}
    for name in module.__all__:
        groups[_api_group(getattr(module, name))].append(name)
    text = []
    for title, names in groups.items():
        text += [f"## {title}", *(_api_entry(name, getattr(module, name)) for name in names)]
    return "\n\n".join(text)


def _api_group(value: object) -> str:
    from ltg_mdlm.api import Component

    if isinstance(value, type):
        is_component = issubclass(value, Component)
        return "Components" if is_component else "Data" if dataclasses.is_dataclass(value) else "Plugins"
    return "Functions" if inspect.isfunction(value) else "Constants"


def _api_entry(name: str, value: object) -> str:
    home = getattr(value, "__module__", "ltg_mdlm").partition(".")[0]
    if inspect.isroutine(value) and home != "ltg_mdlm":
        return f"### {name}\n\n`{value.__module__.partition('.')[0]}.{name}`, passed on."
    return f"::: ltg_mdlm.api.{name}"


def testing() -> str:
    """Every public name of `ltg_mdlm.testing`, for mkdocstrings to write out."""
    from ltg_mdlm import testing as module

    values = [getattr(module, name) for name in module.__all__]
    return "\n\n".join(f"::: {value.__name__ if inspect.ismodule(value) else _path(value)}" for value in values)


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def checks() -> str:
    """Every check of the conformance kit, and what it asks for."""
    from ltg_mdlm.testing import PluginConformance

    tests = {name: test for name, test in vars(PluginConformance).items() if name.startswith("test_")}
    lines = [f"| `{name}` | {_cell(' '.join((inspect.getdoc(test) or '').split()))} |" for name, test in tests.items()]
    return "\n".join(["| test | what |", "|---|---|", *lines])


def commands() -> str:
    """Every command with its arguments and options, by Typer's own generator."""
    command = [sys.executable, "-m", "typer", "ltg_mdlm.cli.app", "utils", "docs", "--name", "ltg-mdlm"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # The page has a title and a table of contents of its own.
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text.partition("\n")[2])
    return _outside_code(text, lambda part: part.replace("<", "&lt;"))


GENERATORS: dict[str, Callable[..., str]] = {
    "settings": settings,
    "options": options,
    "api": api,
    "testing": testing,
    "checks": checks,
    "hooks": hooks,
    "commands": commands,
}


def type_name(part: Schema) -> str:
    """What a JSON schema allows, in words: `integer >= 1 or null`."""
    if "enum" in part:
        return " or ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in part["enum"])
    if "anyOf" in part:
        return " or ".join(type_name(choice) for choice in part["anyOf"])
    if "prefixItems" in part:
        return f"[{', '.join(type_name(item) for item in part['prefixItems'])}]"
    if part.get("type") == "array":
        return f"list of {type_name(part['items'])}"
    name = "mapping" if part["type"] == "object" else part.get("format", part["type"])
    return f"{name} {_limits(part)}".strip()


def _limits(part: Schema) -> str:
    signs = {
        "minimum": ">=",
        "exclusiveMinimum": ">",
        "maximum": "<=",
        "exclusiveMaximum": "<",
        "multipleOf": "multiple of",
    }
    return ", ".join(f"{sign} {part[name]:g}" for name, sign in signs.items() if name in part)


def _section(part: Schema, schema: Schema) -> Schema | None:
    """The group of settings that a field stands for; None for a plain field."""
    choices = [part, *part.get("anyOf", ())]
    reference = next((choice["$ref"] for choice in choices if "$ref" in choice), None)
    return schema["$defs"][reference.rpartition("/")[2]] if reference else None


def _rows(fields: Mapping[str, Schema], schema: Schema, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, description) of every field, those of nested groups included."""
    for name, part in fields.items():
        section = _section(part, schema)
        if section is None:
            yield f"{prefix}{name}", type_name(part), _default(part), part.get("description", "")
            continue
        if "default" in part and part["default"] is None:
            yield f"{prefix}{name}", "the settings below, or null", "null", part.get("description", "")
        yield from _rows(section["properties"], schema, f"{prefix}{name}.")


def _default(part: Schema) -> str:
    """A default as YAML has it; empty for what is empty by default or has to be given."""
    value = part.get("default")
    if "default" not in part or value in ({}, []):
        return ""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]


def _table(first: str, rows: Iterable[tuple[str, str, str, str]]) -> str:
    lines = [f"| {first} | type | default | what |", "|---|---|---|---|"]
    for key, kind, default, description in rows:
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{key}` | {_cell(kind)} | {shown} | {_cell(description)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return _outside_code(text, lambda part: part.replace("<", "&lt;").replace("*", r"\*")).replace("|", r"\|")


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """Change what is not in backticks: neither spans nor fenced blocks."""
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def _hook(name: str, function: Callable[..., Any]) -> str:
    text, _, example = (inspect.getdoc(function) or "").partition(">>> ")
    code = re.sub(r"^(>>> |\.\.\. )", "", f">>> {example}", flags=re.MULTILINE)
    signature = f"{name}{inspect.signature(function)}".replace("'", "")
    return f"## {name}\n\n```python\n{signature}\n```\n\n{text.strip()}\n\n```python\n{code}\n```"
