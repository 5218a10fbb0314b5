"""The slots of the training recipe, and the components that fill them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from ltg_mdlm.core.components import Component, MaskingStrategy, NoiseSchedule, Objective, RowMode, TimeConditioning
from ltg_mdlm.core.config import Provider

SLOT_TYPES: Mapping[str, type] = {
    "row_mode": RowMode,
    "noise_schedule": NoiseSchedule,
    "masking": MaskingStrategy,
    "objective": Objective,
    "time_conditioning": TimeConditioning,
}
"""Base class of the component of each slot."""

SLOTS = tuple(SLOT_TYPES)


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
    """Origin of the component of every slot, and of every observer (`observer0`, `observer1`, ...)."""
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    """Learned parts of the components, by `<slot>/<name>`; see `Component.modules`."""

    @property
    def providers(self) -> dict[str, str]:
        """Name of the plugin behind every slot and observer."""
        return {slot: provider.plugin for slot, provider in self.provenance.items()}

    def named(self) -> list[tuple[str, str, Component]]:
        """(slot, plugin, component) of every distinct component; an object in several slots is listed once."""
        rows = [(slot, cast(Component, getattr(self, slot))) for slot in SLOTS]
        rows += [(f"observer{i}", component) for i, component in enumerate(self.observers)]
        first_slot = {id(component): slot for slot, component in reversed(rows)}
        return [
            (slot, self.provenance[slot].plugin, component)
            for slot, component in rows
            if first_slot[id(component)] == slot
        ]
