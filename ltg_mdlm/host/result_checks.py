"""The first results of a plugin's components are looked at: a wrong shape or type is said to be its maker's.

Every method is watched until the first step is done, and then left alone: nothing of this runs in later steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ltg_mdlm.core.batch import Corrupted, Noise
from ltg_mdlm.core.components import Component
from ltg_mdlm.core.config import Provider
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.host.slots import Components

Check = Callable[..., str | None]
"""Of a method's result and arguments: what is wrong with it, or None."""


@contextmanager
def watched(components: Components) -> Iterator[ExitStack]:
    """Check what the components' methods return, until the stack is closed.

    Raises UserError, from within the method called, naming plugin, class and method.
    """
    checks = _checks(components)
    with ExitStack() as stack:
        for slot, provider in components.provenance.items():
            component = _part(components, slot)
            for method, check in {**checks.get(slot, {}), "metrics": _metrics, "state_dict": _state}.items():
                if method not in vars(component):  # an object in two slots is watched once
                    _watch(component, method, check, provider, stack)
        yield stack


def _part(components: Components, slot: str) -> Component:
    if slot.startswith("observer"):
        return components.observers[int(slot.removeprefix("observer"))]
    part = getattr(components, slot)
    assert isinstance(part, Component)
    return part


def _watch(component: Component, method: str, check: Check, provider: Provider, stack: ExitStack) -> None:
    """Put a checking function before a method, in the instance's own namespace, which every component has."""
    original = getattr(component, method)

    def checked(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if (problem := check(result, *args, **kwargs)) is not None:
            raise UserError(f"{provider}: {type(component).__name__}.{method} returned {problem}")
        return result

    # Past a __setattr__ of its own, as frozen dataclasses and torch's modules have.
    object.__setattr__(component, method, checked)
    stack.callback(object.__delattr__, component, method)


def _checks(components: Components) -> dict[str, dict[str, Check]]:
    groups, active = len(components.objective.group_names), components.time_conditioning.active
    return {
        "row_mode": {"causal": _causal},
        "noise_schedule": {"sample": _noise},
        "masking": {"mask_probability": _probability, "corrupt": _corrupted},
        "objective": {
            "denominators": lambda result, *_: _unlike(result, "float", (groups,)),
            "group": lambda result, supervised: _unlike(result, "int64", supervised.label_N.shape),
            "weights": _weights,
            "loss_terms": lambda result, *_: _unlike(result, "float", (groups,)),
        },
        "time_conditioning": {"value": _value if active else lambda result, *_: _unless_none(result)},
    }


def _unlike(value: Any, kind: str, shape: tuple[int, ...], name: str = "") -> str | None:
    """What a value is instead of a tensor of this kind and shape; `float` is any floating-point type."""
    prefix = f"{name} as " if name else ""
    if not isinstance(value, Tensor):
        return f"{prefix}{type(value).__name__}, not {kind}{list(shape)}"
    fits = value.is_floating_point() if kind == "float" else value.dtype == getattr(torch, kind)
    if fits and value.shape == shape:
        return None
    return f"{prefix}{str(value.dtype).removeprefix('torch.')}{list(value.shape)}, not {kind}{list(shape)}"


def _unless_none(value: Any) -> str | None:
    return None if value is None else f"{type(value).__name__}, not None"


def _causal(result: Any, step: Any, *_: Any) -> str | None:
    return None if result is None else _unlike(result, "bool", (step.rows,))


def _noise(result: Any, batch: Any, *_: Any) -> str | None:
    if not isinstance(result, Noise):
        return f"{type(result).__name__}, not Noise"
    found = (_unlike(getattr(result, f.name), "float", batch.row_B.shape, f.name) for f in fields(Noise))
    return next(filter(None, found), None)


def _probability(result: Any, batch: Any, *_: Any) -> str | None:
    return _unlike(result, "float", batch.ids_BT.shape)


_CORRUPTED = {
    "input_BT": "int64",
    "labels_BT": "int64",
    "masked_BT": "bool",
    "realised_rate_B": "float",
    "causal_B": "bool",
    "hazard_BT": "float",
}


def _corrupted(result: Any, batch: Any, *_: Any) -> str | None:
    if not isinstance(result, Corrupted):
        return f"{type(result).__name__}, not Corrupted"
    for name, kind in _CORRUPTED.items():
        shape = batch.ids_BT.shape if name.endswith("_BT") else batch.row_B.shape
        absent = name == "hazard_BT" and result.hazard_BT is None
        if not absent and (problem := _unlike(getattr(result, name), kind, shape, name)):
            return problem
    return None


def _weights(result: Any, supervised: Any, *_: Any) -> str | None:
    if not (isinstance(result, tuple) and len(result) == 2):
        return f"{type(result).__name__}, not a pair (nll_weight_N, z_weight_N or None)"
    shape, (nll, z) = supervised.label_N.shape, result
    return _unlike(nll, "float", shape, "nll_weight_N") or (
        None if z is None else _unlike(z, "float", shape, "z_weight_N")
    )


def _value(result: Any, corrupted: Any, *_: Any) -> str | None:
    return _unlike(result, "float", corrupted.realised_rate_B.shape)


def _metrics(result: Any) -> str | None:
    if not isinstance(result, Mapping):
        return f"{type(result).__name__}, not a mapping of names to numbers"
    odd = [name for name, value in result.items() if not _is_number(value)]
    return f"{odd[0]!r} as {type(result[odd[0]]).__name__}, not a single number" if odd else None


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)


def _state(result: Any) -> str | None:
    if not isinstance(result, Mapping):
        return f"{type(result).__name__}, not a mapping of names to tensors"
    odd = [name for name, value in result.items() if not isinstance(value, Tensor)]
    return f"{odd[0]!r} as {type(result[odd[0]]).__name__}, not a tensor" if odd else None
