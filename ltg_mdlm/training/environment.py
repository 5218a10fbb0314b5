"""What environment.json says about a start of a run: where it runs, with what, and what was chosen there."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import ltg_mdlm
from ltg_mdlm import __version__
from ltg_mdlm.core.machine import environment_of
from ltg_mdlm.storage.run_folder import RunFolder, run_of_checkpoint
from ltg_mdlm.training.assembly import Run
from ltg_mdlm.training.attention_choice import AttentionChoice


def start_facts(run: Run, attention: AttentionChoice, step: int) -> dict[str, Any]:
    """The facts of a start at this step, as plain values for JSON; all ranks must call it."""
    ranks, config, corpus = run.ranks, run.config, run.corpus
    machines: list[dict[str, Any]] = []
    for found in ranks.gather_objects(environment_of(ranks.device)):
        same = next((known for known in machines if found.items() <= known.items()), None)
        if same is None:
            machines.append(found | {"processes": 1})
        else:
            same["processes"] += 1
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    commit = checkout_commit() if ranks.is_main else None
    versions = {"ltg_mdlm": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "command": shlex.join(sys.orig_argv),
        **({"git": commit} if commit else {}),
        "device": ranks.device.type,
        "processes": ranks.world_size,
        "machines": machines,
        "versions": versions | {"triton": triton} | config.plugin_versions,
        "corpus": {
            "fingerprint": corpus.description.get("fingerprint"),
            "words": corpus.train.num_words,
            "tokens": corpus.train.num_tokens,
            "documents": corpus.train.num_documents,
        },
        "parameters": run.parameters,
        "precision": "bf16" if run.loss.bf16 else "fp32",
        "cpu_kernels": config.training.cpu_kernels,
        "attention": {
            "kernel": attention.kernel,
            "milliseconds": attention.milliseconds,
            "reason": attention.reason,
        },
        "compile": {"enabled": run.loss.compiled},
    }


def checkout_commit() -> dict[str, Any] | None:
    """Commit of the git checkout that runs, and whether its program differs from it; None if it is not a checkout."""
    root = Path(ltg_mdlm.__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", "ltg_mdlm", "plugins", "configs", "pyproject.toml")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):  # git is missing, or does not trust the owner of the folder
        return None


def previous_start(folder: RunFolder, checkpoint: Path | None, device: torch.device) -> Mapping[str, Any]:
    """The facts of the run's last start on a device of this type; empty if there is none.

    They are those of the folder, or else of the folder of `checkpoint`, if the run is to resume from it.
    """
    starts = folder.read_environment()
    if not starts and checkpoint is not None:
        starts = run_of_checkpoint(checkpoint).read_environment()
    return next((start for start in reversed(starts) if start.get("device") == device.type), {})
