"""Run a function in several processes, as torchrun does, and collect the results."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.testing.rank_server import start_server


class RankFailed(AssertionError):
    """A rank raised an exception (the message is its traceback), died, or did not finish in time."""


def run_on_ranks(
    function: Callable[..., Any], world_size: int = 2, *args: Any, timeout: float = 60.0, joined: bool = True
) -> list[Any]:
    """Call `function(ranks, *args)` on every rank, in its own process on the CPU, with gloo and one thread.

    Returns the results by rank. `function` is a top-level function of any file; arguments and results are pickled.
    With `joined=False`, it is called with the number of the rank and joins the process group itself. Raises
    `RankFailed` with the traceback of the first rank that fails, and if a rank takes longer than `timeout` seconds.
    """
    # The parent process holds the store, as torchrun's agent does. The system assigns a free port, so no other process
    # can take it.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    context = start_server()
    task = pickle.dumps((function.__qualname__, args))
    connections, processes = [], []
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        environment = _environment(rank, world_size, store.port)
        target = (theirs, environment, inspect.getfile(function), function.__module__, task, joined)
        process = context.Process(target=_work, args=target, daemon=True)
        process.start()
        theirs.close()
        connections.append(ours)
        processes.append(process)
    try:
        return _collect(connections, processes, time.monotonic() + timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The environment variables that torchrun sets on a single machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }


def _work(results: Connection, environment: dict[str, str], file: str, module: str, task: bytes, joined: bool) -> None:
    """Run the function on one rank, and send (True, result) or (False, traceback)."""
    os.environ.update(environment)
    with Ranks.setup("cpu", threads=1) if joined else nullcontext(int(environment["RANK"])) as ranks:
        try:
            _load(file, module)
            name, args = pickle.loads(task)
            outcome = True, getattr(sys.modules[module], name)(ranks, *args)
        except BaseException:
            outcome = False, traceback.format_exc()
        # Sent before the process group is destroyed, which other ranks would report as an error. The standard pickle
        # copies tensors; that of multiprocessing would send file descriptors, which close with this process.
        results.send_bytes(pickle.dumps(outcome))


def _load(file: str, module: str) -> None:
    """Import a test file, which is not on the import path, under the name that it has in the process of pytest."""
    if module in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module, Path(file))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[module])


def _collect(connections: Sequence[Connection], processes: Sequence[BaseProcess], deadline: float) -> list[Any]:
    """The results by rank. Raises `RankFailed`."""
    results: dict[int, Any] = {}
    while len(results) < len(connections):
        open_ones = [c for rank, c in enumerate(connections) if rank not in results]
        ready = [c for c in wait(open_ones, max(deadline - time.monotonic(), 0)) if isinstance(c, Connection)]
        if not ready:
            raise RankFailed(f"ranks {sorted(set(range(len(connections))) - results.keys())} did not finish in time")
        for connection in ready:
            rank = connections.index(connection)
            results[rank] = _receive(connection, rank, processes[rank])
    return [results[rank] for rank in range(len(connections))]


def _receive(connection: Connection, rank: int, process: BaseProcess) -> Any:
    with suppress(EOFError):
        succeeded, result = pickle.loads(connection.recv_bytes())
        if not succeeded:
            raise RankFailed(f"rank {rank} failed:\n{result}")
        return result
    process.join()
    raise RankFailed(f"rank {rank} died with exit code {process.exitcode}")
