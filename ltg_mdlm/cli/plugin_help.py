"""What `ltg-mdlm plugins show` prints about a plugin: its options, hooks, file and version."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import PydanticUndefined, to_jsonable_python

from ltg_mdlm.core.components import PluginOptions
from ltg_mdlm.host.discovery import find
from ltg_mdlm.host.plugin_host import hooks_of, import_plugin, source_file


@dataclass(frozen=True)
class OptionHelp:
    """One option of a plugin, for help texts."""

    name: str
    type: str
    default: Any
    description: str


def option_help(model: type[PluginOptions]) -> list[OptionHelp]:
    """Name, type, default and description of a plugin's options."""
    return [
        OptionHelp(name, _type_name(info.annotation), _default(info), info.description or "")
        for name, info in model.model_fields.items()
    ]


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not getattr(annotation, "__args__", None):
        return annotation.__name__
    choices = getattr(annotation, "__args__", ())
    if str(annotation).startswith("typing.Literal"):
        return " | ".join(str(choice) for choice in choices)
    return str(annotation).replace("typing.", "")


def _default(info: Any) -> Any:
    value = info.get_default(call_default_factory=True)
    return None if value is PydanticUndefined else to_jsonable_python(value)


@dataclass(frozen=True)
class PluginDescription:
    """Everything `plugins show` tells about a plugin."""

    name: str
    distribution: str
    version: str
    api_version: int
    summary: str
    file: str
    hooks: list[str]
    options: list[OptionHelp]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def describe_plugin(name: str) -> PluginDescription:
    """Import one plugin and describe it.  Raises UserError when it is unknown or broken."""
    plugin = find(name)
    plugin_class = import_plugin(plugin)
    # Not `inspect.getdoc` of the class, which would find that of `Plugin`.
    documentation = inspect.cleandoc(plugin_class.__doc__ or inspect.getdoc(inspect.getmodule(plugin_class)) or "")
    return PluginDescription(
        name=name,
        distribution=plugin.distribution,
        version=plugin.version,
        api_version=plugin_class.api_version,
        summary=documentation.partition("\n\n")[0],
        file=source_file(plugin_class),
        hooks=hooks_of(plugin_class),
        options=option_help(plugin_class.options_model),
    )
