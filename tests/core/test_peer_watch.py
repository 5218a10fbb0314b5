"""A process that waits for another one which failed; gloo's operations wait as NCCL's do, outside Python."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ltg_mdlm.core import peer_watch
from ltg_mdlm.core.peer_watch import PeerWatch
from ltg_mdlm.core.preemption import StopRequest
from ltg_mdlm.testing.ranks import RankFailed, run_on_ranks


def _wait_for_a_rank_that_failed(ranks, reasons):
    peer_watch.PATIENCE_SECONDS = 0.5 if ranks.is_main else 60.0  # the caller ends all ranks as soon as one has ended
    with PeerWatch(ranks, Path(reasons).write_text):
        if ranks.rank == 1:
            ranks.announce_failure("OutOfMemoryError: the culprit")
            ranks.announce_failure("a later one")
            time.sleep(60)  # keeps its connections, as a process does that waits for its GPU
        ranks.barrier()


def test_a_process_that_waits_for_a_failed_one_records_why_and_exits(tmp_path):
    started = time.monotonic()
    with pytest.raises(RankFailed, match="rank 0 died with exit code 1"):
        run_on_ranks(_wait_for_a_rank_that_failed, 2, str(tmp_path / "reasons"))
    assert (tmp_path / "reasons").read_text() == "process 1 of 2 failed: OutOfMemoryError: the culprit"
    assert time.monotonic() - started < 30


def _receive_sigterm_while_waiting(ranks, reasons, answers):
    peer_watch.ANSWER_SECONDS = 1.0
    recorded = threading.Event()

    def record(reason):
        Path(reasons).write_text(reason)
        recorded.set()

    with StopRequest(), PeerWatch(ranks, record):
        if ranks.rank == 0 or answers:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        if ranks.rank == 1:
            time.sleep(3)  # the other one waits as long, and its handler of SIGTERM does not run
        ranks.barrier()
        return recorded.is_set()


@pytest.mark.parametrize("answers", [False, True])
def test_ranks_that_do_not_answer_sigterm_are_recorded_while_the_first_one_waits(tmp_path, answers):
    """A run in which all received the signal is only slow, so nothing is recorded."""
    found = run_on_ranks(_receive_sigterm_while_waiting, 2, str(tmp_path / "reasons"), answers)
    assert found == [not answers, False]
    if not answers:
        reason = (tmp_path / "reasons").read_text()
        assert reason.startswith("SIGTERM, and 1 of 2 processes did not answer, the first of them process 1")


def _run_out_of_memory_in_a_backward_pass(ranks):
    layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    model = DistributedDataParallel(layers, bucket_cap_mb=0.001)  # later layers are reduced before the error

    def fail(grad):
        raise torch.OutOfMemoryError("the culprit")

    hidden = model(torch.randn(2, 64))
    if ranks.rank == 1:
        layers[1].weight.register_hook(fail)
    try:
        hidden.sum().backward()
    except torch.OutOfMemoryError as error:
        ranks.announce_failure(type(error).__name__)
        ranks.close(abort=True)
        return "failed"
    except RuntimeError:
        return ranks.announced_failure()
    raise AssertionError("the gradients of a process that failed cannot have arrived")


def test_an_error_in_the_middle_of_a_backward_pass_ends_that_of_the_other_process():
    assert run_on_ranks(_run_out_of_memory_in_a_backward_pass, 2) == [
        "process 1 of 2 failed: OutOfMemoryError",
        "failed",
    ]
