"""Notice when code asks the host for a tensor's value, which on a GPU would stop everything until it is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {
    torch.ops.aten._local_scalar_dense.default,  # item(), float(), bool(), if tensor
    torch.ops.aten.nonzero.default,  # the size of its result is only known to the device
    torch.ops.aten.masked_select.default,
}


class NoHostReads(TorchDispatchMode):
    """Inside this context, reading a value on the host is an assertion error, on the CPU as well."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in _READS, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def cuda_waits_are_errors() -> Iterator[None]:
    """Inside this context, waiting for a CUDA device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
