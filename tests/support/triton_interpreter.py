"""Triton kernels on a CPU: its interpreter, taught to multiply bfloat16 matrices."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_triton() -> Any:
    """The module; skips the test without one that works: the interpreter of older versions fails with numpy 2.4."""
    oldest = "3.7" if DEVICE.type == "cpu" else None
    return pytest.importorskip("triton", oldest, reason="triton is not installed, or too old for its interpreter")


def multiply_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode bfloat16 operands of `tl.dot`: the interpreter keeps them as uint16 and would multiply these integers.

    Products are exact in float32 and are summed in it, as on a tensor core.
    """
    triton = require_triton()
    interpreter = importlib.import_module("triton.runtime.interpreter")

    def operand(x: Any) -> np.ndarray:
        bits = x.data
        return (bits.astype(np.uint32) << 16).view(np.float32) if x.dtype == triton.language.bfloat16 else bits

    def create_dot(a: Any, b: Any, accumulator: Any, *_: Any) -> Any:
        product = np.matmul(operand(a), operand(b), dtype=accumulator.data.dtype)
        return interpreter.TensorHandle(product + accumulator.data, accumulator.dtype.scalar)

    monkeypatch.setattr(interpreter.interpreter_builder, "create_dot", create_dot)
