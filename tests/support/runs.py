"""Tiny runs of the real trainer, in processes of their own."""

import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.testing.ranks import RankFailed, run_on_ranks

FAULTY = Path(__file__).parent / "faulty"
"""On the import path there, the plugin `faulty` is installed."""

TINY = (
    "data.builtin_words=4000",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "training.max_steps=12",
    "training.seq_len=32",
    "training.global_batch_rows=6",
    "optimizer.name=lamb",
    "optimizer.lr=0.01",
    "training.precision=fp32",
    "training.threads=1",
    "validation.every=6",
    "validation.rows=12",
    "validation.pairs=null",  # scoring them takes a third of such a run; SCORED has them
    "checkpoint.every=4",
    "logging.every=1",
    "logging.wandb=off",
)
SCORED = ("validation.pairs=corpus", "validation.pairs_per_phenomenon=2")
"""Minimal pairs of the built-in corpus are part of validation."""


def train_command(out: Path, *arguments: str, sets: tuple[str, ...] = (), processes: int = 1) -> list[str]:
    """Command line of a tiny run."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    settings = [part for text in (*TINY, *sets) for part in ("--set", text)]
    return [*launcher, "ltg_mdlm.train", "--out", str(out), *arguments, *settings]


def environment() -> dict[str, str]:
    """The environment without what a surrounding torchrun or terminal may have set."""
    return {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | {"COLUMNS": "200"}


def faulty_environment(*faults: dict) -> dict[str, str]:
    """Variables with which a process finds the plugin `faulty`, and what is to go wrong there."""
    paths = os.pathsep.join([str(FAULTY), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": paths, "FAULTS": json.dumps(faults)}


def rows(out: Path) -> list[dict]:
    """All rows of the run's metrics."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, float]:
    """Training loss by step; fails if a step appears twice."""
    found = [(row["step"], row["loss"]) for row in rows(out) if "loss" in row]
    assert len(found) == len(dict(found)), "a step was logged twice"
    return dict(found)


@dataclass(frozen=True)
class Outcome:
    """How a run in forked processes ended, as the first rank saw it."""

    code: int | None
    """Exit code; None where a UserError ended it."""
    output: str
    """What it printed, warnings and the error included."""


def run(
    out: Path,
    *sets: str,
    plugin: str = "uniform_mdlm",
    processes: int = 1,
    faults: tuple[dict, ...] = (),
    resume: str = "auto",
    sets_of_rank: tuple[tuple[str, ...], ...] = (),
) -> list[Outcome]:
    """Train a tiny model in processes that share this one's imports, which spares seconds; an outcome per rank.

    `faults` are those of the plugin `faulty`, which is always selected, beside `plugin`.  Raises RankFailed if a rank
    raises, or dies.
    """
    arguments = (str(out), plugin, (*TINY, *sets), faults, resume, sets_of_rank)
    return run_on_ranks(launch_quietly, processes, *arguments, joined=False, timeout=300)


def killed(out: Path, *sets: str, **options) -> None:
    """Run, expecting that a fault kills a process."""
    import pytest  # not for the forked processes, which import this file

    with pytest.raises(RankFailed, match="died with exit code -9"):
        run(out, *sets, **options)


def launch_quietly(rank, out, plugin, sets, faults, resume, sets_of_rank):
    """What `run` does on each rank."""
    os.environ["FAULTS"] = json.dumps(faults)
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written
    sys.path.insert(0, str(FAULTY))
    from ltg_mdlm.training import launch as launch_module

    launch_module.ending_text = lambda *_: "next:"  # samples and their grammar take a third of such a run
    mine = sets_of_rank[rank] if sets_of_rank else ()
    code, printed = None, io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: printed.write(f"warning: {message}\n")
        try:
            adapt = f"plugins.faulty.adapt={plugin == 'faulty'}"
            code = launch_module.launch(load_settings([], [*sets, *mine, adapt], [plugin], Path(out)), resume)
        except UserError as error:
            printed.write(f"error: {error}\n")
    return Outcome(code, printed.getvalue())


def launch_under_agent(outs: Sequence[Path], faults: tuple[dict, ...], log: Path) -> None:
    """What each process of a torchrun job with the plugin `faulty` does; their messages go to one file."""
    from ltg_mdlm.cli.error_output import report_errors
    from ltg_mdlm.training.launch import launch

    os.environ["FAULTS"] = json.dumps(faults)
    sys.path.insert(0, str(FAULTY))
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    report_errors(lambda: sys.exit(max(launch(load_settings([], TINY, ["faulty"], out)) for out in outs)))


def status(out: Path) -> dict:
    """status.json."""
    return json.loads((out / "status.json").read_text())


def saved_bits(out: Path, step: int) -> dict[str, str]:
    """Hash of every file of a checkpoint: weights, averages, optimiser and plugins' state."""
    about = json.loads((out / "checkpoints" / f"step_{step:07d}" / "state.json").read_text())
    return {name: facts["sha256"] for name, facts in about["files"].items()}
