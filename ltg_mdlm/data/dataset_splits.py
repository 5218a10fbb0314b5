"""Configurations and splits of a dataset folder, as the Hugging Face Hub understands it.

The README of a dataset may list them in its YAML header (`configs`, `data_files`). Otherwise they are in the names of
the files: `train-00000-of-00002.parquet`, `data/validation.csv`, `childes.dev`, `test/part1.jsonl`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import parse_yaml

_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

SHARD = re.compile(r"-(\d{5,})-of-(\d{5,})(?:-[0-9a-f]{16})?$")
"""The end of the name of a file that is one of several."""

Splits = dict[str, list[str]]
"""Names of files by split."""


class _Files(BaseModel):
    """Files of a split, as an entry of a list `data_files`."""

    split: str = "train"
    path: str | list[str]


class _Configuration(BaseModel):
    """An entry of `configs` in the header of a README; other keys are not read."""

    config_name: Any = "default"
    default: Any = False
    data_dir: str | None = None
    data_files: str | list[str | _Files] | dict[str, str | list[str]] | None = None


_FORM = (
    "`configs` in its header must be a list of configurations, and their `data_files` a pattern of file names, a list"
    " of patterns, or a table of patterns by split"
)


def split_called(word: str) -> str | None:
    """The split that a word names: `validation` for `dev`; None for any other word."""
    return next((split for split, words in _KEYWORDS.items() if word.lower() in words), None)


def split_of_name(name: str) -> str | None:
    """The split that the name of a file, or else one of its folders, says; None if none does."""
    for part in reversed(PurePosixPath(name).parts):
        for word in re.split(r"[^A-Za-z]+", part):
            if split := split_called(word):
                return split
    return None


def splits_by_name(names: Iterable[str]) -> Splits:
    """The files of each split; those whose name says none are left out."""
    splits: Splits = {}
    for name in names:
        if split := split_of_name(name):
            splits.setdefault(split, []).append(name)
    return splits


def splits_of_readme(readme: str, names: Sequence[str], origin: str) -> dict[str, Splits]:
    """The splits of every configuration that the header of a README lists, the default configuration first.

    Args:
        readme: the text of README.md
        names: all files of the dataset, relative to its folder and with `/`
        origin: the dataset, for messages

    Raises:
        UserError: a header that is not YAML, configurations of another form, or a pattern that matches no file.
    """
    header = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", readme, re.DOTALL)
    try:
        root = yaml.compose(header[1], yaml.SafeLoader) if header else None
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{origin}/README.md: its header is not YAML: {reason}") from error
    if not isinstance(root, yaml.MappingNode):
        return {}
    # The rest of the header is not needed, so a bad value there is not an error.
    root.value = [(key, value) for key, value in root.value if key.value == "configs"]
    listed = parse_yaml(yaml.serialize(root), f"{origin}/README.md: `configs` in its header").get("configs")
    try:
        configs = TypeAdapter(list[_Configuration]).validate_python(listed or [])
    except ValidationError as error:
        raise UserError(f"{origin}/README.md: {_FORM}, not {listed!r:.200}") from error
    configs = [config for config in configs if config.data_files]
    configs.sort(key=lambda config: not (config.default or config.config_name == "default"))
    found: dict[str, Splits] = {}
    for config in configs:
        splits: Splits = {}
        for split, pattern in _patterns(config.data_files):
            if config.data_dir:
                pattern = f"{config.data_dir}/{pattern}"
            try:
                regex = _regex(pattern)
            except re.error as error:
                raise UserError(f"{origin}/README.md: {_FORM}; {pattern!r} is no pattern: {error}") from error
            matching = [name for name in names if regex.fullmatch(name)]
            if not matching:
                raise UserError(
                    f"{origin}/README.md: lists {pattern!r} for the split {split}, but there is no such file"
                )
            splits.setdefault(split_called(split) or split, []).extend(matching)
        found[str(config.config_name)] = splits
    return found


def choose_split(splits: Mapping[str, Sequence[str]], split: str, origin: str) -> list[str]:
    """The files of a split, complete. Raises UserError if there is none, or if one of a numbered series is missing."""
    key = split if split in splits else split_called(split)
    if key is None or key not in splits:
        there = ", ".join(splits) or "none"
        raise UserError(f"{origin}: no split {split!r}\n  splits: {there}; choose one with {origin}:SPLIT")
    require_all_shards(splits[key], origin)
    return list(splits[key])


def chosen_names(names: Sequence[str], readme: str, wanted: str, split: str, origin: str) -> list[str]:
    """The files of one split of a dataset.

    Args:
        names: its text files
        readme: the text of its README.md, or empty
        wanted: `split` or `config/split`, as the user asked; empty for `split`, if the dataset is divided in splits
        split: "train" or "validation"
        origin: the dataset, for messages

    Raises:
        UserError: no such split or configuration, several configurations, or files that are missing.
    """
    if configs := splits_of_readme(readme, names, origin):
        config, _, named = wanted.rpartition("/")
        if not config and len(configs) > 1 and "default" not in configs:
            there = ", ".join(configs)
            raise UserError(f"{origin}: has several configurations: {there}\n  choose one with {origin}:CONFIG/SPLIT")
        if config and config not in configs:
            raise UserError(f"{origin}: no configuration {config!r}\n  there are: {', '.join(configs)}")
        return choose_split(configs[config] if config else next(iter(configs.values())), named or split, origin)
    splits = splits_by_name(names)
    if wanted:
        return choose_split(splits, wanted, origin)
    if len(splits) > 1 and sum(map(len, splits.values())) == len(names):
        return choose_split(splits, split, origin)
    require_all_shards(names, origin)
    return list(names)


def require_all_shards(names: Iterable[str], origin: str) -> None:
    """Raise UserError if one of the files `...-00000-of-00002` is missing."""
    series: dict[tuple[str, int], set[int]] = {}
    for name in names:
        stem, _, suffix = PurePosixPath(name).name.partition(".")
        if match := SHARD.search(stem):
            folder = PurePosixPath(name).parent
            key = f"{folder / stem[: match.start()]}-{{}}-of-{match[2]}.{suffix}", int(match[2])
            series.setdefault(key, set()).add(int(match[1]))
    for (pattern, count), found in series.items():
        if missing := sorted(set(range(count)) - found):
            name = pattern.format(f"{missing[0]:05d}")
            raise UserError(
                f"{origin}: incomplete: {len(missing)} of {count} files are missing, such as {name}"
                "\n  download the dataset again"
            )


def _patterns(data_files: str | Sequence[str | _Files] | Mapping[str, str | list[str]] | None) -> list[tuple[str, str]]:
    """(split, pattern) of the `data_files` of a configuration, which is a pattern, a list, or a table by split."""
    if isinstance(data_files, str):
        return [("train", data_files)]
    if isinstance(data_files, Mapping):
        data_files = [_Files(split=split, path=path) for split, path in data_files.items()]
    files = [entry if isinstance(entry, _Files) else _Files(path=entry) for entry in data_files or ()]
    return [(f.split, path) for f in files for path in ([f.path] if isinstance(f.path, str) else f.path)]


def _regex(pattern: str) -> re.Pattern[str]:
    """A regular expression for a pattern in which `*` does not cross folders, and `**` does."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern.removeprefix("./"))
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(special.get(p) or (p if p.startswith("[") else re.escape(p)) for p in parts))
