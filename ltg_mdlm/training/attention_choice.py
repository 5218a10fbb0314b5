"""The attention kernel of a run: the fused Triton kernel where it is right and faster, else that of the library.

On a GPU, `training.attention: auto` compares both on the spot: outputs and gradients with a float32 reference, on a
small batch, then the time at the run's own shapes.  Whatever fails on the way, the run trains with the library.

Shapes: B rows, T tokens per row, X columns of a row with its copies, H heads, E width of a head, R buckets.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltg_mdlm.core.errors import UserError, text_of
from ltg_mdlm.core.machine import synchronise
from ltg_mdlm.core.preemption import Stopped, StopRequest
from ltg_mdlm.model.attention import Geometry, Kernel, attend, batch_geometry, matmul_dtype
from ltg_mdlm.model.transformer import ModelConfig, Transformer
from ltg_mdlm.model.visibility import Visibility, block_visibility
from ltg_mdlm.training.assembly import Run

if TYPE_CHECKING:
    from ltg_mdlm.model.fused_attention import AttentionRules

ALLOWED_ERROR = 2.0
"""The fused kernel may differ from the float32 reference by this factor more than the library does."""

SMALLEST_ERROR = 1e-5
"""Relative differences below this are rounding, whatever the library's are."""

TIMED_PASSES = 10


@dataclass(frozen=True)
class AttentionChoice:
    """What was chosen, and why."""

    kernel: str
    """"fused" or "library"."""
    reason: str
    """One line for the console."""
    milliseconds: dict[str, float]
    """Time of a forward and a backward pass of one layer by kernel; empty if nothing was measured."""
    failed: bool = False
    """Whether the fused kernel failed."""


@dataclass(frozen=True)
class FusedGeometry:
    """Relative positions and visibility of a batch for the fused kernel."""

    rules: AttentionRules

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        scale: float,
        dropout_rate: float,
    ) -> Tensor:
        """See `attention.attend`."""
        from ltg_mdlm.model.fused_attention import fused_attend

        return fused_attend(query, key, value, query_pos, key_pos, self.rules, scale, dropout_rate)


def fused_geometry(
    length: int,
    max_positions: int,
    bucket_size: int,
    document_BX: Tensor | None,
    causal_B: Tensor | None,
    visibility: Visibility | Tensor | None,
    like: Tensor,
    copies: int = 0,
    *,
    width: int,
) -> Geometry | Kernel:
    """`attention.batch_geometry` for the fused kernel and heads of this width.

    A visibility that is a matrix [B, X, X], which only exported models take, is left to the library.
    """
    from ltg_mdlm.model.fused_attention import attention_rules

    if isinstance(visibility, Tensor):
        return batch_geometry(
            length, max_positions, bucket_size, document_BX, causal_B, visibility, like=like, copies=copies
        )
    rows, columns = like.shape[0], length * (1 + copies)
    if document_BX is None:
        document_BX = torch.zeros(rows, columns, dtype=torch.int32, device=like.device)
    if visibility is None and causal_B is not None:
        visibility = Visibility.of_rows(causal_B, columns)
    integers = () if visibility is None else (visibility.group_BX, visibility.order_BX, visibility.limit_BX)
    rules = attention_rules(
        length, max_positions, bucket_size, document_BX.int(), *integers, width=width, dtype=matmul_dtype(like)
    )
    return FusedGeometry(rules)


def use_fused_attention(model: Transformer) -> None:
    """Let the model compute attention by the fused kernel."""
    width = model.config.hidden_size // model.config.num_attention_heads
    model.geometry_of = functools.partial(fused_geometry, width=width)


def resolve_attention(
    run: Run, before: Mapping[str, Any] | None = None, stop: StopRequest | None = None
) -> AttentionChoice:
    """Choose the kernel for a run and give it to the model; all ranks must call it, and get the same.

    `before` are the facts of the run's last start on such a device.  Raises UserError as `choose_attention`, and
    Stopped if the fused kernel fails after a stop signal, which may have ended a compiler.
    """
    ranks, model = run.ranks, run.loss.model
    longest, rows = max(
        (stage.seq_len, rows) for stage, rows in zip(run.schedule.stages, run.loader.micro_batch_rows, strict=True)
    )
    choice = choose_attention(
        run.config.training.attention,
        model.config,
        ranks.device,
        torch.bfloat16 if run.loss.bf16 else torch.float32,
        rows=rows,
        length=longest,
        before=(before or {}).get("attention", {}).get("kernel"),
    )
    if not ranks.all_agree(not (choice.failed and stop is not None and stop.requested)):
        raise Stopped
    # Times differ from process to process, but all must compute the same numbers.
    if ranks.all_agree(choice.kernel == "fused"):
        use_fused_attention(model)
    elif choice.kernel == "fused":
        choice = AttentionChoice("library", "attention: library, as another process chose", choice.milliseconds)
    return choice


def choose_attention(
    setting: str,
    sizes: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rows: int,
    length: int,
    before: str | None = None,
) -> AttentionChoice:
    """Resolve `training.attention` for micro-batches of `rows` rows of `length` tokens.

    `before` is the kernel that a run of `auto` was started with.  It keeps it, so that it computes the same numbers.

    Raises UserError if the setting is "fused" and the fused kernel does not work here.
    """
    if setting == "library" or (setting == "auto" and device.type != "cuda"):
        return AttentionChoice("library", "attention: library", {})
    if setting == "auto" and before == "library":
        return AttentionChoice("library", "attention: library, as before", {})
    try:
        excess = largest_excess(sizes, device, dtype)
        if not excess <= 1:  # also for NaN
            raise RuntimeError(f"its error is {excess:.1f} times the allowed one")
        if setting == "fused":
            return AttentionChoice("fused", "attention: fused, as training.attention says", {})
        if before == "fused":
            return AttentionChoice("fused", "attention: fused, as before", {})
        fused = measured(fused_geometry, sizes, device, dtype, rows=rows, length=length)
    except Exception as error:  # a compiler, a driver or a kernel can fail in any way, and training need not
        if setting == "fused":
            raise UserError(f"training.attention=fused does not work on {device}: {text_of(error)}") from error
        return AttentionChoice(
            "library", f"attention: library; the fused kernel failed: {text_of(error)}", {}, failed=True
        )
    try:
        library = measured(batch_geometry, sizes, device, dtype, rows=rows, length=length)
    except Exception as error:  # most likely for lack of memory
        return AttentionChoice("fused", f"attention: fused; the library's failed: {text_of(error)}", {"fused": fused})
    milliseconds = {"fused": fused, "library": library}
    kernel = min(milliseconds, key=lambda name: milliseconds[name])
    times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in milliseconds.items())
    return AttentionChoice(kernel, f"attention: {kernel} ({times} per layer, forward and backward)", milliseconds)


def largest_excess(sizes: ModelConfig, device: torch.device, dtype: torch.dtype) -> float:
    """The fused kernel's error in units of the allowed one, the largest over the output and all gradients.

    Measured on a small batch with two documents, padding and blocks, without dropout.
    """
    length = 80
    document_BT = torch.zeros(3, length, dtype=torch.int32, device=device)
    document_BT[0, 37:] = 1
    document_BT[1, 61:] = -1
    visibility = block_visibility(document_BT, 16)

    def results(make: Callable[..., Geometry | Kernel], dtype: torch.dtype) -> list[Tensor]:
        return attention_pass(make, sizes, document_BT, visibility, operands(sizes, 3, length, device, dtype))

    reference = results(batch_geometry, torch.float32)
    fused, library = results(fused_geometry, dtype), results(batch_geometry, dtype)
    excesses = []
    for exact, a, b in zip(reference, fused, library, strict=True):
        scale = exact.norm().clamp(min=torch.finfo(torch.float32).tiny)
        error, allowed = ((x.float() - exact).norm() / scale for x in (a, b))
        excesses.append(float(error / (ALLOWED_ERROR * allowed).clamp(min=SMALLEST_ERROR)))
    return float(torch.tensor(excesses).max())  # NaN if one of them is


def measured(
    make: Callable[..., Geometry | Kernel],
    sizes: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rows: int,
    length: int,
) -> float:
    """Milliseconds of a forward and a backward pass of one layer with dropout, the least of several."""
    document_BT = torch.zeros(rows, length, dtype=torch.int32, device=device)
    tensors = operands(sizes, rows, length, device, dtype)
    seconds = []
    for _ in range(2 + TIMED_PASSES):
        synchronise(device)
        start = time.perf_counter()
        attention_pass(make, sizes, document_BT, None, tensors, sizes.attention_probs_dropout_prob)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds[2:])


def operands(sizes: ModelConfig, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and both position tables with random values, equal for every dtype up to rounding."""
    heads = sizes.num_attention_heads
    width = sizes.hidden_size // heads
    shapes = [(rows, heads, length, width)] * 3 + [(heads, sizes.num_buckets, width)] * 2
    generator = torch.Generator(device).manual_seed(0)
    made = [torch.randn(shape, generator=generator, device=device) for shape in shapes]
    made[3:] = [0.1 * table for table in made[3:]]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def attention_pass(
    make: Callable[..., Geometry | Kernel],
    sizes: ModelConfig,
    document_BT: Tensor,
    visibility: Visibility | None,
    tensors: Sequence[Tensor],
    dropout_rate: float = 0.0,
) -> list[Tensor]:
    """The output of attention, and the gradients of its operands for a fixed gradient of the output."""
    rows, length = document_BT.shape
    width = tensors[0].shape[-1]
    extra: dict[str, Any] = {"width": width} if make is fused_geometry else {}
    geometry = make(
        length,
        max(sizes.max_position_embeddings, length),
        sizes.position_bucket_size,
        document_BT,
        None,
        visibility,
        like=tensors[0].new_empty(rows, 0),
        **extra,
    )
    query, key, value, query_pos, key_pos = tensors
    out = attend(query, key, value, query_pos, key_pos, geometry, 1 / (3 * width) ** 0.5, dropout_rate)
    grad = torch.cos(torch.arange(out.numel(), device=out.device)).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]
