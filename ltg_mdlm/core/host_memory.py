"""Copies of device tensors in host memory, made without stopping the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopy:
    """An asynchronous copy of one tensor to the host.

    The copy is queued behind the work that computes the tensor.  `get` waits for the copy only, so the device continues
    with the work that was queued in the meantime.
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
        """The copy, on the CPU."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


class HostBuffers:
    """Reusable host memory for copies of named tensors; page-locked for tensors on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy the tensors into the buffers of the previous call, and return these.  Call `wait` before reading them.

        On a GPU the copies are only queued, before everything that the device is asked to do later.
        """
        buffers = {}
        for name, tensor in tensors.items():
            old = self._buffers.get(name)
            if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype:
                buffers[name] = old
            else:
                buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            buffers[name].copy_(tensor.detach(), non_blocking=True)
        self._buffers = buffers
        if any(tensor.is_cuda for tensor in tensors.values()):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        return dict(buffers)

    def wait(self) -> None:
        """Wait until the last copy is complete.  May be called from any thread."""
        if self._copied is not None:
            self._copied.synchronize()
