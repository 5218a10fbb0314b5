"""Checks of the types and shapes of what components return.

Each check takes `where`, which names the plugin, class and method (`method_of`), and raises UserError such as
`plugin 'x' of x-dist 1.0 (x.py): C.mask_probability returned float32[2, 1], not float[2, 32]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from ltg_mdlm.core.components import Component
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.host.slots import Components

Kind = Literal["float", "int64", "bool"]
"""Element type of a tensor; `float` is any floating-point type."""


def method_of(components: Components, slot: str, component: Component, method: str) -> str:
    """Plugin, class and method, for messages."""
    return f"{components.provenance[slot]}: {type(component).__name__}.{method}"


def require_type(where: str, value: Any, expected: type) -> None:
    """Raises UserError unless the value is an instance of `expected`."""
    if not isinstance(value, expected):
        raise UserError(f"{where} returned {type(value).__name__}, not {expected.__name__}")


def require_tensor(where: str, value: Any, kind: Kind, shape: tuple[int, ...], name: str = "") -> None:
    """Raises UserError unless the value, or the field `name` of the result, is a tensor of this kind and shape."""
    if isinstance(value, Tensor):
        fits = value.is_floating_point() if kind == "float" else value.dtype == getattr(torch, kind)
        if fits and value.shape == shape:
            return
        given = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    else:
        given = type(value).__name__
    raise UserError(f"{where} returned {f'{name} as ' if name else ''}{given}, not {kind}{list(shape)}")


def require_numbers(where: str, value: Any) -> None:
    """Raises UserError unless the value is a mapping to numbers and tensors of one element."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where} returned {type(value).__name__}, not a mapping of names to numbers")
    for name, item in value.items():
        if not (item.numel() == 1 if isinstance(item, Tensor) else isinstance(item, Real)):
            raise UserError(f"{where} returned {name!r} as {type(item).__name__}, not a single number")


def require_tensors(where: str, value: Any) -> None:
    """Raises UserError unless the value is a mapping to tensors."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where} returned {type(value).__name__}, not a mapping of names to tensors")
    for name, item in value.items():
        if not isinstance(item, Tensor):
            raise UserError(f"{where} returned {name!r} as {type(item).__name__}, not a tensor")
