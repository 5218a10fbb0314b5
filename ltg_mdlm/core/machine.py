"""Properties of the machine for benchmarks and reports: name, peak rate of matrix products, memory, bf16."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch

PEAK_SIZE = {"cpu": 1024, "cuda": 8192}
"""Width of the square matrices of `matrix_peak`."""

PEAK_SECONDS = 1.0
"""Duration of `matrix_peak`."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt: how much free memory stays, -1 for all, and from which size on memory is mapped."""

LARGEST_MMAP_THRESHOLD = 1 << 25
"""glibc takes no larger value."""


def matrix_peak(device: torch.device, *, bf16: bool, seconds: float = PEAK_SECONDS) -> float:
    """The peak rate of large square matrix products, in FLOP per second, measured for so many seconds."""
    size = PEAK_SIZE[device.type]
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    right = torch.randn_like(left)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(4):
            left @ right
        synchronise(device)
        best = min(best, (time.perf_counter() - start) / 4)
    return 2 * size**3 / best


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on a GPU, else the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe_machine(device: torch.device) -> str:
    """The name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{found[1] if found else platform.processor() or platform.machine()} ({capability})"


def environment_of(device: torch.device) -> dict[str, Any]:
    """The machine of this process as plain values for JSON: host, processor, memory, GPU and driver."""
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "cpu": describe_machine(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if device.type == "cuda":
        driver = Path("/proc/driver/nvidia/version")
        found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([0-9.]+)", driver.read_text()) if driver.exists() else None
        facts |= {
            "gpu": describe_machine(device),
            "gpu_memory_bytes": torch.cuda.get_device_properties(device).total_memory,
            "cuda": torch.version.cuda,
            "driver": found[1] if found else None,
        }
    return facts


def native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for matrix products in bf16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public function for this.  Processors with AMX have these instructions, too.
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def bf16_for(precision: str, device: torch.device) -> bool:
    """Whether auto, fp32 or bf16 means bf16 on the device; auto means it where it is native."""
    return native_bf16(device) if precision == "auto" else precision == "bf16"


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for later allocations, if it is glibc; other libraries are left as they are.

    Otherwise the tensors of every step are returned to the system and mapped again page by page, unless something else
    has made glibc raise its thresholds by freeing a large block.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)


def scaled_to_memory(tokens: int, device: torch.device, full_memory: float) -> int:
    """Tokens per forward pass: on a GPU with less than `full_memory` bytes, in proportion to its memory."""
    if device.type != "cuda":
        return tokens
    memory: int = torch.cuda.get_device_properties(device).total_memory
    return int(tokens * min(1.0, memory / full_memory))
