"""One process without torchrun, the device of a local rank, and how cores are shared."""

import os

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ltg_mdlm.core import distributed
from ltg_mdlm.core.distributed import Ranks, available_cores, default_threads
from ltg_mdlm.core.errors import UserError


@pytest.fixture(autouse=True)
def _outside_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_alone_no_process_group_is_needed():
    with Ranks.setup("cpu", threads=1) as ranks:
        assert (ranks.rank, ranks.world_size, ranks.is_main) == (0, 1, True)
        assert not dist.is_initialized()
        value = torch.tensor([1.5])
        assert torch.equal(ranks.sum_over_ranks(value), value)
        assert ranks.broadcast_object("x") == "x"
        assert ranks.all_agree(True)
        assert not ranks.all_agree(False)
        ranks.barrier()


def test_torchrun_with_one_process_is_alone_too(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with Ranks.setup("cpu", threads=1) as ranks:
        assert ranks.world_size == 1
        assert not dist.is_initialized()


def test_threads_can_be_set():
    with Ranks.setup("cpu", threads=2):
        assert torch.get_num_threads() == 2


def test_a_broken_environment_is_reported(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match=r"WORLD_SIZE is 'two', not a number.*torchrun"):
        Ranks.setup("cpu")


@pytest.mark.parametrize(("available", "chosen"), [(False, "cpu"), (True, "cuda:1")])
def test_the_device_is_the_gpu_of_the_local_rank_if_there_is_one(monkeypatch, available, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * available)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(Ranks.setup("auto", threads=1).device) == chosen


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
