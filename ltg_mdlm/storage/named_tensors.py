"""Flat dicts of named tensors, which is how every part of a run saves its state: restore them, and list their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ltg_mdlm.core.errors import UserError

_SHOWN = 8
"""Names that an error message lists at most, per kind of mismatch."""

_NUMBER = re.compile(r"\.(\d+)(?=\.|\s|$)")
"""The number of a layer in the name of a tensor."""


def copy_named(target: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str) -> None:
    """Copy `source` into the tensors of `target`, in place.

    Raises UserError, before anything is copied, if names or shapes differ; `what` names the object to restore.
    """
    differences = {
        "missing": target.keys() - source.keys(),
        "not expected": source.keys() - target.keys(),
        "of another shape": {
            f"{name} {list(source[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in target.items()
            if name in source and source[name].shape != tensor.shape
        },
    }
    if any(differences.values()):
        lines = [f"cannot restore {what}: it was made with other settings"]
        for label, names in differences.items():
            if names:
                more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"{label} ({len(names)}): {', '.join(sorted(names)[:_SHOWN])}{more}")
        raise UserError("\n  ".join(lines))
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def folded(names: Iterable[str]) -> str:
    """List names, with one entry for all that differ only in their first number: `layers.{0-11}.weight (12)`."""
    groups: dict[str, list[int]] = {}
    for name in names:
        number = _NUMBER.search(name)
        group = groups.setdefault(_NUMBER.sub(".{}", name, count=1), [])
        group += [int(number[1])] if number else []
    entries = []
    for pattern, group in groups.items():
        numbers = sorted(group)
        if len(numbers) < 2:
            entries.append(pattern.replace("{}", "".join(map(str, numbers)), 1))
            continue
        is_range = numbers[-1] - numbers[0] + 1 == len(numbers)
        listing = f"{numbers[0]}-{numbers[-1]}" if is_range else ",".join(map(str, numbers))
        entries.append(f"{pattern.replace('{}', f'{{{listing}}}', 1)} ({len(numbers)})")
    return ", ".join(entries)
