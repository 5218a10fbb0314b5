"""Time and energy of a start of a run, for environment.json: wall, device and CPU seconds, and joules."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ltg_mdlm.core.distributed import Ranks

POWERCAP = Path("/sys/class/powercap")
"""Energy counters of Intel and AMD processors (RAPL); on most machines only root may read them."""

READ_SECONDS = 30.0
"""Interval at which counters are read. Those of processors start again from 0 after some minutes at full power."""


class ResourceMeter:
    """Counts the resources that the processes of a start use from the construction on; a context manager.

    The energy is that of whole GPUs and whole processors, whatever else runs on them. It is left out where no counter
    can be read.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._wall, self._cpu = time.monotonic(), _cpu_seconds()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._counters = {**_processor_counters(), **_gpu_counters(ranks.device)}

    def __enter__(self) -> ResourceMeter:
        if self._counters:
            threading.Thread(target=self._read_regularly, name="energy", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()

    def facts(self) -> dict[str, Any]:
        """Seconds and joules of all processes so far, as plain values for JSON; all ranks must call it.

        `device_seconds` is the wall time multiplied by the number of GPUs; 0 on CPUs.
        """
        device, host = self._ranks.device, socket.gethostname()
        with self._lock:
            joules = {key: counter.joules() for key, counter in self._counters.items()}
        # Processes on one machine read the same counters of its processors, which count once.
        mine: dict[str, Any] = {
            "cpu_seconds": _cpu_seconds() - self._cpu,
            # Not the index: every process may see a GPU of its own as the first.
            "gpus": [(host, str(torch.cuda.get_device_properties(device).uuid))] if device.type == "cuda" else [],
            "joules": {(host, *key): spent for key, spent in joules.items()},
        }
        everywhere = self._ranks.gather_objects(mine)
        wall = time.monotonic() - self._wall
        facts: dict[str, Any] = {
            "wall_seconds": round(wall, 3),
            "device_seconds": round(wall * len({gpu for some in everywhere for gpu in some["gpus"]}), 3),
            "cpu_seconds": round(sum(some["cpu_seconds"] for some in everywhere), 3),
        }
        all_joules = {key: spent for some in everywhere for key, spent in some["joules"].items()}
        for kind in dict.fromkeys(key[1] for key in all_joules):
            spent = sum(value for key, value in all_joules.items() if key[1] == kind)
            facts.setdefault("energy_joules", {})[kind] = round(spent, 1)
        return facts

    def _read_regularly(self) -> None:
        while not self._stopped.wait(READ_SECONDS):
            with self._lock:
                for counter in self._counters.values():
                    counter.joules()


class EnergyCounter:
    """Energy since the first reading of a counter that starts again from 0 when it exceeds `limit`."""

    def __init__(self, read: Callable[[], float], limit: float = 0.0) -> None:
        """`read` returns joules, of which `limit` is the largest value; 0: it never starts again."""
        self._read, self._limit = read, limit
        self._last, self._sum = read(), 0.0

    def joules(self) -> float:
        """Joules since the construction; those of the last reading if the counter cannot be read any more."""
        with suppress(Exception):  # of the driver, or a file
            now = self._read()
            self._sum += now - self._last + (self._limit if now < self._last else 0.0)
            self._last = now
        return self._sum


def _cpu_seconds() -> float:
    """CPU time of this process and its ended children, all threads together."""
    return sum(os.times()[:4])


def _processor_counters() -> dict[tuple[str, str], EnergyCounter]:
    """Counters of the processors of this machine; empty if they may not be read."""
    found = {}
    for folder in sorted(POWERCAP.glob("intel-rapl:*")):
        # intel-rapl:0 is a processor, and intel-rapl:0:1 a part of it.
        if folder.name.count(":") == 1:
            with suppress(OSError, ValueError):
                limit = int((folder / "max_energy_range_uj").read_text()) / 1e6
                found["cpu", folder.name] = EnergyCounter(
                    lambda file=folder / "energy_uj": int(file.read_text()) / 1e6,  # type: ignore[misc]
                    limit,
                )
    return found


def _gpu_counters(device: torch.device) -> dict[tuple[str, str], EnergyCounter]:
    """The counter of the GPU (NVML); empty on CPUs, without pynvml, and if the driver has none."""
    if device.type != "cuda" or importlib.util.find_spec("pynvml") is None:
        return {}
    with suppress(Exception):  # the errors of NVML have their own classes
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return {("gpu", uuid): EnergyCounter(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)}
    return {}
