"""Detect code that waits for the device: it reads the value of a tensor, or copies Python numbers to the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

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

_ASSIGNMENTS = {_ATEN.index_put_.default, _ATEN.index_put.default, _ATEN._index_put_impl_.default}
"""x[indices] = value."""


class HostRead(AssertionError):
    """Code waits for the device."""


class NoHostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context in which waiting for the device raises `HostRead`, also on the CPU.

    Code waits that reads the value of a tensor on the host, and code that copies Python numbers to the device:
    `x[3] = 0`, `x[index] = 0` with a tensor of integers, `torch.tensor(0.5, device=...)`, `x.new_tensor(0.5)`.
    `x[3:4] = 0`, `x.fill_(0)` and `torch.full` do not wait: there the number is an argument of a kernel.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._numbers = WeakIdKeyDictionary()
        """Tensors without dimensions that torch has made of Python numbers."""
        self._copies = _NoCopiesOfNumbers()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Returns False: skipping dynamo would import the compiler of torch, which takes seconds."""
        return False

    def __enter__(self) -> NoHostReads:
        self._copies.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._copies.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unknown_size = func is _ATEN.repeat_interleave.Tensor and (kwargs or {}).get("output_size") is None
        if func in _READS or unknown_size or (func is _ATEN.index.Tensor and _has_mask(args[1])):
            raise HostRead(f"{func} waits for the device")
        value = args[2] if func in _ASSIGNMENTS else args[1] if func is _ATEN.copy_.default else None
        is_number = value is not None and value in self._numbers
        # x[mask] = number is a fill, which takes the number as an argument.
        if func in _ASSIGNMENTS and _has_mask(args[1]) and not is_number:
            raise HostRead(f"{func} waits for the device, to count the true elements of a mask")
        if is_number and not (func in _ASSIGNMENTS and _has_mask(args[1])):
            raise HostRead(f"{func} waits for the device, to which it copies a Python number; assign to a slice")
        result = func(*args, **(kwargs or {}))
        if func is _ATEN.lift_fresh.default and result.dim() == 0:
            self._numbers[result] = True
        return result


class _NoCopiesOfNumbers(TorchFunctionMode):
    """Context in which making a tensor of Python numbers on a given device raises `HostRead`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        makes = func is torch.tensor or (func is torch.as_tensor and not isinstance(args[0], Tensor))
        if func is Tensor.tolist:
            raise HostRead("torch.Tensor.tolist waits for the device")
        if func is Tensor.new_tensor or (makes and kwargs.get("device") not in (None, "cpu")):
            raise HostRead(
                f"torch.{func.__name__} waits for the device, to which it copies Python numbers; use torch.full"
            )
        return func(*args, **kwargs)


def _has_mask(indices: Any) -> bool:
    """Whether one of the indices is a mask: the number of its true elements is known only on the device."""
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


@contextmanager
def no_host_reads_in_a_step() -> Iterator[None]:
    """`NoHostReads`, except for counts that the trainer copies to the host one micro-batch ahead."""

    def arrived(self: HostCopy) -> int:
        with _disable_current_modes():
            return int(self._host)

    with mock.patch.object(HostCopy, "get", arrived), NoHostReads():
        yield


@contextmanager
def cuda_waits_are_errors() -> Iterator[None]:
    """Context in which a synchronisation with a CUDA device is an error."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
