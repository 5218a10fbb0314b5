"""Loading of settings: configs, `extends` and the command line are merged in order, then validated.

Each setting remembers where it was set, so that error messages can say what is wrong, where, and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.errors import UserError

DEFAULT_CONFIG = "laptop"

_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader of libyaml if PyYAML was built with it: ten times faster."""


@dataclass(frozen=True)
class Layer:
    """Settings from one place: a file or a command-line option."""

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the user set.  `Host` resolves it: `Host.config` is the config of a run."""

    config: RunConfig
    """The validated settings; the options of plugins are not validated before the plugins are imported."""
    sources: Mapping[str, str]
    """The file or command-line option in which every dotted key was last set."""


def load_settings(
    configs: Sequence[str] = (),
    sets: Sequence[str] = (),
    plugins: Sequence[str] = (),
    out: Path | None = None,
    *,
    layers: Sequence[Layer] = (),
) -> Settings:
    """Merge settings, later ones win, and validate the result.

    Args:
        configs: YAML files or named configs, by default `laptop`
        sets: `key.path=value` texts
        plugins: names of plugins to select, in addition to those of the configs
        out: run folder
        layers: further settings, merged after the configs

    Raises UserError that names the place of every unknown or invalid setting.
    """
    chosen = list(configs) or [DEFAULT_CONFIG]
    stack = [layer for name in chosen for layer in read_layers(name)]
    stack.append(Layer(f"the command line: --config {chosen[-1]}", {"name": Path(chosen[-1]).stem}))
    stack += layers
    stack += [Layer(f"the command line: --plugin {name}", {"plugins": {name: {}}}) for name in plugins]
    stack += [parse_set(text) for text in sets]
    if out is not None:
        stack.append(Layer(f"the command line: --out {out}", {"run": {"out": str(out)}}))
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in stack:
        merge(merged, layer.values, layer.source, sources)
    return Settings(validate(RunConfig, merged, sources), sources)


def parse_yaml(text: str) -> Any:
    """Like `yaml.safe_load`, but faster.  Raises yaml.YAMLError."""
    return yaml.load(text, _YAML_LOADER)


def read_layers(name: str, seen: tuple[str, ...] = ()) -> list[Layer]:
    """Read a config (a path or a name) and the configs that it `extends`, base first.  Raises UserError."""
    path = find_config(name)
    if str(path) in seen:
        raise UserError(f"{path} extends itself: {' -> '.join([*seen, str(path)])}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `section: settings` pairs, not {type(values).__name__}")
    base = values.pop("extends", None)
    below = read_layers(str(base), (*seen, str(path))) if base is not None else []
    return [*below, Layer(str(path), values)]


def find_config(name: str) -> Path:
    """The file of a config: a path, or the name of a file in `config_folders`.  Raises UserError."""
    if Path(name).is_file():
        return Path(name)
    for folder in config_folders():
        if (path := folder / f"{Path(name).name.removesuffix('.yaml')}.yaml").is_file():
            return path
    known = sorted(path.stem for folder in config_folders() for path in folder.glob("*.yaml"))
    raise UserError(
        f"--config {name}: no such file or named config{did_you_mean(name, known)}\n  named configs: {', '.join(known)}"
    )


def config_folders() -> list[Path]:
    """The folders of named configs: inside the installed package, and beside the package in a checkout."""
    package = Path(str(resources.files("ltg_mdlm")))
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def parse_set(text: str) -> Layer:
    """The settings of `--set a.b=value`; the value is YAML.  Raises UserError."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {text}: expected key.path=value, for example --set training.max_steps=100")
    try:
        nested = parse_yaml(value)
    except yaml.YAMLError:
        raise UserError(f"--set {text}: the value is not valid YAML; quote it if it is text") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return Layer(f"the command line: --set {text}", nested)


def merge(
    into: dict[str, Any], values: Mapping[str, Any], source: str, sources: dict[str, str], prefix: str = ""
) -> None:
    """Merge nested settings into `into`, and record in `sources` where each dotted key was last set."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        sources[path] = source
        if isinstance(value, Mapping) and isinstance(into.get(key, {}), Mapping):
            into[key] = dict(into.get(key, {}))
            merge(into[key], value, source, sources, f"{path}.")
        else:
            into[key] = value


def validate(
    model: type[Any], values: Mapping[str, Any], sources: Mapping[str, str], prefix: str = "", hint: str = ""
) -> Any:
    """An instance of a pydantic model.

    Args:
        model: the model to create
        values: its fields
        sources: where each dotted key was set
        prefix: of the dotted keys of this model, such as `plugins.freq_mdlm.`
        hint: appended to the list of known keys after an unknown one

    Raises UserError with a paragraph for every mistake.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        paragraphs = [_explain(item, model, sources, prefix, hint) for item in error.errors(include_url=False)]
        raise UserError("\n".join(paragraphs)) from None


def stored_config(values: Mapping[str, Any], file: Path) -> RunConfig:
    """The config that a run wrote to `file`.  Raises UserError if another version of the program has other settings."""
    try:
        config: RunConfig = validate(RunConfig, values, {})
    except UserError as error:
        reason = f"{file} was changed, or written by a version of ltg-mdlm with other settings"
        raise UserError(f"{reason}\n{error}") from None
    return config


def _explain(
    item: Mapping[str, Any], model: type[BaseModel], sources: Mapping[str, str], prefix: str, hint: str
) -> str:
    """A pydantic error as a paragraph: the setting, what is wrong, where it was set, and the known settings."""
    loc = [str(part) for part in item["loc"]]
    path = prefix + ".".join(loc)
    source, key = None, path
    while key and source is None:  # a section may have been set as a whole
        source, key = sources.get(key), key.rpartition(".")[0]
    origin = f"\n  set {'on' if source.startswith('the command line') else 'in'} {source}" if source else ""
    if item["type"] != "extra_forbidden":
        message = item["msg"].removeprefix("Value error, ")
        given = f" (got {item['input']!r})" if not isinstance(item["input"], Mapping | BaseModel) else ""
        return f"{path}: {message}{given}{origin}" if path else f"{message}{origin}"
    section = prefix + ".".join(loc[:-1])
    known = list(_section_model(model, loc[:-1]).model_fields)
    kind = "option" if section.startswith("plugins.") else "setting"
    listing = f"\n  {kind}s of {section.removeprefix('plugins.').rstrip('.') or 'a run'}: {', '.join(known)}"
    return f"{path}: no such {kind}{did_you_mean(loc[-1], known)}{origin}{listing}{hint}"


def _section_model(model: type[BaseModel], loc: Sequence[str]) -> type[BaseModel]:
    """The model of a nested section, which may be optional."""
    for part in loc:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return model


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' (did you mean 'x'?)', or an empty string if no known word is similar."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; an empty section is kept as a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
