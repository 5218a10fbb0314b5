"""Tiny runs of the real trainer, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

TINY = (
    "data.builtin_words=4000",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "training.max_steps=12",
    "training.seq_len=32",
    "training.global_batch_rows=6",
    "training.precision=fp32",
    "training.threads=1",
    "validation.every=6",
    "validation.rows=12",
    "validation.pairs_per_phenomenon=2",
    "checkpoint.every=4",
    "logging.every=1",
    "logging.wandb=off",
)


def train_command(out: Path, *arguments: str, sets: tuple[str, ...] = (), processes: int = 1) -> list[str]:
    """Command line of a tiny run."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    settings = [part for text in (*TINY, *sets) for part in ("--set", text)]
    return [*launcher, "ltg_mdlm.train", "--out", str(out), *arguments, *settings]


def train(
    out: Path, *arguments: str, sets: tuple[str, ...] = (), processes: int = 1, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run to the end and check the exit code."""
    command = train_command(out, *arguments, sets=sets, processes=processes)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(), check=False)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def environment() -> dict[str, str]:
    """The environment without what a surrounding torchrun or terminal may have set."""
    return {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | {"COLUMNS": "200"}


def rows(out: Path) -> list[dict]:
    """All rows of the run's metrics."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, float]:
    """Training loss by step; fails if a step appears twice."""
    found = [(row["step"], row["loss"]) for row in rows(out) if "loss" in row]
    assert len(found) == len(dict(found)), "a step was logged twice"
    return dict(found)
