"""The slots of the training recipe, and the components that fill them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from ltg_mdlm.core.components import Component, MaskingStrategy, NoiseSchedule, Objective, RowMode, TimeConditioning
from ltg_mdlm.core.config import Provider
from ltg_mdlm.core.row_order import RowOrder

SLOT_TYPES: Mapping[str, type] = {
    "row_mode": RowMode,
    "noise_schedule": NoiseSchedule,
    "masking": MaskingStrategy,
    "objective": Objective,
    "time_conditioning": TimeConditioning,
    "row_order": RowOrder,
}
"""Base class of the component of each slot."""

SLOTS = tuple(SLOT_TYPES)

OPTIONAL_SLOTS = ("row_order",)
"""Slots that stay empty if no selected plugin fills them."""


@dataclass(frozen=True)
class Filled:
    """The component of a slot, and the name of the plugin that provides it."""

    plugin: str
    component: Any


@dataclass(frozen=True)
class Components:
    """The components of a run: one per slot, plus observers."""

    row_mode: RowMode
    noise_schedule: NoiseSchedule
    masking: MaskingStrategy
    objective: Objective
    time_conditioning: TimeConditioning
    observers: tuple[Component, ...]
    provenance: Mapping[str, Provider]
    """Origin of the component of every filled slot, and of every observer (`observer0`, `observer1`, ...)."""
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    """Learned parts of the components, by `<slot>/<name>`; see `Component.modules`."""
    row_order: RowOrder | None = None
    """None: every epoch has every row once, in random order."""

    @property
    def providers(self) -> dict[str, str]:
        """Name of the plugin behind every filled slot and every observer."""
        return {slot: provider.plugin for slot, provider in self.provenance.items()}

    def has_state(self, slot: str) -> bool:
        """Whether the component of a filled slot has state or learned parts."""
        component = getattr(self, slot)
        first = next(name for name, _, other in self.named() if other is component)
        return bool(component.state_dict()) or any(part.startswith(f"{first}/") for part in self.modules)

    def named(self) -> list[tuple[str, str, Component]]:
        """(slot, plugin, component) of every distinct component; an object in several slots is listed once."""
        rows = [(slot, cast(Component, getattr(self, slot))) for slot in SLOTS if getattr(self, slot) is not None]
        rows += [(f"observer{i}", component) for i, component in enumerate(self.observers)]
        first_slot = {id(component): slot for slot, component in reversed(rows)}
        return [
            (slot, self.provenance[slot].plugin, component)
            for slot, component in rows
            if first_slot[id(component)] == slot
        ]
