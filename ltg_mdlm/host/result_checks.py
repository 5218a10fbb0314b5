"""Checks of the types and shapes of what components return, so that an error of shape names the plugin.

Broadcasting hides some wrong shapes, and others fail far from the method that returned them.  `ResultChecks` looks at
the results of the first step, where the recipe receives them.  A message reads
`plugin 'x' of x-dist 1.0 (x.py): C.sample returned rate_B as float64[2, 1], not float[2]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltg_mdlm.core.batch import Batch, Corrupted, Noise, Step, Supervised, Visibility
from ltg_mdlm.core.components import Component, MaskingStrategy, described
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.row_order import RowTable
from ltg_mdlm.host.slots import Components

Kind = Literal["float", "int64", "int32", "bool", "any"]
"""Element type of a tensor; `float` is any floating-point type."""

CORRUPTED: dict[str, Kind] = {
    "input_BT": "int64",
    "labels_BT": "int64",
    "masked_BT": "bool",
    "realised_rate_B": "float",
    "causal_B": "bool",
    "hazard_BT": "float",
    "carry_BT": "any",
}
"""Element types of the fields of `Corrupted`."""

OPTIONAL = ("hazard_BT", "carry_BT")
"""Fields that may be None."""


class ResultChecks:
    """Checks what the components of a recipe return, until `finish` is called.

    Each method takes a result and what its shape follows from.  Raises UserError that names plugin, class and method.
    """

    def __init__(self, components: Components) -> None:
        self._components, self._finished = components, False

    def finish(self) -> None:
        """Check no further results."""
        self._finished = True

    def _method(self, slot: str, method: str) -> str:
        return method_of(self._components, slot, getattr(self._components, slot), method)

    def causal(self, causal_R: Any, step: Step) -> None:
        """Result of `RowMode.causal`."""
        if not self._finished and causal_R is not None:
            require_tensor(self._method("row_mode", "causal"), causal_R, "bool", (step.rows,))

    def noise(self, noise: Any, batch: Batch) -> None:
        """Result of `NoiseSchedule.sample`."""
        if self._finished:
            return
        where = self._method("noise_schedule", "sample")
        require_type(where, noise, Noise)
        for name in ("t_B", "rate_B", "slope_B"):
            require_tensor(where, getattr(noise, name), "float", batch.row_B.shape, name)
        if (noise.rate_BT is None) != (noise.slope_BT is None):
            raise UserError(f"{where} returned only one of rate_BT and slope_BT; rates per token need both")
        if noise.rate_BT is not None:
            for name in ("rate_BT", "slope_BT"):
                require_tensor(where, getattr(noise, name), "float", batch.ids_BT.shape, name)
            if not self._components.masking.reads_token_rates:
                strategy = self._method("masking", "reads_token_rates")
                raise UserError(f"{where} returned rates per token (rate_BT), which {strategy} = False does not use")
            require_no_conditioning(f"{where} returned rates per token (rate_BT)", self._components)

    def views(self, views: Any, batch: Batch) -> None:
        """Result of `MaskingStrategy.corrupt_views`."""
        if self._finished:
            return
        masking = self._components.masking
        by_views = type(masking).corrupt_views is not MaskingStrategy.corrupt_views
        where = self._method("masking", "corrupt_views" if by_views else "corrupt")
        if not (isinstance(views, Sequence) and views):
            raise UserError(f"{where} returned {type(views).__name__}, not a list of at least one Corrupted")
        for corrupted in views:
            require_type(where, corrupted, Corrupted)
            for name, kind in CORRUPTED.items():
                shape = batch.ids_BT.shape if name.endswith("_BT") else batch.row_B.shape
                if getattr(corrupted, name) is not None or name not in OPTIONAL:
                    require_tensor(where, getattr(corrupted, name), kind, shape, name)
            self._columns(where, corrupted, batch)

    def _columns(self, where: str, corrupted: Corrupted, batch: Batch) -> None:
        """Copies of the row and visibility of a view."""
        (rows, length), declared = batch.ids_BT.shape, self._components.masking.context_copies
        context_BS, visibility, columns = corrupted.context_BS, corrupted.visibility, length
        if context_BS is not None:
            copies = declared or (context_BS.numel() // (rows * length) if isinstance(context_BS, Tensor) else 0)
            expected = (rows, max(copies, 1) * length)
            if not isinstance(context_BS, Tensor) or context_BS.dtype != torch.int64 or context_BS.shape != expected:
                number = f"context_copies = {declared}" if declared else "one or more"
                raise UserError(
                    f"{where} returned context_BS as {described(context_BS)}, not int64{list(expected)}: it holds whole"
                    f" copies of the rows of {length} tokens, {number} of each"
                )
            require_no_conditioning(f"{where} returned copies of the row (context_BS)", self._components)
            if visibility is None:
                raise UserError(
                    f"{where} returned context_BS without a visibility: every token would see itself in the copies"
                )
            columns += context_BS.shape[1]
        if visibility is not None:
            if not isinstance(visibility, Visibility):
                raise UserError(f"{where} returned visibility as {described(visibility)}, not Visibility")
            for name in ("group_BX", "order_BX", "limit_BX"):
                require_tensor(where, getattr(visibility, name), "int32", (rows, columns), f"visibility.{name}")

    def conditioning(self, conditioning_B: Any, batch: Batch) -> None:
        """Result of `TimeConditioning.value`."""
        if self._finished:
            return
        where = self._method("time_conditioning", "value")
        if self._components.time_conditioning.active:
            require_tensor(where, conditioning_B, "float", batch.row_B.shape)
        elif conditioning_B is not None:
            raise UserError(f"{where} returned {type(conditioning_B).__name__}, not None")

    def groups(self, method: str, value_K: Any) -> None:
        """Result of the objective's `denominators` or `loss_terms`."""
        if not self._finished:
            groups = (len(self._components.objective.group_names),)
            require_tensor(self._method("objective", method), value_K, "float", groups)

    def weights(self, group_N: Any, weights: Any, supervised: Supervised) -> None:
        """Results of the objective's `group` and `weights`."""
        if self._finished:
            return
        shape = supervised.label_N.shape
        require_tensor(self._method("objective", "group"), group_N, "int64", shape)
        where = self._method("objective", "weights")
        if not (isinstance(weights, tuple) and len(weights) == 2):
            raise UserError(f"{where} returned {type(weights).__name__}, not a pair (nll_weight_N, z_weight_N or None)")
        require_tensor(where, weights[0], "float", shape, "nll_weight_N")
        if weights[1] is not None:
            require_tensor(where, weights[1], "float", shape, "z_weight_N")

    def own_loss(self, slot: str, component: Component, own_K: Any) -> None:
        """Result of `Component.own_loss`."""
        has_parts = any(name.startswith(f"{slot}/") for name in self._components.modules)
        if self._finished or (own_K is None and not has_parts):
            return
        where = method_of(self._components, slot, component, "own_loss")
        groups = len(self._components.objective.group_names)
        if isinstance(own_K, Tensor) and own_K.shape == (1,):  # one sum for all groups
            groups = 1
        require_tensor(where, own_K, "float", (groups,))
        if not own_K.requires_grad:
            raise UserError(f"{where} returned a tensor without gradient, so the component's modules would not learn")


def require_compatible(components: Components) -> None:
    """Raises UserError for a block length or copies of the row that do not fit the other components."""
    masking = components.masking
    for name in ("block_length", "context_copies"):
        value = getattr(masking, name)
        if type(value) is not int or value < 0:
            where = method_of(components, "masking", masking, name)
            raise UserError(f"{where} is {value!r}, not 0 or a positive whole number")
    if masking.context_copies:
        where = method_of(components, "masking", masking, "context_copies")
        require_no_conditioning(f"{where} is {masking.context_copies}: copies of the row have no mask rate", components)
    if masking.block_length and masking.predicts == "next":
        where = method_of(components, "masking", masking, "block_length")
        raise UserError(
            f"{where} is {masking.block_length}, and predicts is 'next': a column that does not see a block would"
            " predict its first token\n  set predicts = 'same'"
        )


def require_no_conditioning(problem: str, components: Components) -> None:
    """Raises UserError, with what the time conditioning cannot do, if it is active."""
    if components.time_conditioning.active:
        raise UserError(
            f"{problem}, but the time conditioning of {components.provenance['time_conditioning']} needs one value per"
            " row\n  choose one that is not active, such as that of uniform_mdlm with --set"
            " slots.time_conditioning=uniform_mdlm --set plugins.uniform_mdlm.conditioning=none"
        )


def checked_row_order(
    components: Components,
) -> Callable[[int, int, RowTable, tuple[int, int, int]], NDArray[np.int64]] | None:
    """`RowOrder.epoch` of the run with a check of every result; None if the slot is empty.

    It raises UserError that names the plugin for a wrong type or shape, and for rows that do not exist.
    """
    if components.row_order is None:
        return None
    row_order = components.row_order
    where = f"{method_of(components, 'row_order', row_order, 'epoch')} (hook ltg_mdlm_row_order)"

    def choose(stage: int, number: int, rows: RowTable, key: tuple[int, int, int]) -> NDArray[np.int64]:
        row_R: Any = row_order.epoch(stage, number, rows, key)
        epoch = f"for epoch {number} of stage {stage}"
        if not (isinstance(row_R, np.ndarray) and row_R.dtype == np.int64 and row_R.shape == (rows.count,)):
            found = f"{row_R.dtype}{list(row_R.shape)}" if isinstance(row_R, np.ndarray) else described(row_R)
            raise UserError(f"{where} returned {found} {epoch}, not a NumPy array int64[{rows.count}] of rows")
        if len(wrong := np.flatnonzero((row_R < 0) | (row_R >= rows.count))):
            raise UserError(
                f"{where} returned row {row_R[wrong[0]]} at place {wrong[0]} {epoch}; the rows of the epoch are 0 to"
                f" {rows.count - 1}"
            )
        return row_R

    return choose


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
        is_float = value.is_floating_point()
        fits = kind == "any" or (is_float if kind == "float" else value.dtype == getattr(torch, kind))
        if fits and value.shape == shape:
            return
    prefix = f"{name} as " if name else ""
    raise UserError(f"{where} returned {prefix}{described(value)}, not {kind}{list(shape)}")


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
