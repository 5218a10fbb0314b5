"""Failures of one of two processes on two GPUs: what gloo cannot show, since its operations fail and NCCL's wait."""

import re
import subprocess
import time
from pathlib import Path

import pytest
import torch
from support.runs import environment, faulty_environment, status, train_command
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ltg_mdlm.core.distributed import STEP_TIMEOUT, Ranks
from ltg_mdlm.core.peer_watch import PeerWatch
from ltg_mdlm.testing.ranks import RankFailed, run_on_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("raise", "process 1 of 2 failed: plugin .* with ArithmeticError: the culprit"),
        ("SIGKILL", "SIGTERM, and 1 of 2 processes did not answer, the first of them process 1"),
    ],
)
def test_all_processes_end_within_a_minute_the_status_says_why_and_the_run_resumes(do, reason, tmp_path):
    out, mark = tmp_path / "run", tmp_path / "mark"
    variables = environment() | faulty_environment({"at": "step 6", "do": do, "rank": 1, "once": str(mark)})
    command = train_command(out, "--plugin", "faulty", sets=("plugins.faulty.adapt=false",), processes=2)
    printed = subprocess.run(command, env=variables, capture_output=True, text=True, check=False).stderr
    assert time.time() - mark.stat().st_mtime < 60
    assert status(out)["status"] == "failed"
    assert re.match(reason, status(out)["reason"])
    if do == "raise":
        assert 0 < printed.find("ArithmeticError: the culprit") < printed.find("process 0 of 2 ends: ")
    again = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    assert "resuming from step 4" in again
    assert status(out) == {"status": "finished", "step": 12, "reason": ""}


def _run_out_of_memory_in_a_backward_pass(rank, reasons):
    def fail(grad):
        return torch.empty(2**50, device=grad.device)

    try:
        with (
            Ranks.setup("cuda", threads=1, gpu_timeout=STEP_TIMEOUT) as ranks,
            PeerWatch(ranks, Path(reasons).write_text),
        ):
            layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))).to(ranks.device)
            model = DistributedDataParallel(layers, device_ids=[ranks.device.index], bucket_cap_mb=0.001)
            hidden = model(torch.randn(2, 64, device=ranks.device))
            if rank == 1:
                layers[1].weight.register_hook(fail)
            hidden.sum().backward()
            torch.cuda.synchronize()
    except SystemExit:
        time.sleep(30)  # until the other one has ended; the caller would end it as soon as this one returns
        return "failed"


def test_a_process_without_memory_in_a_backward_pass_ends_the_one_that_waits_for_its_gradients(tmp_path):
    with pytest.raises(RankFailed, match="rank 0 died with exit code 1"):
        run_on_ranks(_run_out_of_memory_in_a_backward_pass, 2, str(tmp_path / "reasons"), joined=False)
    assert "process 1 of 2 failed: OutOfMemoryError" in (tmp_path / "reasons").read_text()
