"""What faults do to a training: random kills, a table of faults, and what a checkpoint costs.

    python benchmarks/faults.py kills --kills 20       # one training, killed at random moments, against one that is not
    python benchmarks/faults.py table                  # one line per fault: what happened, what was lost
    python benchmarks/faults.py flips                  # bits of a checkpoint, flipped: noticed or harmless
    python benchmarks/faults.py cost --config freq_cosine

Runs are tiny, real, and in processes of their own; they leave nothing behind.  `cost` builds the model of a config and
saves it twice.  As root, `table` fills a small disk (tmpfs); otherwise it limits the size of files instead.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import load_settings
from ltg_mdlm.host.run_context import model_config
from ltg_mdlm.model.transformer import TimeEmbedding, Transformer
from ltg_mdlm.storage.checkpoint import (
    STATE_FILE,
    Checkpoints,
    TrainingState,
    newest_checkpoint,
    read_about,
    run_settings,
)
from ltg_mdlm.storage.run_folder import RunFolder
from ltg_mdlm.training.ema import EMA
from ltg_mdlm.training.optimizers import build_optimizer
from ltg_mdlm.training.parameter_groups import parameter_groups

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.runs import (  # type: ignore[import-not-found]
    FAULTY,
    TINY,
    environment,
    killed,
    launch_quietly,
    losses,
    rows,
    run,
    saved_bits,
    status,
    train_command,
)

STEPS = 12
VOCABULARY = 16384
"""The published one."""
LOST_STEPS = "steps since the checkpoint that is used, trained again"
Fault = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    fault: str
    happened: str
    lost: str
    same: bool | None
    """Whether all ended as in the undisturbed run; None where it cannot."""

    def to_markdown(self) -> str:
        same = {True: "yes", False: "NO", None: "no: the update is missing"}[self.same]
        return f"| {self.fault} | {self.happened} | {self.lost} | {same} |"


class Bench:
    """A scratch folder, and the undisturbed runs that others are compared with."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._undisturbed: dict[tuple[Any, ...], Path] = {}

    def undisturbed(self, *sets: str, processes: int = 1) -> Path:
        key = (sets, processes)
        if key not in self._undisturbed:
            self._undisturbed[key] = self.scratch / f"undisturbed-{len(self._undisturbed)}"
            run(self._undisturbed[key], *sets, plugin="faulty", processes=processes)
        return self._undisturbed[key]

    def is_same(self, out: Path, *sets: str, processes: int = 1, steps: int = STEPS) -> bool:
        """Whether losses and the last checkpoint's bits are those of the undisturbed run."""
        expected = self.undisturbed(*sets, processes=processes)
        return bool(losses(out) == losses(expected) and saved_bits(out, steps) == saved_bits(expected, steps))

    def new(self, name: str) -> Path:
        return self.scratch / name


def kills(bench: Bench, count: int) -> None:
    """Kill one training again and again, at random moments, and compare."""
    sets = (
        "training.max_steps=120",
        "model.dropout=0.1",
        "checkpoint.every=3",
        "validation.every=40",
        "logging.every=1",
    )
    out, chance = bench.new("killed"), random.Random()
    done, found = 0, []
    while done < count:
        process = begin(out, *sets)
        target = logged(out) + chance.randint(1, 5)
        while logged(out) < target and process.is_alive():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        done += 1
        found.append(newest_step(out))
    print(f"{done} kills; newest complete checkpoint after each: {found}")
    run(out, *sets, plugin="faulty")
    expected = bench.undisturbed(*sets)
    steps = [row["step"] for row in rows(out) if "loss" in row]
    print(f"steps in metrics.jsonl: {len(steps)}, each once and in order: {steps == list(range(1, 121))}")
    print(f"losses bitwise equal to the undisturbed run: {losses(out) == losses(expected)}")
    print(f"weights, averages, optimiser, plugin state bitwise equal: {bench.is_same(out, *sets, steps=120)}")


def begin(out: Path, *sets: str) -> multiprocessing.process.BaseProcess:
    """Start a run in a process that shares this one's imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ltg_mdlm.testing.ranks", "torch._dynamo", "ltg_mdlm.train"])
    process = context.Process(target=launch_quietly, args=(0, str(out), "faulty", (*TINY, *sets), (), "auto", ()))
    process.start()
    return process


def logged(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def newest_step(out: Path) -> int:
    newest = newest_checkpoint(out / "checkpoints")
    return int(newest.name.removeprefix("step_")) if newest else 0


def table(bench: Bench) -> None:
    """Every fault once."""
    print("| fault | what happened | what was lost | bit-identical to an undisturbed run |")
    print("|---|---|---|---|")
    for find in (one_rank_killed, all_killed, *signals(), disk_full, *damages(), not_a_number, two_trainers):
        print(find(bench).to_markdown(), flush=True)


def one_rank_killed(bench: Bench) -> Finding:
    """Under torchrun, which ends the others."""
    out, mark = bench.new("one-of-two"), bench.new("mark")
    faults = [{"at": "step 7", "do": "SIGKILL", "rank": 1, "once": str(mark)}]
    paths = os.pathsep.join([str(FAULTY), os.environ.get("PYTHONPATH", "")])
    settings = environment() | {"FAULTS": json.dumps(faults), "PYTHONPATH": paths}
    command = train_command(out, "--plugin", "faulty", processes=2)
    subprocess.run(command, capture_output=True, env=settings, check=False)
    seconds, said = time.time() - mark.stat().st_mtime, status(out)
    went_on = beginning(run(out, plugin="faulty", processes=2)[0].output)
    happened = f"all have ended {seconds:.1f} s later, status {said['status']!r} at step {said['step']}; {went_on}"
    return Finding("SIGKILL of one of 2 ranks in step 7", happened, LOST_STEPS, bench.is_same(out, processes=2))


def all_killed(bench: Bench) -> Finding:
    out = bench.new("all")
    faults = tuple({"at": "step 7", "do": "SIGKILL", "rank": rank} for rank in (0, 1))
    killed(out, plugin="faulty", processes=2, faults=faults)
    said = status(out)
    went_on = beginning(run(out, plugin="faulty", processes=2)[0].output)
    happened = f"status.json still says {said['status']!r}; {went_on}"
    return Finding("SIGKILL of all ranks in step 7", happened, LOST_STEPS, bench.is_same(out, processes=2))


def beginning(output: str) -> str:
    """Where a run says that it begins."""
    return next((line for line in output.splitlines() if line.startswith("resuming from")), "begins again")


def signals() -> Iterator[Callable[[Bench], Finding]]:
    for names in ("SIGTERM", "SIGUSR1", "SIGUSR1 SIGTERM SIGTERM"):

        def find(bench: Bench, names: str = names) -> Finding:
            out = bench.new(names.replace(" ", "-"))
            outcome = run(out, plugin="faulty", faults=({"at": "step 5", "do": names},))[0]
            said = status(out)
            run(out, plugin="faulty")
            happened = f"exit code {outcome.code}, status {said['status']!r} at step {said['step']} ({said['reason']})"
            return Finding(f"{names} in step 5", happened, "nothing", bench.is_same(out))

        yield find


def disk_full(bench: Bench) -> Finding:
    out = bench.new("disk")
    with small_disk(out) as is_disk:
        faults: tuple[Fault, ...] = () if is_disk else ({"at": "step 5", "do": "small files"},)
        outcome = run(out, plugin="faulty", faults=faults)[0]
        message = next((line for line in outcome.output.splitlines() if line.startswith("error: cannot write")), "?")
        reason = message.partition("step_")[2]
        happened = f"error and exit code 2: step_{reason}; newest complete: step {newest_step(out)}"
        kept = bench.new("disk-with-room")
        shutil.copytree(out, kept)
    run(kept, plugin="faulty")
    return Finding("disk full during a save", happened, LOST_STEPS, bench.is_same(kept))


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk with room for one checkpoint and half of another; False where it may not be mounted."""
    folder.mkdir()
    size = 3 * checkpoint_bytes() // 2 + (17 << 20)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def checkpoint_bytes() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        run(out, "training.max_steps=1", "validation.every=100", plugin="faulty")
        return sum(path.stat().st_size for path in (out / "checkpoints" / "step_0000001").iterdir())


def damages() -> Iterator[Callable[[Bench], Finding]]:
    def truncate(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-1000])

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    for name, spoil in (("truncated", truncate), ("bit-flipped", flip), ("half-written (a file missing)", Path.unlink)):

        def find(bench: Bench, name: str = name, spoil: Callable[[Path], None] = spoil) -> Finding:
            out = bench.new(name.partition(" ")[0])
            run(out, plugin="faulty", faults=({"at": "step 8", "do": "SIGTERM"},))
            newest = newest_checkpoint(out / "checkpoints")
            assert newest is not None
            spoil(newest / "optimizer.safetensors")
            output = run(out, plugin="faulty")[0].output
            warning = next(line for line in output.splitlines() if "is skipped" in line)
            happened = f"{warning.partition('checkpoints/')[2]}; {beginning(output)}"
            return Finding(f"{name} newest checkpoint", happened, LOST_STEPS, bench.is_same(out))

        yield find


def not_a_number(bench: Bench) -> Finding:
    out = bench.new("nan")
    outcome = run(out, plugin="faulty", faults=({"at": "loss 5", "do": "nan"},))[0]
    events = [row for row in rows(out) if "event" in row]
    finite = [step for step, loss in losses(out).items() if loss is not None]
    happened = f"exit code {outcome.code}; {len(finite)} of {STEPS} losses finite; refused: {json.dumps(events)}"
    return Finding("NaN in the loss of step 5", happened, "that update", None)


def two_trainers(bench: Bench) -> Finding:
    out = bench.new("two-trainers")
    with RunFolder(out).claim():
        output = run(out, plugin="faulty")[0].output
    message = next(line for line in output.splitlines() if line.startswith("error:"))
    happened = f"the second ends with exit code 2: {message.partition(': ')[2].partition(': ')[2].partition(' (')[0]}"
    run(out, plugin="faulty")
    return Finding("two trainers in one folder", happened, "nothing", bench.is_same(out))


def flips(bench: Bench, most: int) -> None:
    """Flip bits of every file of a small checkpoint, of `latest` and of config.yaml, one at a time.

    Every bit of files of text, and `most` random bits of files of tensors (0: every bit).
    """
    out = bench.new("flipped")
    sizes = ("model.hidden_size=8", "model.intermediate_size=8", "model.num_hidden_layers=1")
    run(out, *sets_of_flips(), *sizes, plugin="uniform_mdlm")
    checkpoints = out / "checkpoints"
    newest = newest_checkpoint(checkpoints)
    assert newest is not None
    config = run_settings(RunFolder(out))
    about = read_about(newest)

    def skipped() -> bool:
        return newest_checkpoint(checkpoints) != newest

    def other_content() -> bool:
        return read_about(newest) != about

    def other_settings() -> bool:
        return run_settings(RunFolder(out)) != config

    print("| file | flips | noticed | same content | wrong |")
    print("|---|---|---|---|---|")
    files = [(file, other_content if file.name == STATE_FILE else skipped) for file in sorted(newest.iterdir())]
    for file, differs in [*files, (checkpoints / "latest", skipped), (out / "config.yaml", other_settings)]:
        content = bytearray(file.read_bytes())
        noticed = wrong = 0
        places: Sequence[int] = range(8 * len(content))
        if most and file.suffix == ".safetensors" and len(places) > most:
            places = random.Random(0).sample(places, most)
        for place in places:
            position, bit = divmod(place, 8)
            content[position] ^= 1 << bit
            file.write_bytes(content)
            content[position] ^= 1 << bit
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    different = differs()
                except UserError:
                    noticed += 1
                else:
                    noticed += bool(said)
                    wrong += different and not said
        file.write_bytes(content)
        tried = len(places)
        print(f"| {file.name} | {tried:,} | {noticed:,} | {tried - noticed - wrong:,} | {wrong:,} |", flush=True)


def sets_of_flips() -> tuple[str, ...]:
    """Two checkpoints, so that there is an older one."""
    return ("training.max_steps=4", "checkpoint.every=2", "data.builtin_words=1000", "validation.rows=1")


def cost(scratch: Path, name: str) -> None:
    """Time that a step waits for a save, time until it is on disk, and size, for the model of a config."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    state = state_of(load_settings([name]).config, device)
    print(f"{sum(t.numel() for t in state.model.values()):,} parameters on {device}")
    checkpoints = Checkpoints(scratch / "checkpoints", every=1, keep=1)
    checkpoints.reserve(state)
    for _ in range(3):
        begun = time.perf_counter()
        checkpoints.save(state)
        if device.type == "cuda":
            torch.cuda.synchronize()
        stalled = time.perf_counter() - begun
        checkpoints.finish()
        print(f"  the step waited {stalled:.3f} s; on disk after {time.perf_counter() - begun:.2f} s")
    for path in sorted((scratch / "checkpoints" / "step_0000001").iterdir()):
        print(f"  {path.name:<24}{path.stat().st_size:>15,} bytes")
    checkpoints.close()


def state_of(config: RunConfig, device: torch.device) -> TrainingState:
    """What a run of this config saves."""
    sizes = model_config(config, VOCABULARY, conditioned=True)
    model = Transformer(sizes, TimeEmbedding(config.model.cond_dim)).to(device)
    chosen = config.optimizer
    optimizer = build_optimizer(parameter_groups(model, chosen.weight_decay), chosen)
    ema = EMA(model, decay=chosen.ema_decay, ramp=chosen.ema_ramp)
    return TrainingState(
        step=1, words_seen=0, model=model.state_dict(), ema=ema.state_dict(), optimizer=optimizer.state_dict()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "table", "flips", "cost"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--flips", type=int, default=2000, help="bits to flip per file of tensors; 0: every bit")
    parser.add_argument("--config", default="freq_cosine")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.what == "kills":
            kills(Bench(Path(scratch)), arguments.kills)
        elif arguments.what == "table":
            table(Bench(Path(scratch)))
        elif arguments.what == "flips":
            flips(Bench(Path(scratch)), arguments.flips)
        else:
            cost(Path(scratch), arguments.config)


if __name__ == "__main__":
    main()
