"""A checkpoint is complete or absent, whenever the process that writes it is killed."""

import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.files import TEMPORARY
from ltg_mdlm.storage.checkpoint import Checkpoints, TrainingState, damage, load_checkpoint, newest_checkpoint
from ltg_mdlm.testing.ranks import run_on_ranks

MILLION = 1_000_000


def state_at(step, numel=16):
    tensors = {name: torch.full((numel,), float(step)) for name in ("a", "b")}
    return TrainingState(
        step=step, words_seen=step * MILLION, model=tensors, ema=tensors, optimizer=tensors, components=tensors
    )


def opened(folder):
    return Checkpoints(Path(folder), every=1, keep=1)


def save(folder, state):
    """Save, and wait until it is on disk."""
    checkpoints = opened(folder)
    checkpoints.save(state)
    checkpoints.finish()


def in_child(work, *args):
    """Run a function in a forked process; True if it returned."""
    pid = os.fork()
    if pid == 0:
        work(*args)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def require_complete(folder):
    """Assert that all checkpoints are undamaged and the newest one is all of one step; return this step."""
    state = load_checkpoint(newest_checkpoint(Path(folder)))
    for part in (state.model, state.ema, state.optimizer, state.components):
        assert all(bool((tensor == state.step).all()) for tensor in part.values())
    for path in [*Path(folder).glob("step_*"), *Path(folder).glob("chck_*")]:
        assert damage(path) is None
    return state.step


def save_and_die_at(folder, fatal):
    """Save step 2, and be killed just before the `fatal`-th access of Python to `folder`."""
    touched = 0

    def count(event, args):
        nonlocal touched
        if event.startswith(("os.", "open", "shutil.")) and any(str(a).startswith(folder) for a in args):
            touched += 1
            if touched == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    save(folder, state_at(2))


def kill_everywhere(ranks, folder):
    """The step found after a kill at the first, second, ... access, until a child is not killed."""
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written
    save(folder, state_at(1))
    shutil.copytree(folder, folder + "-at-start")
    found, ended = [], False
    while not ended:
        shutil.rmtree(folder)
        shutil.copytree(folder + "-at-start", folder)
        ended = in_child(save_and_die_at, folder, len(found) + 1)
        found.append(require_complete(folder))
        save(folder, state_at(3))
        assert require_complete(folder) == 3
        assert not list(Path(folder).rglob(f"{TEMPORARY}*"))
    return found


def test_the_newest_checkpoint_is_complete_after_a_kill_at_any_access(tmp_path):
    """It is step 1, then step 2, and never a part of one; the next save removes leftovers."""
    found = run_on_ranks(kill_everywhere, 1, str(tmp_path / "checkpoints"))[0]
    assert len(found) > 30
    assert found == sorted(found)
    assert {1, 2} == set(found)


def save_forever(folder, first):
    for step in range(first, 1000):
        save(folder, state_at(step, numel=1 << 19))


def wait_for_a_save(folder, before):
    deadline = time.monotonic() + 30
    while (Path(folder) / "latest").read_text() <= f"step_{before:07d}\n" and time.monotonic() < deadline:
        time.sleep(0.005)


def kill_at_random_times(ranks, folder, kills):
    """The steps found after each kill of a process that saves continuously."""
    times, steps = random.Random(0), [1]
    save(folder, state_at(1))
    for _ in range(kills):
        pid = os.fork()
        if pid == 0:
            save_forever(folder, steps[-1] + 1)
        wait_for_a_save(folder, steps[-1])
        time.sleep(times.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        steps.append(require_complete(folder))
    return steps


def test_the_newest_checkpoint_is_complete_after_kills_at_random_times(tmp_path):
    """The kills hit files of megabytes that are being written."""
    steps = run_on_ranks(kill_at_random_times, 1, str(tmp_path / "checkpoints"), 8)[0]
    assert steps == sorted(set(steps))


def save_with_little_room(ranks, folder):
    save(folder, state_at(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    message = r"cannot write the checkpoint .*step_0000002"
    with pytest.warns(UserWarning, match="trying once more"), pytest.raises(UserError, match=message):
        save(folder, state_at(2, numel=1 << 20))
    assert not list(Path(folder).rglob(f"{TEMPORARY}*"))
    return require_complete(folder)


def test_a_write_that_fails_halfway_leaves_the_older_checkpoint(tmp_path):
    """The file system refuses to let files grow beyond one megabyte."""
    assert run_on_ranks(save_with_little_room, 1, str(tmp_path / "checkpoints")) == [1]
