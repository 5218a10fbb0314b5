"""The processes of a run: setup, CPU threads, and communication of several processes over gloo."""

import os
import signal
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ltg_mdlm.core import distributed
from ltg_mdlm.core.config import OptimizerConfig
from ltg_mdlm.core.distributed import Ranks, available_cores, default_threads
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.testing.ranks import RankFailed, run_on_ranks
from ltg_mdlm.training.optimizers import build_optimizer
from ltg_mdlm.training.parameter_groups import parameter_groups


@pytest.fixture
def outside_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("outside_torchrun")
def test_a_single_process_needs_no_process_group():
    with Ranks.setup("cpu", threads=1) as ranks:
        assert (ranks.rank, ranks.world_size, ranks.is_main) == (0, 1, True)
        assert not dist.is_initialized()
        value = torch.tensor([1.5])
        assert torch.equal(ranks.sum_over_ranks(value), value)
        assert ranks.broadcast_object("x") == "x"
        assert ranks.all_agree(True)
        assert not ranks.all_agree(False)
        ranks.barrier()


@pytest.mark.usefixtures("outside_torchrun")
def test_torchrun_with_one_process_makes_no_process_group_either(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with Ranks.setup("cpu", threads=1) as ranks:
        assert ranks.world_size == 1
        assert not dist.is_initialized()


@pytest.mark.usefixtures("outside_torchrun")
def test_threads_can_be_set():
    with Ranks.setup("cpu", threads=2):
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("outside_torchrun")
@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number.*torchrun"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', not a number from 1"),
        ({"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE is ''"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0', not a number from 1"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "\u00b2"}, "RANK is"),
        ({"RANK": "3"}, "WORLD_SIZE is '1', not a number from 4"),
        ({"LOCAL_RANK": "9" * 5000}, "LOCAL_RANK is '999"),
        ({"WORLD_SIZE": "2"}, "MASTER_ADDR is not set.*torchrun"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}, "not a number from 0 to 65535"),
    ],
)
def test_a_broken_environment_is_reported(variables, reason, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=reason):
        Ranks.setup("cpu")


@pytest.mark.usefixtures("outside_torchrun")
@pytest.mark.parametrize(("available", "chosen"), [(False, "cpu"), (True, "cuda:1")])
def test_the_device_is_the_gpu_of_the_local_rank_if_there_is_one(monkeypatch, available, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * available)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(Ranks.setup("auto", threads=1).device) == chosen


@pytest.mark.usefixtures("outside_torchrun")
@pytest.mark.parametrize("available", [False, True])
def test_more_processes_than_gpus_are_an_error(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * available)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=rf"process 3 on this machine has no GPU: {2 * available} visible"):
        Ranks.setup("cuda", threads=1)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, 8),
        ({"LOCAL_WORLD_SIZE": "1"}, 8),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 4),  # torchrun's default, not the user's choice
        ({"LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}, 2),
        ({"LOCAL_WORLD_SIZE": "16", "OMP_NUM_THREADS": "1"}, 1),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, None),
        ({"OMP_NUM_THREADS": "1"}, None),
    ],
)
def test_processes_share_the_cores_unless_the_user_chose(environment, threads):
    assert default_threads(environment, cores=8) == threads


@given(st.integers(1, 256), st.integers(1, 64))
def test_every_process_gets_a_thread_and_together_they_fit_if_they_can(cores, processes):
    threads = default_threads({"LOCAL_WORLD_SIZE": str(processes)}, cores)
    assert threads >= 1
    assert threads * processes <= max(cores, processes)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "350000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000000 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu.max": "nonsense\n"}, 64),
    ],
)
def test_a_containers_quota_limits_the_cores(monkeypatch, tmp_path, files, cores):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(distributed, "_CGROUP", tmp_path)
    monkeypatch.setattr(distributed, "_TOPOLOGY", tmp_path)
    assert available_cores() == cores


def test_two_threads_of_a_core_count_once(monkeypatch, tmp_path):
    """CPUs 0 to 3 are two cores with two threads each; the process may use three of them."""
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(distributed, "_CGROUP", tmp_path)
    monkeypatch.setattr(distributed, "_TOPOLOGY", tmp_path)
    assert available_cores() == 2


def _identity(ranks):
    return ranks.rank, ranks.world_size, ranks.local_rank, str(ranks.device), ranks.is_main


def test_every_rank_knows_its_place():
    assert run_on_ranks(_identity, 2) == [(0, 2, 0, "cpu", True), (1, 2, 1, "cpu", False)]


def _sum(ranks):
    mine = torch.tensor([1.0, 10.0]) * (ranks.rank + 1)
    total = ranks.sum_over_ranks(mine)
    transposed = ranks.sum_over_ranks(torch.arange(6.0).view(2, 3).t() * (ranks.rank + 1))
    return mine, total, transposed


def test_sums_reach_every_rank_and_leave_the_summands_alone():
    for rank, (mine, total, transposed) in enumerate(run_on_ranks(_sum, 3)):
        assert mine.tolist() == [rank + 1, 10 * (rank + 1)]
        assert total.tolist() == [6, 60]
        assert transposed.tolist() == [[0, 18], [6, 24], [12, 30]]


def _votes(ranks):
    return ranks.all_agree(True), ranks.all_agree(ranks.rank == 0), ranks.all_agree(False)


def test_ranks_agree_only_if_all_of_them_say_so():
    assert run_on_ranks(_votes, 2) == [(True, False, False)] * 2


def _broadcast(ranks):
    return ranks.broadcast_object({"path": "x", "rank": ranks.rank} if ranks.is_main else None)


def test_an_object_of_the_first_rank_reaches_every_rank():
    assert run_on_ranks(_broadcast, 2) == [{"path": "x", "rank": 0}] * 2


def _late(ranks):
    time.sleep(0.5 if ranks.rank == 1 else 0)
    before = time.time()
    ranks.barrier()
    return before, time.time()


def test_a_barrier_is_left_when_the_last_rank_has_come():
    times = run_on_ranks(_late, 2)
    assert min(left for _, left in times) >= max(came for came, _ in times)


def _raise_on_one(ranks):
    if ranks.rank == 1:
        raise ValueError("the culprit")
    ranks.barrier()


def test_the_error_of_the_failing_rank_is_shown():
    with pytest.raises(RankFailed, match="the culprit"):
        run_on_ranks(_raise_on_one, 2)


def _die(ranks):
    if ranks.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(UserError, match="1 of 2 failed while summing over processes: another process has ended"):
        ranks.barrier()
    time.sleep(60)


def test_a_rank_whose_partner_was_killed_says_so():
    with pytest.raises(RankFailed, match="rank 0 died with exit code -9"):
        run_on_ranks(_die, 2)


def _hang(ranks):
    time.sleep(60 * ranks.rank)


def test_a_hanging_rank_is_named():
    with pytest.raises(RankFailed, match=r"1\] did not finish"):
        run_on_ranks(_hang, 2, timeout=1)


def test_unreachable_partners_are_reported_in_a_sentence(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="process 1 of 2 failed while connecting to the other processes"):
        Ranks.setup("cpu", timeout=timedelta(seconds=1))


@pytest.mark.usefixtures("outside_torchrun")
def test_on_gpus_nccl_connects_at_the_start_and_has_a_time_limit_of_its_own(monkeypatch):
    """What torch is asked for, without a GPU: the operations of gloo keep the longer limit."""
    asked = {}

    class ProcessGroupNCCL:
        def _set_default_timeout(self, timeout):
            asked["gpu_timeout"] = timeout

    group = SimpleNamespace(_get_backend=lambda device: ProcessGroupNCCL())
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_device", lambda *_: torch.device("cuda", 1))
    monkeypatch.setattr(distributed, "_store_of_this_attempt", lambda *_: None)
    monkeypatch.setattr(distributed, "_get_default_group", lambda: group)
    monkeypatch.setattr(dist, "ProcessGroupNCCL", ProcessGroupNCCL, raising=False)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: asked.update(options, backend=backend))
    monkeypatch.setattr(Ranks, "barrier", lambda self: None)
    Ranks.setup(threads=1, timeout=timedelta(minutes=30), gpu_timeout=timedelta(minutes=10))
    assert asked["backend"] == "cpu:gloo,cuda:nccl"
    assert asked["device_id"] == torch.device("cuda", 1)
    assert (asked["timeout"], asked["gpu_timeout"]) == (timedelta(minutes=30), timedelta(minutes=10))


def _train(ranks, name, steps, bad_step):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    wrapped = DistributedDataParallel(model) if ranks.world_size > 1 else model
    optimizer = build_optimizer(parameter_groups(model, 0.1), OptimizerConfig(name=name, clip=1.0))
    data = torch.randn(steps, 4, 4, generator=torch.Generator().manual_seed(1))
    refused = []
    for step in range(steps):
        rows = data[step][ranks.rank :: ranks.world_size]
        loss = wrapped(rows).square().sum() * ranks.world_size
        if step == bad_step and ranks.rank == ranks.world_size - 1:
            loss = loss * float("nan")
        loss.backward()
        refused.append(bool(optimizer.step(0.1).refused))
        optimizer.zero_grad()
    return refused, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_two_ranks_take_the_steps_of_one_and_refuse_together(name):
    """A NaN on one rank reaches all of them through the reduced gradients, so that all refuse the same step."""
    (refused_0, weights_0), (refused_1, weights_1) = run_on_ranks(_train, 2, name, 6, 3)
    refused, weights = run_on_ranks(_train, 1, name, 6, 3)[0]
    assert refused_0 == refused_1 == refused == [False, False, False, True, False, False]
    for name, weight in weights.items():
        assert torch.equal(weights_0[name], weights_1[name])
        torch.testing.assert_close(weights_0[name], weight, rtol=1e-5, atol=1e-6)
