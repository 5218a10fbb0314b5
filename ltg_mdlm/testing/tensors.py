"""Demands on tensors, and their descriptions in messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ltg_mdlm.testing.violation import Violation


def describe(value: object) -> str:
    """`float32[4, 32] on cpu`, or the type of what is no tensor."""
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value!r}" if value is not None else "None"
    return f"{_expected(value.dtype, tuple(value.shape), value.device)}"


def _expected(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)} on {device.type}"


def require_tensor(
    value: object, where: str, name: str, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    """Raises Violation unless `value` is a tensor of this type and shape on this kind of device."""
    if isinstance(value, Tensor) and describe(value) == _expected(dtype, shape, device):
        return
    raise Violation(where, f"{name} {_expected(dtype, shape, device)}", describe(value))


def require_finite(value: Tensor, where: str, name: str) -> None:
    """Raises Violation if a value is infinite or not a number."""
    wrong = ~torch.isfinite(value)
    if wrong.any():
        raise Violation(where, f"finite {name}", f"{float(value[wrong][0])} at {first_place(wrong)}")


def first_place(wrong: Tensor) -> str:
    """`[3, 7]`: where a boolean tensor is true first."""
    return str([int(i) for i in wrong.nonzero()[0]])


def require_equal(value: Tensor, expected: Tensor, where: str, name: str) -> None:
    """Raises Violation, with the first place that differs, unless two tensors are equal."""
    if value.shape != expected.shape:
        raise Violation(where, f"{name} {describe(expected)}", describe(value))
    wrong = (value != expected) & ~(value.isnan() & expected.isnan())
    if wrong.any():
        place = first_place(wrong)
        raise Violation(where, f"{name} = {expected[wrong][0].item()} at {place}", str(value[wrong][0].item()))


@contextmanager
def unchanged(where: str, *inputs: Any, **tensors: Tensor) -> Iterator[None]:
    """Raises Violation if a tensor changes within this context: those in the inputs' dataclass fields, and others."""
    watched = [*_fields(inputs), *tensors.items()]
    before = {name: tensor.clone() for name, tensor in watched}
    yield
    for name, tensor in watched:
        if not torch.equal(tensor.nan_to_num(), before[name].nan_to_num()):
            raise Violation(where, f"{name} as it was", "other values in it: its arguments belong to the caller")


def _fields(inputs: tuple[Any, ...]) -> Iterator[tuple[str, Tensor]]:
    for value in inputs:
        values = ((f"{type(value).__name__}.{f.name}", getattr(value, f.name)) for f in fields(value))
        yield from ((name, part) for name, part in values if isinstance(part, Tensor))
