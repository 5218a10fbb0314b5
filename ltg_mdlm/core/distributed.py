"""The processes of a run: one, or as many as torchrun started."""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store
from torch.distributed.rendezvous import rendezvous

from ltg_mdlm.core.errors import PluginFailure, UserError

T = TypeVar("T")


TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: longer than one of them may write a checkpoint or count a corpus."""


_CGROUP = Path("/sys/fs/cgroup")


_TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; usable without torchrun, where there is no process group at all.

    As a context manager it leaves the group at the end.  An error of the program is printed before that, since the
    other processes notice the end of this one and report it.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @classmethod
    def setup(
        cls,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        *,
        threads: int | None = None,
        timeout: timedelta = TIMEOUT,
    ) -> Ranks:
        """Join the processes that torchrun's environment variables describe; on its own, a process is all there is.

        The device is the GPU of the local rank, if there are any, else the CPU.  `threads` is the number of CPU threads
        of this process; by default its share of the available cores.

        Raises UserError if there are fewer GPUs than processes, or the others cannot be reached within `timeout`.
        """
        rank, world_size, local_rank = _from_env("RANK", 0), _from_env("WORLD_SIZE", 1), _from_env("LOCAL_RANK", 0)
        chosen = _device(device, local_rank)
        if threads := threads or default_threads(os.environ, available_cores()):
            torch.set_num_threads(threads)
        ranks = cls(rank, world_size, local_rank, chosen)
        if world_size > 1:
            with ranks._explained("meeting the other processes"):
                # gloo serves tensors on the CPU, whatever the device is.
                backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
                store = _store_of_this_attempt(rank, world_size, timeout)
                dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
                ranks.barrier()
        return ranks

    @classmethod
    def alone(cls) -> Ranks:
        """A process on its own, on the CPU."""
        return cls(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's tensor; all ranks must call it, with equal shapes.  Alone, the tensor itself."""
        if self.world_size == 1:
            return tensor
        with self._explained("adding up over processes"):
            total = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
            return total

    def all_agree(self, flag: bool) -> bool:
        """Whether `flag` is True on every rank; all ranks must call it, and wait for each other."""
        return int(self.sum_over_ranks(torch.tensor(int(flag)))) == self.world_size

    def broadcast_object(self, value: T) -> T:
        """The first rank's value, on every rank; it must be picklable."""
        if self.world_size == 1:
            return value
        with self._explained("sharing a value between processes"):
            box = [value]
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
            return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks, on every rank; they must be picklable."""
        if self.world_size == 1:
            return [value]
        with self._explained("comparing values between processes"):
            box: list[T] = [value] * self.world_size
            dist.all_gather_object(box, value)
            return box

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all_agree(True)

    def close(self) -> None:
        """Leave the process group; harmless when there is none."""
        if dist.is_initialized():
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
            self.close()

    def _report(self, error: BaseException) -> None:
        """Make one message of what several processes may have met; raises what it becomes, if it becomes another."""
        if _is_lost_connection(error):
            raise self._lost("training", error) from error
        if isinstance(error, UserError):
            error.only_here = self._is_first_to_say(str(error))
        elif isinstance(error, Exception):
            print(f"process {self.rank} of {self.world_size} failed:", file=sys.stderr)
            if isinstance(error, PluginFailure):
                error.report()
            else:
                traceback.print_exception(error)
            sys.stderr.flush()
            raise SystemExit(1) from None

    def _is_first_to_say(self, text: str) -> bool:
        """Whether no other process has asked this about the same text."""
        try:
            digest = hashlib.sha256(text.encode()).hexdigest()
            return _get_default_store().add(f"said/{digest}", 1) == 1
        except RuntimeError:  # the process that kept count is gone
            return True

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise self._lost(doing, error) from error

    def _lost(self, doing: str, error: BaseException) -> UserError:
        """A sentence for a lost connection: the process that failed has printed why, this one only waited."""
        return UserError(
            f"process {self.rank} of {self.world_size} failed at {doing}: another process has ended,"
            f" hangs, or cannot be reached; see the output of the others\n  ({' '.join(str(error).split())[:300]})"
        )


def _store_of_this_attempt(rank: int, world_size: int, timeout: timedelta) -> Store:
    """Where processes find each other's addresses, apart from those that torchrun's earlier attempts left there."""
    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    store.set_timeout(timeout)
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether data parallelism failed to reach another process; gloo gives its errors no type."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def available_cores() -> int:
    """Physical cores that this process and its siblings may use: its affinity, cut to the container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len({_core(cpu) for cpu in os.sched_getaffinity(0)})
    else:
        cores = os.cpu_count() or 1
    return min(cores, _container_quota() or cores)


def _core(cpu: int) -> str:
    """Names the core of a logical CPU: two threads of one core gain nothing in matrix products."""
    try:
        return (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def default_threads(environment: Mapping[str, str], cores: int) -> int | None:
    """This process' share of the cores; None to leave alone what torch or the user chose.

    torchrun sets OMP_NUM_THREADS to 1 when it starts several processes on a machine and the user set nothing, which
    leaves most cores idle; any other value is the user's.
    """
    local_world_size = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    chosen = environment.get("OMP_NUM_THREADS")
    if chosen is not None and not (chosen == "1" and local_world_size > 1):
        return None
    return max(1, cores // local_world_size)


def _container_quota() -> int | None:
    """Whole cores of the cgroup's CPU quota (version 2, else 1); None if there is no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((_CGROUP / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return max(1, int(quota) // int(period))
    return None


def _from_env(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise UserError(f"the environment variable {name} is {value!r}, not a number; start the run with torchrun")
    return int(value)


def _device(choice: str, local_rank: int) -> torch.device:
    """The GPU of this local rank, or the CPU."""
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        error = UserError(
            f"process {local_rank + 1} on this machine has no GPU: {torch.cuda.device_count()} visible."
            "  Start at most one process per GPU (--nproc-per-node), or look at CUDA_VISIBLE_DEVICES"
        )
        error.only_here = True
        raise error
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
