"""Asynchronous copies of tensors from the device to main memory.  They wait for the copy only, not for later work."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopy:
    """An asynchronous copy of a tensor, so that reading the tensor later does not synchronise with the device.

    The copy is queued directly after the work that computes the tensor.  Work that is launched before `get` keeps the
    device busy while the host waits for the copy.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._host = tensor.clone()

    def get(self) -> Tensor:
        """The tensor on the CPU; waits for the copy."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


class HostBuffers:
    """Buffers in main memory for copies of named tensors, reused by every copy; page-locked for tensors on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._arrived: torch.cuda.Event | None = None

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the tensors, which overwrite those of the last call.  Call `wait` before reading them.

        On a GPU the copies are queued before all later work of the device, so that work cannot change them.
        """
        self._buffers = {name: self._buffer(name, tensor) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            self._buffers[name].copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        return dict(self._buffers)

    def wait(self) -> None:
        """Wait until the last copy is complete; may be called from any thread."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        old = self._buffers.get(name)
        if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype:
            return old
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
