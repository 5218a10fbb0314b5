"""Detect code that reads the value of a tensor on the host, which synchronises with the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ltg_mdlm.core.host_memory import HostCopy

_ATEN = torch.ops.aten

_READS = {
    _ATEN._local_scalar_dense.default,  # item(), float(), bool(), if tensor
    _ATEN.equal.default,
    # The sizes of these results are known only on the device.
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN._unique2.default,
    _ATEN.unique_consecutive.default,
    _ATEN.unique_dim.default,
    _ATEN.bincount.default,
}
"""Operations that synchronise with the device."""


class HostRead(AssertionError):
    """Code waits for the device."""


class NoHostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context in which reading the value of a tensor on the host raises `HostRead`, also on the CPU."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Returns False: skipping dynamo would import the compiler of torch, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS or _selects_by_mask(func, args):
            raise HostRead(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def _selects_by_mask(func: Any, args: Any) -> bool:
    """Whether this is x[mask] with a boolean mask, whose result has a size that is known only on the device."""
    if func is not _ATEN.index.Tensor:
        return False
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])


@contextmanager
def no_host_reads_in_a_step() -> Iterator[None]:
    """`NoHostReads`, except for counts that the trainer copies to the host one micro-batch ahead."""

    def arrived(self: HostCopy) -> int:
        with _disable_current_modes():
            return int(self._host)

    with mock.patch.object(HostCopy, "get", arrived), NoHostReads():  # type: ignore[no-untyped-call]
        yield


@contextmanager
def cuda_waits_are_errors() -> Iterator[None]:
    """Context in which a synchronisation with a CUDA device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
