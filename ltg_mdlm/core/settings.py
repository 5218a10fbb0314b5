"""The settings of a run: YAML files, named configs and `--set`, validated once; errors say where a setting came from.

Defaults are the published recipe of frequency-informed masked diffusion (arXiv 2509.05056, base size).
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


@dataclass(frozen=True)
class Layer:
    """Settings from one place: a file or the command line."""

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
    """Merge configs (later wins), `layers`, `--plugin` (adds), `--set` (wins over files) and `--out`, and validate.

    Raises UserError for anything unknown or of the wrong type, naming the place it was set in.
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
    """As `yaml.safe_load`, by libyaml where PyYAML was built with it: ten times faster.  Raises yaml.YAMLError."""
    return yaml.load(text, _YAML_LOADER)


_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_layers(name: str, seen: tuple[str, ...] = ()) -> list[Layer]:
    """Read a YAML file (a path, or the name of a packaged config) and what it `extends`, base first."""
    path = find_config(name)
    if str(path) in seen:
        raise UserError(f"{path} extends itself, by way of {' -> '.join([*seen, str(path)])}")
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
    """A given path, else a packaged config, else one of the repository's `configs/`."""
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
    """Where named configs are looked up: inside the installed package, then beside it in a checkout."""
    package = Path(str(resources.files("ltg_mdlm")))
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def parse_set(text: str) -> Layer:
    """`--set a.b=value`, the value in YAML."""
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
    """Merge nested settings in place; `sources` remembers where each dotted key was last set."""
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
    """Validate with pydantic; raise UserError with one paragraph per mistake."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        paragraphs = [_explain(item, model, sources, prefix, hint) for item in error.errors(include_url=False)]
        raise UserError("\n".join(paragraphs)) from None


def stored_config(values: Mapping[str, Any], file: Path) -> RunConfig:
    """The settings that a run wrote down.  Raises UserError for those of a version with other settings."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        paragraphs = [_explain(item, RunConfig, {}, "", "") for item in error.errors(include_url=False)]
        raise UserError(
            "\n".join([f"{file} was written by a version of ltg-mdlm with other settings, or changed", *paragraphs])
        ) from None


def _explain(
    item: Mapping[str, Any], model: type[BaseModel], sources: Mapping[str, str], prefix: str, hint: str
) -> str:
    loc = [str(part) for part in item["loc"]]
    path = prefix + ".".join(loc)
    source = next((sources[p] for p in _ancestors(path) if p in sources), None)
    origin = (
        f"\n  set in {source}" if source and not source.startswith("the") else f"\n  set on {source}" if source else ""
    )
    if item["type"] != "extra_forbidden":
        message = item["msg"].removeprefix("Value error, ")
        given = f" (got {item['input']!r})" if not isinstance(item["input"], Mapping | BaseModel) else ""
        return f"{path}: {message}{given}{origin}" if path else f"{message}{origin}"
    section = prefix + ".".join(loc[:-1])
    known = list(_section_model(model, loc[:-1]).model_fields)
    kind = "option" if section.startswith("plugins.") else "setting"
    listing = f"\n  {kind}s of {section.removeprefix('plugins.').rstrip('.') or 'a run'}: {', '.join(known)}"
    return f"{path}: no such {kind}{did_you_mean(loc[-1], known)}{origin}{listing}{hint}"


def _ancestors(path: str) -> Iterable[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def _section_model(model: type[BaseModel], loc: Sequence[str]) -> type[BaseModel]:
    for part in loc:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return model


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' (did you mean 'x'?)', or nothing when no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; an empty section is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
