"""What may have changed between the processes of one run: other versions are noted, other plugins are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltg_mdlm.errors import UserError
from ltg_mdlm.hookspecs import SLOTS


def resume_notes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed since a checkpoint was written and may change the curve, if only in the last bits."""
    old, new = before.get("versions", {}), now["versions"]
    notes = [f"{name} was {old[name]}, now it is {new[name]}" for name in new if old.get(name, new[name]) != new[name]]
    ranks, ranks_now = before.get("world_size", now["world_size"]), now["world_size"]
    if ranks != ranks_now:
        text = f"{ranks} process(es) trained until now, {ranks_now} go on: batches, noise and masks stay the same"
        dropout = now["config"]["model"]["dropout"]
        notes.append(f"{text}, dropout does not (each process draws its own)" if dropout else f"{text} up to rounding")
    return notes


def require_same_distributions(before: Mapping[str, str], now: Mapping[str, str], where: Path) -> None:
    """Compare the plugins' "distribution version" by name.

    Raises UserError if another distribution now provides a plugin of the same name.
    """
    changed = [
        f"plugin {name!r} was provided by {before[name]}, now by {now[name]}"
        for name in sorted(before.keys() & now.keys())
        if _distribution(before[name]) != _distribution(now[name])
    ]
    if changed:
        raise _other_plugins(where, changed, "install the distribution that it was trained with")


def require_same_slots(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Compare what checkpoints tell of the plugins behind the slots; those of older versions tell nothing.

    Raises UserError if a slot is filled by another plugin.
    """
    old, new = before.get("provenance", {}), now["provenance"]
    changed = [
        f"{slot} was filled by {_named(old[slot])}, now by {_named(new[slot])}"
        for slot in SLOTS
        if slot in old and old[slot]["plugin"] != new[slot]["plugin"]
    ]
    if changed:
        raise _other_plugins(where, changed, "install the versions that it was trained with")


def _distribution(origin: str) -> str:
    return origin.rpartition(" ")[0].lower().replace("_", "-")


def _named(provider: Mapping[str, str]) -> str:
    return f"{provider['plugin']!r} ({provider['distribution']} {provider['version']})"


def _other_plugins(where: Path, changed: list[str], remedy: str) -> UserError:
    return UserError(
        "\n  ".join([f"{where} was trained with other plugins", *changed, f"{remedy}, or choose another folder: --out"])
    )
