"""The hooks of the host.  A hook only registers: it returns a component, and is called once, at start-up.

A plugin implements the hooks it needs, marked with `ltg_mdlm.api.hookimpl`, with any subset of the arguments.  A slot
hook may return None, which leaves the slot to somebody else (in the end to `uniform_mdlm`).

Find, import, validate and register plugins, and fill the recipe's slots with their components.

Only selected plugins are imported, so that a broken plugin that nobody selected never breaks a command.  Whatever a
selected one does wrong here is an error that names it, its distribution, version and file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ltg_mdlm.core.components import (
    Component,
    MaskingStrategy,
    NoiseSchedule,
    Objective,
    RowMode,
    TimeConditioning,
)
from ltg_mdlm.core.config import Provider

if TYPE_CHECKING:
    pass


SLOTS = ("row_mode", "noise_schedule", "masking", "objective", "time_conditioning")


@dataclass(frozen=True)
class Filled:
    """The component of a slot, and the plugin that provides it."""

    plugin: str
    component: Any


@dataclass(frozen=True)
class Components:
    """The recipe's parts: one component per slot, plus observers."""

    row_mode: RowMode
    noise_schedule: NoiseSchedule
    masking: MaskingStrategy
    objective: Objective
    time_conditioning: TimeConditioning
    observers: tuple[Component, ...]
    provenance: Mapping[str, Provider]
    """Where the component of every slot, and every observer, comes from."""

    @property
    def providers(self) -> dict[str, str]:
        """Name of the plugin behind every slot and observer."""
        return {slot: provider.plugin for slot, provider in self.provenance.items()}

    def named(self) -> list[tuple[str, str, Component]]:
        """(slot, plugin, component) for every distinct component; one object may fill several slots."""
        providers = self.providers
        rows = [(slot, providers[slot], cast(Component, getattr(self, slot))) for slot in SLOTS]
        rows += [(f"observer{i}", providers[f"observer{i}"], c) for i, c in enumerate(self.observers)]
        distinct = {id(component): (slot, plugin, component) for slot, plugin, component in reversed(rows)}
        return list(reversed(distinct.values()))


_SLOT_TYPES: Mapping[str, type] = {
    "row_mode": RowMode,
    "noise_schedule": NoiseSchedule,
    "masking": MaskingStrategy,
    "objective": Objective,
    "time_conditioning": TimeConditioning,
}
