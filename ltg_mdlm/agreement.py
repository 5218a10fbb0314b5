"""The processes of a run must run the same program with the same settings, or what they add up means nothing."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from ltg_mdlm import __version__
from ltg_mdlm.config import flatten
from ltg_mdlm.distributed import Ranks
from ltg_mdlm.errors import UserError
from ltg_mdlm.host import Host

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
