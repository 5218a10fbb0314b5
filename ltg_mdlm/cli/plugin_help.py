"""What `ltg-mdlm plugins show` prints about a plugin: its options, hooks, file and version."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import PydanticUndefined, to_jsonable_python

from ltg_mdlm.host.discovery import find
from ltg_mdlm.host.plugin_host import hooks_of, import_plugin, source_file


@dataclass(frozen=True)
class OptionHelp:
    """One option of a plugin."""

    name: str
    type: str
    default: Any
    """As a JSON value."""
    description: str


@dataclass(frozen=True)
class PluginDescription:
    """Everything that `plugins show` prints about a plugin."""

    name: str
    distribution: str
    version: str
    api_version: int
    summary: str
    file: str
    hooks: list[str]
    options: list[OptionHelp]

    def to_json(self) -> dict[str, Any]:
        """The description as JSON values."""
        return asdict(self)


def describe_plugin(name: str) -> PluginDescription:
    """Import a plugin and describe it. Raises `UserError` if it is not installed or cannot be imported."""
    plugin = find(name)
    plugin_class = import_plugin(plugin)
    # `inspect.getdoc` of a class without a docstring would return that of `Plugin`.
    documentation = inspect.cleandoc(plugin_class.__doc__ or inspect.getdoc(inspect.getmodule(plugin_class)) or "")
    options = []
    for option, field in plugin_class.options_model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        default = None if default is PydanticUndefined else to_jsonable_python(default)
        options.append(
            OptionHelp(field.alias or option, _type_name(field.annotation), default, field.description or "")
        )
    return PluginDescription(
        name=name,
        distribution=plugin.distribution,
        version=plugin.version,
        api_version=plugin_class.api_version,
        summary=documentation.partition("\n\n")[0],
        file=source_file(plugin_class),
        hooks=hooks_of(plugin_class),
        options=options,
    )


def _type_name(annotation: Any) -> str:
    choices = getattr(annotation, "__args__", ())
    if isinstance(annotation, type) and not choices:
        return annotation.__name__
    if str(annotation).startswith("typing.Literal"):
        return " | ".join(map(str, choices))
    return str(annotation).replace("typing.", "")
