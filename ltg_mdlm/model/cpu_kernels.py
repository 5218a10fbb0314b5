"""The operations of the layers between their matrix products, compiled for this machine's CPU.

`cpu_kernels.cpp` is compiled at the first use, and the result is kept in torch's folder of extensions.  Training
chooses between these operations and those of torch (`training.cpu_kernels`).  Exported models do not have this file.

Shapes are those of `attention.py`: B rows, T tokens per row, X columns per row, D width, F inner width, H heads, E
width of a head, R relative-position buckets.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention import Geometry, Kernel, Operations, apply, is_exporting

SOURCE = Path(__file__).with_name("cpu_kernels.cpp")

FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]


@functools.cache
def library() -> Any:
    """The compiled functions.  Raises what the compiler or the loader raises if this fails."""
    from torch.utils.cpp_extension import load

    folder = build_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "compiling").open("w") as claim:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(claim, fcntl.LOCK_EX)
            # `load` waits for ever for a process that was killed while it compiled.
            (folder / "lock").unlink(missing_ok=True)
        load(
            folder.name,
            [str(SOURCE)],
            extra_cflags=FLAGS,
            extra_ldflags=["-fopenmp"],
            build_directory=str(folder),
            is_python_module=False,
        )
    return torch.ops.ltg_mdlm_cpu


def build_folder() -> Path:
    """The folder of the compiled functions, which is different for another source, processor, torch or Python.

    Home folders are shared between machines, and code for one processor may not run on another.
    """
    from torch.utils.cpp_extension import get_default_build_root

    info = Path("/proc/cpuinfo").read_text().splitlines()
    processor = sorted({line for line in info if line.startswith(("model name", "flags"))})
    parts = (SOURCE.read_text(), sys.version, torch.__version__, *FLAGS, *processor)
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / f"ltg_mdlm_cpu_{digest}"


def use_compiled_operations(model: torch.nn.Module) -> None:
    """Let the layers of the model compute with the compiled functions.  Raises what `library` raises."""
    library()
    operations = CompiledOperations()
    for module in model.modules():
        if hasattr(module, "operations"):
            setattr(module, "operations", operations)  # noqa: B010 - for mypy, attributes of modules are tensors


def keep_mask(count: int, rate: float) -> tuple[Tensor | None, float]:
    """`attention.keep_mask` as uint8 [count], from the same random numbers; without dropout, None and 1."""
    dropped = round(rate * 2**16)
    return (library().keep_mask(count, dropped), 2**16 / (2**16 - dropped)) if rate else (None, 1.0)


def are_supported(*tensors: Tensor) -> bool:
    """Whether the compiled functions take the tensors: on a CPU, of one dtype, float32 or bfloat16."""
    dtype = tensors[0].dtype
    return (
        dtype in (torch.float32, torch.bfloat16)
        and all(x.dtype == dtype and x.device.type == "cpu" for x in tensors)
        and not is_exporting()
    )


class CompiledOperations(Operations):
    """`Operations` by the compiled functions, where these take the tensors."""

    def modulated_norm(
        self, x_BTD: Tensor, shift_B1D: Tensor | None, scale_B1D: Tensor | None, eps: float, dtype: torch.dtype
    ) -> Tensor:
        supported = x_BTD.dtype == torch.float32 and dtype in (torch.float32, torch.bfloat16)
        if supported and are_supported(*(x for x in (x_BTD, shift_B1D, scale_B1D) if x is not None)):
            return apply(_ModulatedNorm, x_BTD, shift_B1D, scale_B1D, eps, dtype)
        return super().modulated_norm(x_BTD, shift_B1D, scale_B1D, eps, dtype)

    def gated_attention(
        self,
        projected_BXD: Tensor,
        gate_BXD: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        geometry: Geometry | Kernel,
        num_heads: int,
        scale: float,
        dropout_rate: float,
        eps: float,
    ) -> Tensor:
        mask = () if not isinstance(geometry, Geometry) or geometry.mask_B1XX is None else (geometry.mask_B1XX,)
        if isinstance(geometry, Geometry) and are_supported(projected_BXD, gate_BXD, query_pos, key_pos, *mask):
            arguments = (geometry, num_heads, scale, dropout_rate, eps)
            return apply(_GatedAttention, *arguments, projected_BXD, gate_BXD, query_pos, key_pos)
        return super().gated_attention(
            projected_BXD, gate_BXD, query_pos, key_pos, geometry, num_heads, scale, dropout_rate, eps
        )

    def gated_halves(self, x_BTF: Tensor, eps: float) -> Tensor:
        return apply(_GatedHalves, x_BTF, eps) if are_supported(x_BTF) else super().gated_halves(x_BTF, eps)

    def add_update(self, x_BTD: Tensor, update_BTD: Tensor, gate_B1D: Tensor | None, dropout_rate: float) -> Tensor:
        supported = x_BTD.dtype == torch.float32 and are_supported(update_BTD)
        if supported and are_supported(*(x for x in (x_BTD, gate_B1D) if x is not None)):
            return apply(_AddUpdate, x_BTD, update_BTD, gate_B1D, dropout_rate)
        return super().add_update(x_BTD, update_BTD, gate_B1D, dropout_rate)


class _ModulatedNorm(torch.autograd.Function):
    """Keeps the input only; its mean and variance are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, shift_B1D: Tensor | None, scale_B1D: Tensor | None, eps: float, dtype: torch.dtype
    ) -> Tensor:
        x_BTD = x_BTD.contiguous()
        ctx.eps = eps
        ctx.save_for_backward(x_BTD, scale_B1D)
        out_BTD = torch.empty_like(x_BTD, dtype=dtype)
        library().modulated_norm(x_BTD, shift_B1D, scale_B1D, eps, out_BTD)
        return out_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, scale_B1D = ctx.saved_tensors
        grad_x_BTD = torch.empty_like(x_BTD)
        grad_shift, grad_scale = (None if scale_B1D is None else x_BTD.new_zeros(scale_B1D.shape) for _ in range(2))
        library().modulated_norm_backward(
            grad_BTD.contiguous(), x_BTD, scale_B1D, ctx.eps, grad_x_BTD, grad_shift, grad_scale
        )
        return grad_x_BTD, grad_shift, grad_scale, None, None


class _AddUpdate(torch.autograd.Function):
    """Keeps the update and a dropout mask of one byte per element."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, update_BTD: Tensor, gate_B1D: Tensor | None, dropout_rate: float) -> Tensor:
        x_BTD, update_BTD = x_BTD.contiguous(), update_BTD.contiguous()
        keep, keep_scale = keep_mask(update_BTD.numel(), dropout_rate)
        ctx.keep_scale = keep_scale
        ctx.save_for_backward(update_BTD, gate_B1D, keep)
        out_BTD = torch.empty_like(x_BTD)
        library().add_update(x_BTD, update_BTD, gate_B1D, keep, keep_scale, out_BTD)
        return out_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        update_BTD, gate_B1D, keep = ctx.saved_tensors
        grad_BTD = grad_BTD.contiguous()
        grad_update = torch.empty_like(update_BTD)
        grad_gate = None if gate_B1D is None else grad_BTD.new_zeros(gate_B1D.shape)
        library().add_update_backward(grad_BTD, update_BTD, gate_B1D, keep, ctx.keep_scale, grad_update, grad_gate)
        return grad_BTD, grad_update, grad_gate, None


class _GatedHalves(torch.autograd.Function):
    """Keeps the input only."""

    @staticmethod
    def forward(ctx: Any, x_BTF: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x_BTF)
        inner, gate = x_BTF[:, None].chunk(2, dim=-1)
        out_BTF = x_BTF.new_empty(*x_BTF.shape[:-1], inner.shape[-1])
        library().gated_norm(inner, gate, eps, True, out_BTF)
        return out_BTF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTF: Tensor) -> tuple[Tensor | None, ...]:
        (x_BTF,) = ctx.saved_tensors
        grad_x_BTF = torch.empty_like(x_BTF)
        halves, grad_halves = (x[:, None].chunk(2, dim=-1) for x in (x_BTF, grad_x_BTF))
        library().gated_norm_backward(grad_BTF.contiguous(), *halves, ctx.eps, True, *grad_halves)
        return grad_x_BTF, None


class _GatedAttention(torch.autograd.Function):
    """Attention with heads first, [H, B, X, E], so that a product with a position table is one product per head.

    Keeps query, key, value, context, gate and the probabilities; dropped ones have a minus sign.
    """

    @staticmethod
    def forward(
        ctx: Any,
        geometry: Geometry,
        num_heads: int,
        scale: float,
        dropout_rate: float,
        eps: float,
        projected_BXD: Tensor,
        gate_BXD: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
    ) -> Tensor:
        rows, columns, _ = gate_BXD.shape
        length = (geometry.one_hot_UR.shape[0] + 1) // 2
        heads = projected_BXD.new_empty(3, num_heads, rows, columns, gate_BXD.shape[-1] // num_heads)
        library().copy_heads(by_head(projected_BXD, num_heads), heads)
        query, key, value = heads.flatten(1, 2)
        # Matrix products with 63 columns are several times slower than with 64.
        ctx.num_buckets = key_pos.shape[1]
        query_pos, key_pos = (F.pad(table, (0, 0, 0, -ctx.num_buckets % 16)) for table in (query_pos, key_pos))
        c2p = heads[0].flatten(1, 2) @ key_pos.mT
        p2c = query_pos @ heads[1].flatten(1, 2).mT
        scores = query @ key.mT
        keep, keep_scale = keep_mask(scores.numel(), dropout_rate)
        dropped = None if keep is None else torch.empty_like(scores)
        of_rows = (num_heads, rows)
        library().softmax(
            scores.view(*of_rows, columns, columns),
            c2p.view(*of_rows, columns, -1),
            p2c,
            geometry.mask_B1XX,
            geometry.bucket_XX,
            length,
            scale,
            keep,
            keep_scale,
            dropped,
        )
        context = ((scores if dropped is None else dropped) @ value).view(*of_rows, columns, -1)
        out_BXD = torch.empty_like(gate_BXD, memory_format=torch.contiguous_format)
        library().gated_norm(context.transpose(0, 1), gate_BXD[:, None], eps, False, out_BXD)
        ctx.bucket_XX, ctx.length = geometry.bucket_XX, length
        ctx.scale, ctx.keep_scale, ctx.eps = scale, keep_scale, eps
        ctx.save_for_backward(heads, gate_BXD, query_pos, key_pos, scores, context)
        return out_BXD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BXD: Tensor) -> tuple[Tensor | None, ...]:
        heads, gate_BXD, query_pos, key_pos, probability, context = ctx.saved_tensors
        num_heads, rows, columns, _ = context.shape
        query, key, value = heads.flatten(1, 2)
        grad_context, grad_gate = torch.empty_like(context), torch.empty_like(gate_BXD)
        library().gated_norm_backward(
            grad_BXD.contiguous(),
            context.transpose(0, 1),
            gate_BXD[:, None],
            ctx.eps,
            False,
            grad_context.transpose(0, 1),
            grad_gate[:, None],
        )
        grad_context = grad_context.flatten(0, 1)
        grad_scores = grad_context @ value.mT
        dropped = None if ctx.keep_scale == 1 else torch.empty_like(probability)
        grad_c2p = query.new_empty(num_heads, rows, columns, key_pos.shape[1])
        grad_p2c = query.new_empty(num_heads, key_pos.shape[1], rows * columns)
        library().softmax_backward(
            grad_scores.view(num_heads, rows, columns, columns),
            probability,
            ctx.bucket_XX,
            ctx.length,
            ctx.keep_scale,
            dropped,
            grad_c2p,
            grad_p2c,
        )
        grad_c2p = grad_c2p.flatten(1, 2)
        grad_query_pos = grad_p2c @ heads[1].flatten(1, 2)
        grad_key_pos = grad_c2p.mT @ heads[0].flatten(1, 2)
        grad_heads = torch.empty_like(heads)
        grad_query, grad_key, grad_value = grad_heads.flatten(1, 2)
        torch.bmm(grad_c2p, key_pos, out=grad_heads[0].flatten(1, 2))
        torch.bmm(grad_p2c.mT, query_pos, out=grad_heads[1].flatten(1, 2))
        grad_query.baddbmm_(grad_scores, key, alpha=ctx.scale)
        grad_key.baddbmm_(grad_scores.mT, query, alpha=ctx.scale)
        torch.bmm((probability if dropped is None else dropped).mT, grad_context, out=grad_value)
        grad_projected = grad_heads.new_empty(rows, columns, 3 * gate_BXD.shape[-1])
        library().copy_heads(grad_heads, by_head(grad_projected, num_heads))
        grad_tables = (table[:, : ctx.num_buckets] for table in (grad_query_pos, grad_key_pos))
        return None, None, None, None, None, grad_projected, grad_gate, *grad_tables


def by_head(projected_BXD: Tensor, num_heads: int) -> Tensor:
    """The view [3, H, B, X, E] of query, key and value side by side."""
    return projected_BXD.view(*projected_BXD.shape[:2], 3, num_heads, -1).permute(2, 3, 0, 1, 4)
