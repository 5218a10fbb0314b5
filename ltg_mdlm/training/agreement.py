"""The processes of a run must run the same program with the same settings, or what they add up means nothing.

What may have changed between the processes of one run: other versions are noted, other plugins are refused.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ltg_mdlm import __version__
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import flatten
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.host.slots import SLOTS

_SHOWN = 8


Facts = Mapping[str, str]


def require_same_program(host: Host, ranks: Ranks) -> None:
    """Compare settings, versions and source code over all ranks, which must all call it.

    Raises UserError, on every rank, naming the ranks that differ from the first and what they differ in.
    """
    if ranks.world_size == 1:
        return
    facts_by_rank = ranks.gather_objects(program_facts(host))
    groups: dict[str, list[str]] = {}
    for rank, facts in enumerate(facts_by_rank):
        if text := differences(facts_by_rank[0], facts):
            groups.setdefault(text, []).append(str(rank))
    if groups:
        found = "".join(f"\n  process {', '.join(ranks)}: {text}" for text, ranks in groups.items())
        raise UserError(
            f"the processes of this run do not run the same program as process 0{found}"
            "\n  start all of them with the same arguments, configs and installation"
        )


def program_facts(host: Host) -> Facts:
    """What decides about a run: every setting, and version and digest of the source of everything that trains."""
    settings = {key: repr(value) for key, value in flatten(host.config.model_dump(mode="json")).items()}
    versions = {"version of ltg_mdlm": __version__, "version of torch": torch.__version__}
    modules = {"ltg_mdlm"} | {plugin.entry_point.module.partition(".")[0] for plugin in host.selected.values()}
    sources = {f"source code of {name}": source_digest(name) for name in sorted(modules)}
    return settings | versions | {"version of Python": platform.python_version()} | sources


def source_digest(module: str) -> str:
    """Short hash of the Python files of an imported top-level module or package, wherever they are installed."""
    loaded = sys.modules[module]
    roots = [Path(root) for root in getattr(loaded, "__path__", [])]
    named = [(path.relative_to(root).as_posix(), path) for root in roots for path in root.rglob("*.py")]
    if not roots and loaded.__file__ is not None:
        named = [(Path(loaded.__file__).name, Path(loaded.__file__))]
    digest = hashlib.sha256()
    for name, path in sorted(named):
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def differences(first: Facts, other: Facts) -> str:
    """`key (its value instead of the first's), ...`, cut where nobody reads on; empty if there are none."""
    keys = [key for key in sorted(first.keys() | other.keys()) if first.get(key) != other.get(key)]
    more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    shown = [f"{key} ({other.get(key, 'absent')} instead of {first.get(key, 'absent')})" for key in keys[:_SHOWN]]
    return ", ".join(shown) + more


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


FREE_ON_RESUME = (
    "run.",
    "logging.",
    "validation.",
    "checkpoint.",
    "training.micro_batch_rows",
    "training.threads",
    "training.activation_checkpointing",
    "plugin_versions",
    "provenance",
)
"""Settings that may change when a run goes on: none of them changes what a step trains on."""


def differing_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """Dotted keys whose values differ and that a resumed run must not change."""
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if new.training.precision == "auto":  # resolved when the run was started
        keys = [key for key in keys if key != "training.precision"]
    return [key for key in keys if not key.startswith(FREE_ON_RESUME) and key != "name"]
