"""Flat dicts of named tensors: what every part of a run saves, and how it is compared and put back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ltg_mdlm.errors import UserError

_SHOWN = 8
_NUMBER = re.compile(r"\.(\d+)(?=\.|\s|$)")
"""A layer's place in the name of a tensor."""


def copy_named(target: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str) -> None:
    """Copy `source` into the tensors of `target`, in place.

    Raises UserError, before anything is copied, if the names or shapes differ; `what` says what was being restored.
    """
    _require_match(target, source, what)
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix/` before their names."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def folded(names: Iterable[str]) -> str:
    """All of the names, those that differ in their first number alone as one: `layers.{0-11}.weight (12)`."""
    groups: dict[str, list[int]] = {}
    for name in names:
        number = _NUMBER.search(name)
        group = groups.setdefault(_NUMBER.sub(".{}", name, count=1), [])
        group += [int(number[1])] if number else []
    return ", ".join(_unfolded(pattern, sorted(numbers)) for pattern, numbers in groups.items())


def _unfolded(pattern: str, numbers: Sequence[int]) -> str:
    if len(numbers) < 2:
        return pattern.replace("{}", "".join(map(str, numbers)), 1)
    is_range = numbers[-1] - numbers[0] + 1 == len(numbers)
    listing = f"{numbers[0]}-{numbers[-1]}" if is_range else ",".join(map(str, numbers))
    return f"{pattern.replace('{}', f'{{{listing}}}', 1)} ({len(numbers)})"


def _require_match(target: Mapping[str, Tensor], source: Mapping[str, Tensor], what: str) -> None:
    shapes = [
        f"{name} {list(source[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in target.items()
        if name in source and source[name].shape != tensor.shape
    ]
    complaints = [
        _listed("missing", target.keys() - source.keys()),
        _listed("not expected", source.keys() - target.keys()),
        _listed("of another shape", shapes),
    ]
    if any(complaints):
        raise UserError(
            "\n  ".join([f"cannot restore {what}: it was made with other settings", *filter(None, complaints)])
        )


def _listed(label: str, names: Iterable[str]) -> str:
    """`label (count): names`, cut where nobody reads on; empty without names."""
    ordered = sorted(names)
    more = f", and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return f"{label} ({len(ordered)}): {', '.join(ordered[:_SHOWN])}{more}" if ordered else ""
