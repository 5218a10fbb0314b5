"""Loading of settings: configs, `extends` and the command line are merged in order, then validated.

Each setting remembers where it was set, so that error messages can say what is wrong, where, and what is allowed.
"""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError

from ltg_mdlm.core.config import RunConfig, Section
from ltg_mdlm.core.errors import UserError

DEFAULT_CONFIG = "laptop"

MAX_BYTES, MAX_VALUES, MAX_LEVELS, MAX_DIGITS = 10_000_000, 100_000, 50, 100
"""Limits of settings: bytes of a file, values with aliases expanded, nested sections, characters of a number."""

_LONGEST_QUOTE = 200
"""Characters of a value that an error message repeats."""

_SECTIONS = {
    name
    for name, field_ in RunConfig.model_fields.items()
    if name in ("plugins", "slots") or (isinstance(field_.annotation, type) and issubclass(field_.annotation, Section))
}
"""Settings that hold others."""

_BaseLoader: TypeAlias = Any
_YAML_LOADER: _BaseLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader of libyaml if PyYAML was built with it: ten times faster."""


@dataclass(frozen=True)
class Layer:
    """Settings from one place: a file or a command-line option."""

    source: str
    values: Mapping[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    """The line of the file in which each dotted key is set."""


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
    """Merge settings, of which later ones take precedence, and validate the result.

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
        merge(merged, layer.values, layer.source, sources, lines=layer.lines)
        for section in _SECTIONS & layer.values.keys():
            # Found now: a later layer with settings of the section would replace the value.
            if not isinstance(value := merged[section], Mapping):
                found = f"{shortened(repr(value))}{origin(section, sources)}"
                raise UserError(f"{section}: expected a section of settings, not {found}")
    config: RunConfig = validate(RunConfig, merged, sources)
    # A name that cannot name a folder is found now, not by `train` only.  Unknown plugins are the host's concern.
    config.model_copy(update={"plugins": {}}).run_folder()
    return Settings(config, sources)


class _Loader(_YAML_LOADER):  # type: ignore[misc]
    """Constructs plain values only, and names the line of a value that its type cannot represent."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node.  Raises yaml.YAMLError."""
        if isinstance(node, yaml.ScalarNode):
            kind = node.tag.rpartition(":")[2]
            if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
                raise _invalid(f"a number of {len(node.value)} characters", node)
            if kind == "str" and (reason := unusable_text(node.value)):
                raise _invalid(f"text that contains {reason}", node)
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError):
            # PyYAML converts what looks like a number or a date without further checks.
            given = shortened(repr(node.value)) if isinstance(node, yaml.ScalarNode) else f"a {type(node).__name__}"
            raise _invalid(f"{given} is not a valid value of type {node.tag.rpartition(':')[2]}", node) from None


def _refuse_tag(loader: _BaseLoader, node: yaml.Node) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    raise _invalid(f"{shortened(node.value)!r} must be quoted" if kind == "value" else f"unknown tag {kind}", node)


_Loader.add_constructor(None, _refuse_tag)


def parse_yaml(text: str, where: str = "the text") -> Any:
    """The plain values of a YAML document.  `where` names the text in error messages.

    Raises UserError for anything that is not valid YAML, with its line; for keys that occur twice in a section; and
    for recursive, enormous or deeply nested documents.
    """
    return _parse(text, where)[0]


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file.  Raises OSError, and UserError like `parse_yaml`."""
    return parse_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a small UTF-8 file.  Raises OSError, and UserError if it is large or not UTF-8."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES / 1e6:.0f} MB, which is too much for a file of settings")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        line = data.count(b"\n", 0, error.start) + 1
        found = "UTF-16 text" if utf16 else f"line {line}: byte 0x{data[error.start]:02x} is not UTF-8"
        raise UserError(f"{path} is not UTF-8 text: {found}\n  save the file as UTF-8") from None


def _parse(text: str, where: str, *, is_file: bool = True) -> tuple[Any, dict[str, int]]:
    """The values of a YAML document, and the line of each dotted key.  Raises UserError."""
    lines: dict[str, int] = {}
    try:
        text.encode()  # libyaml reads bytes
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None, lines
            _Survey(lines).of(root)
            return loader.construct_document(root), lines
        finally:
            loader.dispose()
    except RecursionError:
        reason, line = f"more than {MAX_LEVELS} nested levels", None
    except UnicodeEncodeError as error:
        reason, line = f"it contains {unusable_text(text)}", text.count("\n", 0, error.start) + 1
    except yaml.reader.ReaderError as error:
        reason, line = f"it contains the character U+{error.character:04X}", text.count("\n", 0, error.position) + 1
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason, line = error.problem or error.context or "it cannot be read", mark.line + 1 if mark else None
    except yaml.YAMLError as error:
        reason, line = " ".join(str(error).split()), None
    place = f"line {line}: " if is_file and line is not None else ""
    advice = "" if is_file else "; quote it if it is text"
    raise UserError(f"{where} is not valid YAML: {place}{reason}{advice}")


class _Survey:
    """Checks the nodes of a document before anything is constructed."""

    def __init__(self, lines: dict[str, int]) -> None:
        self.lines = lines
        self._measured: dict[int, tuple[int, int]] = {}
        self._within: set[int] = set()

    def of(self, node: yaml.Node, path: str = "") -> tuple[int, int]:
        """(values, levels) of a node with its aliases expanded.  Raises yaml.YAMLError."""
        if id(node) in self._measured:
            return self._measured[id(node)]
        if id(node) in self._within:
            raise _invalid("the value of an anchor contains itself", node)
        self._within.add(id(node))
        children: list[tuple[yaml.Node, str]] = []
        if isinstance(node, yaml.MappingNode):
            first: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                inner = path
                if isinstance(key, yaml.ScalarNode):
                    line = key.start_mark.line + 1
                    if (before := first.get((key.tag, key.value))) is not None:
                        raise _invalid(f"{shortened(repr(key.value))} is already set in line {before}", key)
                    first[key.tag, key.value] = line
                    inner = f"{path}.{key.value}" if path else key.value
                    self.lines.setdefault(inner, line)
                children += [(key, path), (value, inner)]
        elif isinstance(node, yaml.SequenceNode):
            children = [(item, path) for item in node.value]
        values, levels = 1, 1
        for child, inner in children:
            more, below = self.of(child, inner)
            values, levels = values + more, max(levels, below + 1)
        if levels > MAX_LEVELS:
            raise _invalid(f"more than {MAX_LEVELS} nested levels", node)
        if values > MAX_VALUES:
            raise _invalid(f"more than {MAX_VALUES:,} values, with aliases expanded", node)
        self._within.remove(id(node))
        self._measured[id(node)] = values, levels
        return values, levels


def _invalid(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def unusable_text(text: str) -> str | None:
    """What a text contains that neither a file name nor a UTF-8 file may contain, or None."""
    if "\0" in text:
        return "a NUL character"
    return None if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text) else "bytes that are not UTF-8"


def shortened(text: str) -> str:
    """The text, or its beginning if it is long."""
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}... ({len(text):,} characters)"


def read_layers(name: str, seen: tuple[str, ...] = ()) -> list[Layer]:
    """Read a config (a path or a name) and the configs that it `extends`, base first.  Raises UserError."""
    path = find_config(name, f"extends in {seen[-1]}" if seen else "--config")
    if str(path) in seen:
        raise UserError(f"{path} extends itself: {' -> '.join([*seen, str(path)])}")
    values, lines = _parse(read_text(path), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `section: settings` pairs, not {type(values).__name__}")
    base = values.pop("extends", None)
    below = read_layers(str(base), (*seen, str(path))) if base is not None else []
    return [*below, Layer(str(path), values, lines)]


def find_config(name: str, asked_by: str = "--config") -> Path:
    """The file of a config: a path, or the name of a file in `config_folders`.  Raises UserError."""
    if Path(name).is_file():
        return Path(name)
    is_name = str(Path(name).parent) in (".", "configs")  # mine/laptop.yaml is a path, even if `laptop` is a name
    for folder in config_folders() if is_name else ():
        if (path := folder / f"{Path(name).name.removesuffix('.yaml')}.yaml").is_file():
            return path
    known = sorted(path.stem for folder in config_folders() for path in folder.glob("*.yaml"))
    missing = "it is a folder" if Path(name).is_dir() else "no such file or named config"
    raise UserError(f"{asked_by} {name}: {missing}{did_you_mean(name, known)}\n  named configs: {', '.join(known)}")


def config_folders() -> list[Path]:
    """The folders of named configs: inside the installed package, and beside the package in a checkout."""
    package = Path(str(resources.files("ltg_mdlm")))
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def parse_set(text: str) -> Layer:
    """The settings of `--set a.b=value`; the value is YAML.  Raises UserError."""
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or len(parts) > MAX_LEVELS:
        raise UserError(f"--set {shortened(text)}: expected key.path=value, for example --set training.max_steps=100")
    nested = _parse(value, f"--set {shortened(text)}: the value", is_file=False)[0]
    for part in reversed(parts):
        nested = {part: nested}
    return Layer(f"the command line: --set {shortened(text)}", nested)


def merge(
    into: dict[str, Any],
    values: Mapping[str, Any],
    source: str,
    sources: dict[str, str],
    prefix: str = "",
    *,
    lines: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Merge nested settings into `into`, and record in `sources` where each dotted key was last set."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        sources[path] = f"{source}, line {lines[path]}" if path in lines else source
        if isinstance(value, Mapping) and isinstance(into.get(key, {}), Mapping):
            into[key] = dict(into.get(key, {}))
            merge(into[key], value, source, sources, f"{path}.", lines=lines)
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
        checked = model.model_validate(values)
    except ValidationError as error:
        paragraphs = [_explain(item, model, sources, prefix, hint) for item in error.errors(include_url=False)]
        raise UserError("\n".join(paragraphs)) from None
    mistakes = [
        f"{prefix}{path}: {reason}{origin(prefix + path, sources)}" for path, reason in _misread(values, checked)
    ]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return checked


def _misread(given: Any, taken: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, reason) of the values that pydantic accepts although they are certainly mistakes.

    pydantic takes `true` for the number 1, and text that no file name and no file can hold.
    """
    if isinstance(given, bool) and isinstance(taken, int | float) and not isinstance(taken, bool):
        yield path, f"must be a number, not {str(given).lower()}"
    elif isinstance(given, str) and (reason := unusable_text(given)):
        yield path, f"contains {reason}"
    elif isinstance(given, Mapping):
        for key, value in given.items():
            inner = taken.get(key) if isinstance(taken, Mapping) else getattr(taken, str(key), None)
            yield from _misread(value, inner, f"{path}.{key}" if path else str(key))
    elif isinstance(given, list | tuple):
        inners = taken if isinstance(taken, list | tuple) and len(taken) == len(given) else [None] * len(given)
        for i, (value, inner) in enumerate(zip(given, inners, strict=True)):
            yield from _misread(value, inner, f"{path}.{i}")


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
    place = origin(path, sources)
    if item["type"] != "extra_forbidden":
        message = item["msg"].removeprefix("Value error, ")
        given = f" (got {shortened(repr(item['input']))})" if not isinstance(item["input"], Mapping | BaseModel) else ""
        if isinstance(item["input"], Mapping | BaseModel) and item["type"] == "value_error":
            # A rule about several settings of a section: say where those that the message names were set.
            section = path.rstrip(".")
            keys = [f"{section}.{name}".lstrip(".") for name in _section_model(model, loc).model_fields]
            named = [key for key in keys if re.search(rf"\b{key.rpartition('.')[2]}\b", message) and key in sources]
            places = [f"\n  {key} is {origin(key, sources).lstrip()}" for key in named]
            return f"{section}: {message}{''.join(places) or place}".removeprefix(": ")
        return f"{path}: {message}{given}{place}" if path else f"{message}{place}"
    section = prefix + ".".join(loc[:-1])
    known = list(_section_model(model, loc[:-1]).model_fields)
    kind = "option" if section.startswith("plugins.") else "setting"
    listing = f"\n  {kind}s of {section.removeprefix('plugins.').rstrip('.') or 'a run'}: {', '.join(known)}"
    return f"{path}: no such {kind}{did_you_mean(loc[-1], known)}{place}{listing}{hint}"


def origin(path: str, sources: Mapping[str, str]) -> str:
    """A line that says where a setting was set, or an empty string if nobody set it."""
    source, key = None, path
    while key and source is None:  # a section may have been set as a whole
        source, key = sources.get(key), key.rpartition(".")[0]
    return f"\n  set {'on' if source.startswith('the command line') else 'in'} {source}" if source else ""


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
