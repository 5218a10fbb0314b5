"""The processes of a run: one, or those that torchrun started; their device, CPU threads and communication."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import (
    PrefixStore,
    Store,
    _abort_process_group,
    _get_default_group,
    _get_default_store,
)
from torch.distributed.rendezvous import rendezvous

from ltg_mdlm.core.errors import PluginFailure, UserError, text_of

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others; longer than one process may take to write a checkpoint or make a corpus."""

STEP_TIMEOUT = timedelta(minutes=10)
"""How long the GPUs wait for each other within a step and a validation, where all processes have about the same work:
torch's default for NCCL.  A file system may stop for minutes while the first process writes metrics."""

_SETUPS = itertools.count()
"""Numbers the process groups that this process has joined, one after the other."""

_CGROUP = Path("/sys/fs/cgroup")
_TOPOLOGY = Path("/sys/devices/system/cpu")

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and communication with the other ranks.  A single process needs no process group.

    As a context manager, it leaves the process group on exit.  Unexpected exceptions are printed and announced before
    that, because the other processes report errors of their own as soon as this one has left.
    """

    rank: int
    """index of this process, from 0"""
    world_size: int
    """number of processes"""
    local_rank: int
    """index of this process on this machine"""
    device: torch.device

    @classmethod
    def setup(
        cls,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        *,
        threads: int | None = None,
        timeout: timedelta = TIMEOUT,
        gpu_timeout: timedelta | None = None,
    ) -> Ranks:
        """Join the process group that torchrun's environment variables describe; without them, use a single process.

        Args:
            device: `auto` is the GPU of the local rank if there are GPUs, else the CPU
            threads: CPU threads of this process; by default its share of the available cores
            timeout: for every communication
            gpu_timeout: for operations on tensors of the GPU, which NCCL performs, if it is another one

        Raises UserError if there are fewer GPUs than processes, or the other processes cannot be reached.
        """
        rank, local_rank = _from_env("RANK", 0), _from_env("LOCAL_RANK", 0)
        world_size = _from_env("WORLD_SIZE", 1, at_least=rank + 1)
        _from_env("LOCAL_WORLD_SIZE", 1, at_least=1)
        chosen = _device(device, local_rank)
        if threads := threads or default_threads(os.environ, available_cores()):
            torch.set_num_threads(threads)
        ranks = cls(rank, world_size, local_rank, chosen)
        if world_size > 1:
            with ranks._explained("connecting to the other processes"):
                # Tensors on the CPU are reduced by gloo, on GPUs too.
                backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
                store = _store_of_this_attempt(rank, world_size, timeout)
                dist.init_process_group(
                    backend,
                    store=store,
                    rank=rank,
                    world_size=world_size,
                    timeout=timeout,
                    # NCCL connects here, so that a wrong network is an error now and not in the first step.
                    device_id=chosen if chosen.type == "cuda" else None,
                )
                if gpu_timeout is not None and chosen.type == "cuda":
                    nccl = _get_default_group()._get_backend(chosen)
                    if isinstance(nccl, dist.ProcessGroupNCCL):  # TORCH_DISTRIBUTED_DEBUG=DETAIL hides it
                        nccl._set_default_timeout(gpu_timeout)
                ranks.barrier()
        return ranks

    @classmethod
    def alone(cls) -> Ranks:
        """A single process on the CPU."""
        return cls(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, which must all call this.  For a single process, the tensor itself."""
        if self.world_size == 1:
            return tensor
        with self._explained("summing over processes"):
            total = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
            return total

    def all_agree(self, flag: bool) -> bool:
        """Whether `flag` is True on all ranks, which must all call this.  Waits for all ranks."""
        return int(self.sum_over_ranks(torch.tensor(int(flag)))) == self.world_size

    def broadcast_object(self, value: T) -> T:
        """The value of rank 0, on all ranks; it must be picklable."""
        if self.world_size == 1:
            return value
        with self._explained("broadcasting a value"):
            box = [value]
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
            return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """The values of all ranks, in order, on all ranks; they must be picklable."""
        if self.world_size == 1:
            return [value]
        with self._explained("comparing values of all processes"):
            box: list[T] = [value] * self.world_size
            dist.all_gather_object(box, value)
            return box

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_agree(True)

    def announce_failure(self, reason: str) -> None:
        """Tell the other ranks that this one ends; only the first announcement counts."""
        with suppress(RuntimeError):  # the process that holds the store has ended
            text = f"process {self.rank} of {self.world_size} failed: {reason}"
            _get_default_store().compare_set("failure", "", text)

    def announced_failure(self) -> str | None:
        """The first failure that a rank has announced; None if there is none.  Does not wait."""
        with suppress(RuntimeError, ValueError):  # the store or the process group has ended
            store = _get_default_store()
            return store.get("failure").decode() if store.check(["failure"]) else None
        return None

    def note(self, name: str) -> None:
        """Leave a note for the other ranks, which `without_note` reads.  Does not wait."""
        with suppress(RuntimeError, ValueError):
            _get_default_store().set(f"{name}/{self.rank}", "")

    def without_note(self, name: str) -> list[int]:
        """The ranks that have not left this note."""
        with suppress(RuntimeError, ValueError):
            store = _get_default_store()
            return [rank for rank in range(self.world_size) if not store.check([f"{name}/{rank}"])]
        return []

    def close(self, *, abort: bool = False) -> None:
        """Leave the process group, if there is one.

        With `abort`, operations on GPUs end at once; without it, they are waited for, which takes for ever if another
        process no longer takes part in them.
        """
        if not dist.is_initialized():
            return
        if abort and self.device.type == "cuda":
            _abort_process_group()
        else:
            dist.destroy_process_group()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and dist.is_initialized():
                self._report(error)
        finally:
            self.close(abort=error is not None)

    def _report(self, error: BaseException) -> None:
        """Report an error once, although several processes may have raised it, and announce it to the others.

        Raises UserError for a lost connection, and SystemExit after printing an unexpected exception.
        """
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            # Data parallelism did not reach another process; errors of gloo have no type of their own.
            raise self._lost("training", error) from error
        if isinstance(error, UserError):
            digest = hashlib.sha256(str(error).encode()).hexdigest()
            try:
                error.only_here = _get_default_store().add(f"said/{digest}", 1) == 1
            except RuntimeError:  # the process that holds the store has ended
                error.only_here = True
            self.announce_failure(str(error))
        elif isinstance(error, Exception):
            print(f"process {self.rank} of {self.world_size} failed:", file=sys.stderr)
            if isinstance(error, PluginFailure):
                error.report()
            else:
                traceback.print_exception(error)
            sys.stderr.flush()
            self.announce_failure(error.reason if isinstance(error, PluginFailure) else text_of(error))
            raise SystemExit(1) from None

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn an error of communication into a UserError."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise self._lost(doing, error) from error

    def _lost(self, doing: str, error: BaseException) -> UserError:
        """The message for a lost connection: the process that failed has printed the reason, this one only waited."""
        return UserError(
            f"process {self.rank} of {self.world_size} failed while {doing}: another process has ended,"
            f" hangs, or cannot be reached; see the output of the others\n  ({' '.join(str(error).split())[:300]})"
        )


def _store_of_this_attempt(rank: int, world_size: int, timeout: timedelta) -> Store:
    """The store of the processes' addresses.

    It is separate from those of earlier attempts by the same torchrun, and of earlier process groups of the same
    processes, such as those of a sweep: torchrun keeps their keys, and an old address would be taken for the new one.
    """
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(f"WORLD_SIZE is {world_size}, but {name} is not set; start the run with torchrun")
    _from_env("MASTER_PORT", 0, at_most=65535)
    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    store.set_timeout(timeout)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"attempt {attempt}, group {next(_SETUPS)}", store)


def _from_env(name: str, default: int, *, at_least: int = 0, at_most: int = 10**6) -> int:
    """A number from an environment variable of torchrun.  Raises UserError."""
    value = os.environ.get(name, str(default))
    if not (value.isascii() and value.isdecimal() and len(value) < 10 and at_least <= int(value) <= at_most):
        raise UserError(
            f"the environment variable {name} is {value[:100]!r}, not a number from {at_least} to {at_most};"
            " start the run with torchrun, which sets it, or unset it to use a single process"
        )
    return int(value)


def _device(choice: str, local_rank: int) -> torch.device:
    """The GPU of this local rank, or the CPU.  Raises UserError if there are too few GPUs."""
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        error = UserError(
            f"process {local_rank + 1} on this machine has no GPU: {torch.cuda.device_count()} visible."
            "\n  start at most one process per GPU (--nproc-per-node), or check CUDA_VISIBLE_DEVICES"
        )
        error.only_here = True
        raise error
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def available_cores() -> int:
    """Physical cores available to the processes of this machine: CPU affinity, limited by the container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len({_core(cpu) for cpu in os.sched_getaffinity(0)})
    else:
        cores = os.cpu_count() or 1
    return min(cores, _container_quota() or cores)


def _core(cpu: int) -> str:
    """The physical core of a logical CPU; a second thread on a core does not speed up matrix products."""
    try:
        return (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def default_threads(environment: Mapping[str, str], cores: int) -> int | None:
    """CPU threads of this process: its share of the cores; None if the user set OMP_NUM_THREADS.

    torchrun sets OMP_NUM_THREADS=1 if it starts several processes on a machine and the user did not set the variable.
    That leaves most cores idle, so 1 is ignored there.
    """
    local_world_size = int(environment.get("LOCAL_WORLD_SIZE", "1"))  # `Ranks.setup` has checked it
    chosen = environment.get("OMP_NUM_THREADS")
    if chosen is not None and not (chosen == "1" and local_world_size > 1):
        return None
    return max(1, cores // local_world_size)


def _container_quota() -> int | None:
    """The CPU quota of the cgroup (version 2, else 1), in whole cores; None if there is no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((_CGROUP / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return max(1, int(quota) // int(period))
    return None
