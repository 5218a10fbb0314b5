"""The machine that a process runs on: its name, its speed in matrix products, the memory in use, native bf16."""

from __future__ import annotations

import platform
import re
import resource
import sys
import time
from pathlib import Path

import torch

PEAK_SIZE = {"cpu": 1024, "cuda": 8192}
"""Width of the square matrices whose product is timed, by type of device."""

PEAK_SECONDS = 1.0
"""How long their product is repeated."""


def matrix_peak(device: torch.device, *, bf16: bool) -> float:
    """Highest measured rate of a large square matrix product, in FLOP per second."""
    size = PEAK_SIZE[device.type]
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    right = torch.randn_like(left)
    best, end = float("inf"), time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(4):
            left @ right
        synchronise(device)
        best = min(best, (time.perf_counter() - start) / 4)
    return 2 * size**3 / best


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all work that is queued; returns at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: allocated by tensors on a GPU, or else resident in main memory for this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe_machine(device: torch.device) -> str:
    """Name of the GPU, or name and vector instructions of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{found[1] if found else platform.processor() or platform.machine()} ({capability})"


def native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for matrix products in bf16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public function for this.  Processors with AMX have these instructions, too.
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def bf16_for(precision: str, device: torch.device) -> bool:
    """Whether auto, fp32 or bf16 means bf16 on the device; auto means it where it is native."""
    return native_bf16(device) if precision == "auto" else precision == "bf16"
