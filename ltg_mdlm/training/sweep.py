"""Sweeps: a grid of settings and seeds in a YAML file; each point is a run in its own folder.

    configs: [freq_cosine]                        # base configs as for --config; later ones take precedence
    grid:                                         # key path -> values; a single value is set for every point
      plugin: [freq_mdlm, [dual, freq_mdlm]]      # as --plugin: a name, or several
      plugins.uniform_mdlm.schedule: [linear, cosine]
      plugins.uniform_mdlm.derivative_power: [0, 1]
    seeds: [0, 1, 2]
    exclude:                                      # leaves out points that have all of these values
      - {plugins.uniform_mdlm.schedule: linear, plugins.uniform_mdlm.derivative_power: 0}

Points are numbered from 0 in the order of the file: seeds vary fastest, then the last key of the grid.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from ltg_mdlm.core.config import Section
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import (
    Layer,
    Settings,
    config_folders,
    did_you_mean,
    flatten,
    load_settings,
    parse_set,
    parse_yaml,
    read_yaml,
    validate,
)

SEED = "seed"

PLUGIN = "plugin"
"""Key of the grid for the plugins of a point; it is not a setting, but selects plugins as `--plugin` does."""

_LONGEST_VALUE = 24
"""Characters of a value in the name of a run folder."""

_LONGEST_NAME = 120
"""Characters of the name of a run folder; file systems allow 255 bytes, and other names are derived from it."""

MAX_POINTS = 100_000

_UNSAFE = re.compile(r"[^\w.+-]+", re.ASCII)
"""Characters that a run folder does not have in its name."""

Values = Annotated[list[Any], Field(min_length=1, max_length=1000)]


class SweepFile(Section):
    """The content of a sweep file."""

    configs: list[str] = Field(
        default_factory=list, description="base configs of every point; later ones take precedence"
    )
    grid: dict[str, Values] = Field(default_factory=dict, description="key path, or `plugin`, -> values")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0], min_length=1, max_length=1000, description="seeds of every point"
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list, description="key path -> value or values; points that match all of them are left out"
    )

    @field_validator("grid")
    @classmethod
    def _keys_belong_to_a_grid(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if SEED in grid:
            raise ValueError("list the seeds under seeds:, not in the grid")
        if "run.out" in grid:
            raise ValueError("run folders are named by the sweep; remove run.out")
        for names in grid.get(PLUGIN, ()):
            if not all(isinstance(name, str) for name in _choices(names)):
                raise ValueError(f"{PLUGIN} takes names of plugins, or lists of them, not {names!r}")
        for key, values in grid.items():
            _require_distinct(values, key)
            if inner := next((other for other in grid if other.startswith(f"{key}.")), None):
                raise ValueError(f"{key} and {inner} cannot both be in the grid: one is part of the other")
        return grid

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        _require_distinct(seeds, "seeds")
        return seeds

    @field_validator("exclude")
    @classmethod
    def _exclusions_name_points(cls, exclude: list[dict[str, Any]], info: ValidationInfo) -> list[dict[str, Any]]:
        if not {"grid", "seeds"} <= info.data.keys():
            return exclude  # errors in those are reported already
        axes = {**info.data["grid"], SEED: info.data["seeds"]}
        for key, value in (item for rule in exclude for item in rule.items()):
            if key not in axes:
                raise ValueError(f"{key} is not in the grid{did_you_mean(key, axes)}")
            for wanted in _choices(value):
                if not _is_among(wanted, axes[key]):
                    raise ValueError(f"{key} never has the value {wanted!r}, so nothing would be left out")
        return exclude

    @property
    def varying(self) -> list[str]:
        """Key paths with more than one value."""
        return [key for key, values in self.grid.items() if len(values) > 1]


def _require_distinct(values: Sequence[Any], key: str) -> None:
    for i, value in enumerate(values):
        if _is_among(value, values[:i]):
            raise ValueError(f"{key} has the value {value!r} twice")


def _choices(value: Any) -> list[Any]:
    """A value that may be a list of values, as a list."""
    return value if isinstance(value, list) else [value]


def _is_among(value: Any, values: Iterable[Any]) -> bool:
    """Whether `value` is in `values`; unlike Python, `true` differs from 1, as in YAML."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    index: int
    name: str
    """Name of the run folder: the values that vary, and the seed."""
    values: Mapping[str, Any]
    """Values by key path, including the seed."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings by key path; each plugin of `plugin` is selected by an empty section, to which options are added."""
        selected: dict[str, Any] = {f"plugins.{name}": {} for name in _choices(self.values.get(PLUGIN, []))}
        return selected | {key: value for key, value in self.values.items() if key != PLUGIN}


class Sweep:
    """The points of a sweep file, with the settings that the command line adds to all of them."""

    def __init__(self, path: Path, content: SweepFile, sets: Sequence[str] = (), out_root: Path | None = None) -> None:
        """Expand the grid.

        Args:
            path: path of the sweep file
            content: its validated content
            sets: `--set` texts for every point
            out_root: parent of the run folders; by default runs/<name of the file>

        Raises UserError if the exclusions leave no point, or if a `--set` contradicts the grid.
        """
        self.path, self.content, self._sets = path, content, tuple(sets)
        self.out_root = out_root or Path("runs") / path.stem
        if math.prod(map(len, [*content.grid.values(), content.seeds])) > MAX_POINTS:
            raise UserError(f"{path}: its grid has more than {MAX_POINTS:,} points")
        self.points = tuple(_points(content))
        if not self.points:
            raise UserError(f"{path}: its exclusions leave no point of the grid to train")
        for text in sets:
            for key in flatten(parse_set(text).values).keys() & {*content.grid, SEED}:
                raise UserError(f"--set {text}: {key} is set by the sweep\n  change it in {path}")

    def point(self, index: int) -> Point:
        """The point with this number.  Raises UserError if there is none."""
        if not 0 <= index < len(self.points):
            raise UserError(f"{self.path} has no point {index}: its points are 0 to {len(self.points) - 1}")
        return self.points[index]

    def folder(self, point: Point) -> Path:
        """The point's run folder."""
        return self.out_root / point.name

    def settings(self, point: Point) -> Settings:
        """The point's settings.  Raises UserError that names the point, as `train` would with the same settings."""
        nested: dict[str, Any] = {}
        for key_path, value in point.settings.items():
            *sections, key = key_path.split(".")
            section = nested
            for name in sections:
                section = section.setdefault(name, {})
            section[key] = value
        layer = Layer(f"{self.path} (point {point.index})", nested)
        try:
            return load_settings(self.content.configs, self._sets, out=self.folder(point), layers=[layer])
        except UserError as error:
            raise self.blame(point, error) from None

    def blame(self, point: Point, error: UserError) -> UserError:
        """The same error, with the point that it is in."""
        return UserError(f"point {point.index} ({point.name}) of {self.path} cannot be trained\n  {error}")


def open_sweep(name: str, sets: Sequence[str] = (), out_root: Path | None = None) -> Sweep:
    """Read a sweep file, given its path or its name in `configs/sweeps`.  Raises UserError for any mistake in it."""
    path = find_sweep(name)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold configs, grid, seeds and exclude, not {type(values).__name__}")
    return Sweep(path, validate(SweepFile, values, {"sweep": str(path)}, prefix="sweep."), sets, out_root)


def find_sweep(name: str) -> Path:
    """The path of a sweep file: the given path, a packaged sweep, or one of the repository's `configs/sweeps/`."""
    if Path(name).is_file():
        return Path(name)
    folders = [folder / "sweeps" for folder in config_folders()]
    for folder in folders:
        if (path := folder / f"{name.removesuffix('.yaml')}.yaml").is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(f"{name}: no such sweep file{did_you_mean(name, known)}\n  named sweeps: {', '.join(known)}")


def _points(content: SweepFile) -> Iterator[Point]:
    labels = short_names(content.varying)
    keys = [*content.grid, SEED]
    index = 0
    for choice in itertools.product(*content.grid.values(), content.seeds):
        values = dict(zip(keys, choice, strict=True))
        if any(all(_is_among(values[k], _choices(wanted)) for k, wanted in rule.items()) for rule in content.exclude):
            continue
        varying = {labels[key]: values[key] for key in content.varying}
        yield Point(index, folder_name(varying, values[SEED]), values)
        index += 1


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """For every key path, its shortest ending that no other key path has."""

    def ending(path: str, parts: int) -> str:
        return ".".join(path.split(".")[-parts:])

    names = {}
    for path in paths:
        parts = 1
        while ending(path, parts) != path and sum(ending(other, parts) == ending(path, parts) for other in paths) > 1:
            parts += 1
        names[path] = ending(path, parts)
    return names


def folder_name(values: Mapping[str, Any], seed: int) -> str:
    """A short name that is safe in every file system, and that differs for different values.

    >>> folder_name({"schedule": "cosine", "power": 0.5}, seed=2)
    'schedule=cosine-power=0.5-s2'
    """
    name = "-".join(f"{_UNSAFE.sub('_', key)}={_value_name(value)}" for key, value in values.items())
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{_digest(name)}"
    return "-".join(part for part in (name, f"s{seed}") if part)


def _value_name(value: Any) -> str:
    """The value itself if it can be part of a file name; otherwise its safe characters and a digest."""
    written = json.dumps(value, sort_keys=True, default=str)
    text = value if isinstance(value, str) else written
    safe = _UNSAFE.sub("_", text)
    try:
        reads_back = safe == text and parse_yaml(text) == value
    except UserError:  # text such as `0x_`, which YAML takes for a number
        reads_back = False
    return text if reads_back and len(text) <= _LONGEST_VALUE else f"{safe[:_LONGEST_VALUE]}-{_digest(written)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
