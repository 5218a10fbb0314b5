"""Consistency checks of a run: between its ranks, and between a run folder and the processes that resume it.

All ranks must have the same settings, versions and source code, since sums over ranks have no meaning otherwise.
A resumed run must have the settings and plugins it was started with; other versions and another number of processes
are allowed and noted.
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
from ltg_mdlm.host.slots import OPTIONAL_SLOTS, SLOTS

FREE_ON_RESUME = (
    "run.out",
    "logging.",
    "validation.",
    "checkpoint.",
    "training.micro_batch_rows",
    "training.threads",
    "training.activation_checkpointing",
    "training.compile",
    "plugin_versions",
    "provenance",
)
"""Prefixes of the settings that may change when a run is resumed: they do not change the data or masks of a step."""

RESOLVED_AT_START = ("precision", "cpu_kernels")
"""Settings of `training` whose value auto is replaced when a run is started, and kept when it is resumed."""

MAX_SHOWN = 8
"""Differences between two ranks that an error lists."""


def require_same_program(host: Host, ranks: Ranks) -> None:
    """Compare settings, versions and source code over all ranks.  Every rank must call it.

    Raises UserError, on every rank, with the ranks that differ from rank 0 and their differences.
    """
    if ranks.world_size == 1:
        return
    facts_by_rank = ranks.gather_objects(program_facts(host))
    ranks_by_difference: dict[str, list[str]] = {}
    for rank, facts in enumerate(facts_by_rank):
        if text := differences(facts_by_rank[0], facts):
            ranks_by_difference.setdefault(text, []).append(str(rank))
    if ranks_by_difference:
        found = "".join(f"\n  process {', '.join(ranks)}: {text}" for text, ranks in ranks_by_difference.items())
        raise UserError(
            f"the processes of this run do not run the same program as process 0{found}"
            "\n  start all of them with the same arguments, configs and installation"
        )


def program_facts(host: Host) -> dict[str, str]:
    """All settings, versions, and a digest of the source code of the package and of every selected plugin's package."""
    settings = {key: repr(value) for key, value in flatten(host.config.model_dump(mode="json")).items()}
    versions = {
        "version of ltg_mdlm": __version__,
        "version of torch": torch.__version__,
        "version of Python": platform.python_version(),
    }
    modules = {"ltg_mdlm"} | {plugin.entry_point.module.partition(".")[0] for plugin in host.selected.values()}
    return settings | versions | {f"source code of {name}": source_digest(name) for name in sorted(modules)}


def source_digest(module: str) -> str:
    """Short SHA-256 of the Python files of an imported top-level module or package, independent of their location."""
    loaded = sys.modules[module]
    roots = [Path(root) for root in getattr(loaded, "__path__", [])]
    files = ((root, path) for root in roots for path in root.rglob("*.py") if path.is_file())
    named = [(path.relative_to(root).as_posix(), path) for root, path in files]
    if not roots and loaded.__file__ is not None:
        named = [(Path(loaded.__file__).name, Path(loaded.__file__))]
    digest = hashlib.sha256()
    for name, path in sorted(named):
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """`key (other value instead of first value), ...`, at most `MAX_SHOWN` of them; empty if there are none."""
    keys = [key for key in sorted(first.keys() | other.keys()) if first.get(key) != other.get(key)]
    more = f", and {len(keys) - MAX_SHOWN} more" if len(keys) > MAX_SHOWN else ""
    shown = [f"{key} ({other.get(key, 'absent')} instead of {first.get(key, 'absent')})" for key in keys[:MAX_SHOWN]]
    return ", ".join(shown) + more


def differing_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """Dotted keys of the settings that differ although a resumed run must not change them."""
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    keys = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    for name in RESOLVED_AT_START:
        if getattr(new.training, name) == "auto":
            keys = [key for key in keys if key != f"training.{name}"]
    if old.data.words is None or new.data.words is None:  # that of the corpus, or of an older version
        keys = [key for key in keys if key != "data.words"]
    return [key for key in keys if not key.startswith(FREE_ON_RESUME) and key != "name"]


def require_same_distributions(before: Mapping[str, str], now: Mapping[str, str], where: Path) -> None:
    """Compare `distribution version` of the plugins in both mappings, by the plugin's name.  Versions may differ.

    Raises UserError if another distribution now provides a plugin of the same name.
    """
    changed = [
        f"plugin {name!r} was provided by {before[name]}, now by {now[name]}"
        for name in sorted(before.keys() & now.keys())
        if _distribution(before[name]) != _distribution(now[name])
    ]
    _require_unchanged(changed, where, "install the distribution that it was trained with")


def require_same_slots(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Compare the plugin of each slot in two `assembly.provenance`s; checkpoints of old versions list none.

    Raises UserError if another plugin now fills a slot.
    """

    def named(provider: Mapping[str, str] | None) -> str:
        return f"{provider['plugin']!r} ({provider['distribution']} {provider['version']})" if provider else "no plugin"

    old, new = before.get("provenance", {}), now["provenance"]
    listed = [slot for slot in (*SLOTS, "optimizer") if slot in old or (old and slot in OPTIONAL_SLOTS)]
    changed = [
        f"{slot} was filled by {named(old.get(slot))}, now by {named(new.get(slot))}"
        for slot in listed
        if old.get(slot, {}).get("plugin") != new.get(slot, {}).get("plugin")
    ]
    _require_unchanged(changed, where, "install the versions that it was trained with")
    # The state of observers is stored by their number.
    before_O, now_O = ([some[s]["plugin"] for s in sorted(some) if s.startswith("observer")] for some in (old, new))
    if before_O != now_O and sorted(before_O) == sorted(now_O):
        changed = [f"the observers were those of {', '.join(before_O)}, now those of {', '.join(now_O)}"]
        _require_unchanged(changed, where, "select the plugins in the same order")


def require_same_tokenizer(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raises UserError if the checkpoint was trained with another tokenizer; those of old versions do not say."""
    if before.get("tokenizer", now["tokenizer"]) != now["tokenizer"]:
        raise UserError(
            f"{where} was trained with another tokenizer than that of the corpus, so its weights belong to other tokens"
            f"\n  its tokenizer is {before['tokenizer'][:12]}, that of the corpus {now['tokenizer'][:12]}"
            "\n  give the corpus that it was trained on, or choose another folder: --out"
        )


def require_same_text(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raises UserError if the run has read other training text so far; checkpoints of old versions do not say."""
    if before.get("training_text", now["training_text"]) != now["training_text"]:
        raise UserError(
            f"{where} was trained on other text than the corpus has now"
            f"\n  the training split had the fingerprint {before['training_text'][:12]}, now it has"
            f" {now['training_text'][:12]}\n  restore the corpus, or choose another folder: --out"
        )


def differences_of_origin(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> list[str]:
    """Settings and text in which the run of a checkpoint differs from the run that continues from it."""
    notes = []
    if before.get("training_text", now["training_text"]) != now["training_text"]:
        notes.append(f"{where} was trained on other text")
    old, new = (flatten(facts.get("config", {})) for facts in (before, now))
    compared = sorted(
        key
        for key in old.keys() | new.keys()
        # Other keys that only one of them has are those of plugins, or of another version.
        if ((key in old and key in new) or key.startswith(("data.mixture", "data.curriculum")))
        and not key.startswith(FREE_ON_RESUME)
        and key != "name"
    )
    if changed := differences({key: old.get(key) for key in compared}, {key: new.get(key) for key in compared}):
        notes.append(f"{where} was trained with other settings: {changed}")
    return notes


def resume_notes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changes between two `assembly.provenance`s that may change the loss curve, some of them only by rounding."""
    old, new = before.get("versions", {}), now["versions"]
    notes = [f"{name} was {old[name]}, now it is {new[name]}" for name in new if old.get(name, new[name]) != new[name]]
    ranks, ranks_now = before.get("world_size", now["world_size"]), now["world_size"]
    if ranks != ranks_now:
        text = f"the run had {ranks} process(es), now it has {ranks_now}: batches, noise and masks stay the same"
        dropout = now["config"]["model"]["dropout"]
        notes.append(f"{text}, dropout does not (it depends on the process)" if dropout else f"{text} up to rounding")
    sizes, sizes_now = (facts.get("micro_batch_rows") for facts in (before, now))
    if sizes and sizes_now and sizes != sizes_now and ranks == ranks_now:
        shown, shown_now = (", ".join(map(str, rows)) for rows in (sizes, sizes_now))
        text = f"micro-batches had at most {shown} rows, now {shown_now}: batches, noise and masks stay the same"
        dropout = now["config"]["model"]["dropout"]
        notes.append(f"{text}, dropout does not (it depends on the rows)" if dropout else f"{text} up to rounding")
    return notes


def _distribution(origin: str) -> str:
    """Normalised name in `distribution version`."""
    return origin.rpartition(" ")[0].lower().replace("_", "-")


def _require_unchanged(changed: list[str], where: Path, remedy: str) -> None:
    if changed:
        lines = [f"{where} was trained with other plugins", *changed, f"{remedy}, or choose another folder: --out"]
        raise UserError("\n  ".join(lines))
