"""Attention with relative positions and visibility rules as Triton kernels: no tensor [B, H, X, X] exists.

`fused_attend` computes what `attention.attend` computes, for devices with Triton.  A score is

    scale * query_i . key_j + query_i . key_pos[bucket] + key_j . query_pos[bucket],    bucket of place_i - place_j

and a query attends to the keys of its own document that its visibility permits (`attention_rules`).

How the parts that plain attention kernels lack are computed:

- Lookups.  The products of all rows with the position tables, [B, H, X, R], are computed once per pass.  Kernels look
  them up by bucket, with neighbouring threads on neighbouring offsets, so that one access reads one row of a product.
- Gradients of the lookups.  Along a row of a tile, buckets are sorted, so the sum over the columns of one bucket is a
  difference of two cumulative sums.  These are a matrix product with a triangular matrix.  Every cell (row, bucket) is
  summed by one program in a fixed order, without atomic operations: the gradients are deterministic.
- Skipped tiles.  `attention_rules` lists, once per batch, the tiles in which some query may see some key.
- Dropout.  Philox (Salmon et al. 2011) gives every query row a key of 32 bits, and an integer hash of row key and
  column decides about each probability.  The backward pass repeats the hash instead of reading a mask.

Importing this file requires triton 3.5, which CUDA builds of torch from 2.9 on bring.  With TRITON_INTERPRET=1 in the
environment before the import, the kernels run on a CPU, very slowly.

Shapes are suffixes: B rows, H heads, E width of a head, R relative-position buckets, T places, X = c * T columns (c
copies of a row, which share places), N tiles of columns or rows, D offsets between places.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import distance_buckets

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 5):  # without disable_licm of tl.range
    raise ImportError(f"the fused attention needs triton 3.5 (torch 2.9) or later, not {triton.__version__}")

TABLE_PROGRAMS = 32
"""Programs per head that sum the gradient of a position table, each over its own share of the rows"""
LOG2_E = tl.constexpr(math.log2(math.e))


# ---- tiles and launches ----


class Launch(NamedTuple):
    """Rows and columns of a tile of scores, and (warps, pipeline stages) of the kernels."""

    tile: int
    forward: tuple[int, int] = (4, 2)
    query_gradient: tuple[int, int] = (4, 2)
    key_gradient: tuple[int, int] = (4, 2)
    products: tuple[int, int] = (4, 2)


# The largest tiles that spill no registers; `python benchmarks/kernel_resources.py` compiles all of them.
_LAUNCHES_FP32 = {
    32: Launch(32, *[(8, 2)] * 4),
    64: Launch(32, *[(8, 2)] * 4),
    128: Launch(32, *[(16, 2)] * 4),
}
_LAUNCHES_16_BIT = {32: Launch(64), 64: Launch(64), 128: Launch(64, query_gradient=(8, 2), key_gradient=(8, 2))}
_LAUNCHES_16_BIT_BEFORE_HOPPER = {
    32: Launch(32),
    64: Launch(32, key_gradient=(4, 1)),
    128: Launch(16, key_gradient=(8, 1)),
}


def launch_for(width: int, dtype: torch.dtype, capability: tuple[int, int]) -> Launch:
    """The launch for heads of this width; the capability is `torch.cuda.get_device_capability()`, such as (9, 0).

    Raises ValueError for widths other than 16, 32, 64 and 128, and for dtypes other than bfloat16, float16, float32.
    """
    if width not in (16, 32, 64, 128):
        raise ValueError(f"fused attention needs heads of width 16, 32, 64 or 128, not {width}")
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"fused attention needs bfloat16, float16 or float32 operands, not {dtype}")
    if dtype == torch.float32:
        return _LAUNCHES_FP32[max(width, 32)]
    # Except on Hopper and Blackwell's data center GPUs, matrix products read both operands from registers.
    return (_LAUNCHES_16_BIT if capability[0] in (9, 10) else _LAUNCHES_16_BIT_BEFORE_HOPPER)[max(width, 32)]


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)  # otherwise the interpreter


# ---- rules: visibility and relative positions, shared by all layers ----


class AttentionRules(NamedTuple):
    """Visibility and relative positions of a batch, as the kernels read them; made by `attention_rules`."""

    length: int
    """T"""
    num_buckets: int
    """R"""
    tile: int
    """rows and columns of a tile of scores; N are the tiles of a row, of which none spans two copies"""
    bucket_D: Tensor
    """int32: row of the position tables for the offsets query - key from -(T + tile) up"""
    first_offset_R: Tensor
    """int32: smallest offset whose bucket is r or higher; see `_padded_buckets` for R"""
    document_BX: Tensor
    """int32"""
    group_BX: Tensor | None
    order_BX: Tensor | None
    limit_BX: Tensor | None
    """int32, all or none; see `attention_rules`"""
    key_tiles_BNN: Tensor
    """int32: for each tile of queries, the tiles of keys that it may see, in ascending order, then padding"""
    key_tiles_BN: Tensor
    """int32: their number"""
    query_tiles_BNN: Tensor
    """int32: for each tile of keys, the tiles of queries that may see it"""
    query_tiles_BN: Tensor
    """int32: their number"""


def attention_rules(
    length: int,
    max_positions: int,
    bucket_size: int,
    document_BX: Tensor,
    group_BX: Tensor | None = None,
    order_BX: Tensor | None = None,
    limit_BX: Tensor | None = None,
    *,
    width: int,
    dtype: torch.dtype,
) -> AttentionRules:
    """The rules of rows of X = c * T columns, where column x has the place x mod T and T is `length`.

    Query q sees key k if and only if document_q == document_k and (group_q == group_k or order_k < limit_q).  Without
    group, order and limit, documents alone decide.  Padding is document -1, which sees itself.  All tensors are
    integers [B, X] on the device of the attention.  `width` is that of a head, `dtype` that of the operands: tiles
    depend on them.  `max_positions` and `bucket_size` are described at `attention.distance_buckets`.

    Raises ValueError for tensors of other shapes, if some but not all of group, order and limit are given, and for
    widths and dtypes that `launch_for` refuses.
    """
    rows, columns = document_BX.shape
    visibility = [x for x in (group_BX, order_BX, limit_BX) if x is not None]
    if columns % length or not columns:
        raise ValueError(f"rows of {columns} columns are not whole copies of {length} places")
    if len(visibility) not in (0, 3) or any(x.shape != document_BX.shape for x in visibility):
        raise ValueError(f"group, order and limit must all be None or all have the shape [{rows}, {columns}]")
    device = document_BX.device
    document_BX = document_BX.int().contiguous()
    tile = launch_for(width, dtype, _capability(device)).tile

    # Tiles begin anew in every copy, so that places are consecutive within a tile; the last repeats its last column.
    place = torch.arange(triton.cdiv(length, tile) * tile, device=device).clamp(max=length - 1)
    column_NC = (torch.arange(0, columns, length, device=device)[:, None] + place).view(-1, tile)

    def overlap(x_BX: Tensor) -> Tensor:
        """bool[B, N, N]: whether the range of values in a tile of queries meets that in a tile of keys."""
        low_BN, high_BN = x_BX[:, column_NC].aminmax(dim=-1)
        return (low_BN[:, :, None] <= high_BN[:, None]) & (low_BN[:, None] <= high_BN[:, :, None])

    visible_BNN = overlap(document_BX)
    if group_BX is not None and order_BX is not None and limit_BX is not None:
        group_BX, order_BX, limit_BX = (x.int().contiguous() for x in (group_BX, order_BX, limit_BX))
        before_limit = order_BX[:, column_NC].amin(-1)[:, None] < limit_BX[:, column_NC].amax(-1)[:, :, None]
        visible_BNN &= overlap(group_BX) | before_limit

    def tiles(visible_BNN: Tensor) -> tuple[Tensor, Tensor]:
        """The indices of the visible tiles, first, and their number."""
        count = visible_BNN.shape[-1]
        index_N = torch.arange(count, dtype=torch.int32, device=device)
        return torch.where(visible_BNN, index_N, count).sort(-1).values, visible_BNN.sum(-1, dtype=torch.int32)

    return AttentionRules(
        length,
        2 * bucket_size - 1,
        tile,
        *_bucket_tables(length, max_positions, bucket_size, tile, device),
        document_BX,
        group_BX,
        order_BX,
        limit_BX,
        *tiles(visible_BNN),
        *tiles(visible_BNN.mT.contiguous()),
    )


def _padded_buckets(num_buckets: int) -> int:
    """R rounded up to a power of two; at least 32, so that matrix products can have half as many columns."""
    return int(max(triton.next_power_of_2(num_buckets), 32))


@functools.lru_cache(maxsize=64)
def _bucket_tables(
    length: int, max_positions: int, bucket_size: int, tile: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`bucket_D` and `first_offset_R` of `AttentionRules`."""
    bucket_T = distance_buckets(max_positions, bucket_size)
    signed_D = [*(-bucket for bucket in bucket_T[:0:-1]), *bucket_T]
    num_buckets = 2 * bucket_size - 1
    # Tiles reach beyond the first and the last place; their scores there are masked.
    nearest = [
        min(max(offset, 1 - max_positions), max_positions - 1) for offset in range(-length - tile, length + tile)
    ]
    bucket_D = [signed_D[offset + max_positions - 1] + bucket_size - 1 for offset in nearest]
    never = max_positions + tile
    first_offset_R = [-never] + [
        next((d + 1 - max_positions for d, b in enumerate(signed_D) if b + bucket_size - 1 >= r), never)
        for r in range(1, _padded_buckets(num_buckets))
    ]
    as_tensor = functools.partial(torch.tensor, dtype=torch.int32, device=device)
    return as_tensor(bucket_D), as_tensor(first_offset_R)


def causal_visibility(causal_B: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Group, order and limit, int32[B, X], of rows that are causal where `causal_B` is true, and else bidirectional."""
    column_BX = torch.arange(columns, dtype=torch.int32, device=causal_B.device).expand(len(causal_B), -1)
    group_BX = column_BX * causal_B[:, None]
    return group_BX, column_BX, group_BX


# ---- parts of the kernels ----


@triton.jit
def _tile_columns(tile, length, TILE: tl.constexpr):
    """Columns and places of a tile, and whether they exist; those beyond the last place repeat its column."""
    tiles = tl.cdiv(length, TILE)
    place = tile % tiles * TILE + tl.arange(0, TILE)
    return tile // tiles * length + tl.minimum(place, length - 1), place, place < length


@triton.jit
def _row_keys(seed, head, column):
    """32 random bits for each query."""
    zero = column * 0
    bits, _, _, _ = tl.philox(seed, column, zero + head, zero, zero)
    return bits


@triton.jit
def _kept(row_key, column, drop_below):
    """Which probabilities dropout keeps: all with a hash of at least `drop_below`.

    The hash is the finaliser with two multiplications and little bias from github.com/skeeto/hash-prospector, without
    its last shift, which changes only low bits.
    """
    x = row_key.to(tl.uint32) + column.to(tl.uint32) * 0x9E3779B9
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x.to(tl.int32, bitcast=True) >= drop_below


@triton.jit
def _lookup(
    row_product, column_product, bucket_D, row_tile, column_tile, length,
    SIGN: tl.constexpr, R: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """row_product[row, bucket] + column_product[column, bucket], where SIGN * (row - column) is query - key."""
    # The tile is loaded as a vector, in which neighbouring threads have neighbouring offsets: they read one row of a
    # product.  Loads of a matrix would get a layout in which every thread reads a row of its own.
    tiles = tl.cdiv(length, TILE)
    zero_offset = bucket_D + length + TILE + SIGN * TILE * (row_tile % tiles - column_tile % tiles)
    slow, fast = tl.arange(0, TILE * TILE) // TILE, tl.arange(0, TILE * TILE) % TILE
    bucket = tl.load(zero_offset + SIGN * (slow - fast))
    by_row = tl.load(row_product + row_tile * TILE * R + (slow * R + bucket))
    bucket = tl.load(zero_offset + SIGN * (fast - slow))
    by_column = tl.load(column_product + column_tile * TILE * R + (slow * R + bucket))
    by_row = tl.reshape(by_row, (TILE, TILE))
    by_column = tl.trans(tl.reshape(by_column, (TILE, TILE)))
    return by_row.to(tl.float32) + by_column.to(tl.float32)


# ---- kernels: one program per (row of the batch, head, tile) ----


@triton.jit
def _product_kernel(
    query, key, query_pos, key_pos, query_product, key_product,
    query_stride_b, query_stride_h, query_stride_x, key_stride_b, key_stride_h, key_stride_x,
    length, tiles, heads, scale,
    NUM_BUCKETS: tl.constexpr, R: tl.constexpr, E: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """query . key_pos / scale and key . query_pos / scale, [B, H, N * TILE, R] each."""
    tile, bh = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    b, h = (bh // heads).to(tl.int64), bh % heads
    e, t = tl.arange(0, E), tl.arange(0, TILE)
    x, _, _ = _tile_columns(tile, length, TILE)
    q = tl.load(query + b * query_stride_b + h * query_stride_h + x[:, None] * query_stride_x + e[None, :])
    k = tl.load(key + b * key_stride_b + h * key_stride_h + x[:, None] * key_stride_x + e[None, :])
    product = tl.program_id(0).to(tl.int64) * TILE * R + t[:, None] * R
    for start in range(0, R, R // 2):  # in two parts, which need half the registers
        r = start + tl.arange(0, R // 2)
        table = (h * NUM_BUCKETS + r[:, None]) * E + e[None, :]
        kp = tl.load(key_pos + table, r[:, None] < NUM_BUCKETS, 0.0)
        c2p = tl.dot(q, tl.trans(kp), input_precision=PRECISION) / scale
        tl.store(query_product + product + r[None, :], c2p.to(query_product.dtype.element_ty))
        qp = tl.load(query_pos + table, r[:, None] < NUM_BUCKETS, 0.0)
        p2c = tl.dot(k, tl.trans(qp), input_precision=PRECISION) / scale
        tl.store(key_product + product + r[None, :], p2c.to(key_product.dtype.element_ty))


@triton.jit
def _forward_kernel(
    query, key, value, query_product, key_product, out, log_sum, row_keys,
    query_stride_b, query_stride_h, query_stride_x, key_stride_b, key_stride_h, key_stride_x,
    value_stride_b, value_stride_h, value_stride_x, out_stride_b, out_stride_h, out_stride_x,
    bucket_D, document_BX, group_BX, order_BX, limit_BX, key_tiles_BNN, key_tiles_BN,
    length, columns, tiles, heads, scale, seed, drop_below, keep_scale,
    DROPOUT: tl.constexpr, NUM_BUCKETS: tl.constexpr, R: tl.constexpr, E: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The context of a tile of queries, and the logarithm (base 2) of their softmax sums."""
    tile, bh = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    b, h = (bh // heads).to(tl.int64), bh % heads
    e = tl.arange(0, E)
    query += b * query_stride_b + h * query_stride_h
    key += b * key_stride_b + h * key_stride_h
    value += b * value_stride_b + h * value_stride_h
    out += b * out_stride_b + h * out_stride_h
    head_rows = bh.to(tl.int64) * columns
    query_product += bh.to(tl.int64) * tiles * TILE * R
    key_product += bh.to(tl.int64) * tiles * TILE * R

    i, _, exists_i = _tile_columns(tile, length, TILE)
    document_i = tl.where(exists_i, tl.load(document_BX + b * columns + i), -2)
    if group_BX is not None:
        group_i = tl.load(group_BX + b * columns + i)
        limit_i = tl.load(limit_BX + b * columns + i)
    if DROPOUT:
        row_key = _row_keys(tl.load(seed), bh, i)
        tl.store(row_keys + head_rows + i, row_key.to(tl.int32, bitcast=True), exists_i)
    q = tl.load(query + i[:, None] * query_stride_x + e[None, :])

    highest = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    context = tl.zeros((TILE, E), tl.float32)
    for n in tl.range(tl.load(key_tiles_BN + b * tiles + tile), disable_licm=True):  # hoisting would spill registers
        key_tile = tl.load(key_tiles_BNN + (b * tiles + tile) * tiles + n)
        j, _, exists_j = _tile_columns(key_tile, length, TILE)
        k = tl.load(key + j[:, None] * key_stride_x + e[None, :])
        v = tl.load(value + j[:, None] * value_stride_x + e[None, :])
        score = _lookup(query_product, key_product, bucket_D, tile, key_tile, length, 1, R, TILE)
        score = tl.dot(q, tl.trans(k), score, input_precision=PRECISION)
        score *= scale * LOG2_E
        document_j = tl.where(exists_j, tl.load(document_BX + b * columns + j), -3)
        visible = document_i[:, None] == document_j[None, :]
        if group_BX is not None:
            group_j = tl.load(group_BX + b * columns + j)
            order_j = tl.load(order_BX + b * columns + j)
            visible &= (group_i[:, None] == group_j[None, :]) | (order_j[None, :] < limit_i[:, None])
        score = tl.where(visible, score, float("-inf"))

        higher = tl.maximum(highest, tl.max(score, 1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # a row may see nothing in this tile
        probability = tl.exp2(score - finite[:, None])
        shrink = tl.exp2(highest - finite)
        total = total * shrink + tl.sum(probability, 1)
        if DROPOUT:
            probability = tl.where(_kept(row_key[:, None], j[None, :], drop_below), probability, 0.0)
        context = context * shrink[:, None]
        context = tl.dot(probability.to(v.dtype), v, context, input_precision=PRECISION)
        highest = higher

    # Rows beyond the last place see nothing; so may a query whose rules permit no key, whose context is then 0.
    total = tl.where(total == 0.0, 1.0, total)
    context *= (keep_scale / total)[:, None]
    tl.store(out + i[:, None] * out_stride_x + e[None, :], context.to(out.dtype.element_ty), exists_i[:, None])
    tl.store(log_sum + head_rows + i, highest + tl.log2(total), exists_i)


@triton.jit
def _query_gradient_kernel(
    query, key, value, key_pos, query_product, key_product, out, grad_out, log_sum, row_keys,
    grad_query, grad_product, delta,
    query_stride_b, query_stride_h, query_stride_x, key_stride_b, key_stride_h, key_stride_x,
    value_stride_b, value_stride_h, value_stride_x, out_stride_b, out_stride_h, out_stride_x,
    grad_out_stride_b, grad_out_stride_h, grad_out_stride_x,
    grad_query_stride_b, grad_query_stride_h, grad_query_stride_x,
    bucket_D, first_offset_R, document_BX, group_BX, order_BX, limit_BX, key_tiles_BNN, key_tiles_BN,
    length, columns, tiles, heads, scale, drop_below, keep_scale,
    DROPOUT: tl.constexpr, NUM_BUCKETS: tl.constexpr, R: tl.constexpr, E: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of queries and of their products with `key_pos`; also delta = grad_out . out."""
    tile, bh = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    b, h = (bh // heads).to(tl.int64), bh % heads
    e, r, c = tl.arange(0, E), tl.arange(0, R), tl.arange(0, TILE)
    query += b * query_stride_b + h * query_stride_h
    key += b * key_stride_b + h * key_stride_h
    value += b * value_stride_b + h * value_stride_h
    out += b * out_stride_b + h * out_stride_h
    grad_out += b * grad_out_stride_b + h * grad_out_stride_h
    grad_query += b * grad_query_stride_b + h * grad_query_stride_h
    head_rows = bh.to(tl.int64) * columns
    query_product += bh.to(tl.int64) * tiles * TILE * R
    key_product += bh.to(tl.int64) * tiles * TILE * R

    i, place_i, exists_i = _tile_columns(tile, length, TILE)
    document_i = tl.where(exists_i, tl.load(document_BX + b * columns + i), -2)
    if group_BX is not None:
        group_i = tl.load(group_BX + b * columns + i)
        limit_i = tl.load(limit_BX + b * columns + i)
    if DROPOUT:
        row_key = tl.load(row_keys + head_rows + i)
    q = tl.load(query + i[:, None] * query_stride_x + e[None, :])
    go = tl.load(grad_out + i[:, None] * grad_out_stride_x + e[None, :])
    o = tl.load(out + i[:, None] * out_stride_x + e[None, :])
    delta_i = tl.sum(o.to(tl.float32) * go.to(tl.float32), 1)
    tl.store(delta + head_rows + i, delta_i, exists_i)
    log_sum_i = tl.load(log_sum + head_rows + i)

    sum_up_to = tl.where(c[:, None] <= c[None, :], 1.0, 0.0).to(q.dtype)
    first_offset = tl.load(first_offset_R + r)
    grad_q = tl.zeros((TILE, E), tl.float32)
    from_bucket = tl.zeros((TILE, R), tl.float32)  # sums of the scores' gradients over buckets >= r
    for n in tl.range(tl.load(key_tiles_BN + b * tiles + tile), disable_licm=True):  # hoisting would spill registers
        key_tile = tl.load(key_tiles_BNN + (b * tiles + tile) * tiles + n)
        j, _, exists_j = _tile_columns(key_tile, length, TILE)
        k = tl.load(key + j[:, None] * key_stride_x + e[None, :])
        v = tl.load(value + j[:, None] * value_stride_x + e[None, :])
        score = _lookup(query_product, key_product, bucket_D, tile, key_tile, length, 1, R, TILE)
        score = tl.dot(q, tl.trans(k), score, input_precision=PRECISION)
        document_j = tl.where(exists_j, tl.load(document_BX + b * columns + j), -3)
        visible = document_i[:, None] == document_j[None, :]
        if group_BX is not None:
            group_j = tl.load(group_BX + b * columns + j)
            order_j = tl.load(order_BX + b * columns + j)
            visible &= (group_i[:, None] == group_j[None, :]) | (order_j[None, :] < limit_i[:, None])
        probability = tl.exp2(tl.where(visible, score * (scale * LOG2_E) - log_sum_i[:, None], float("-inf")))
        grad_probability = tl.dot(go, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            kept = _kept(row_key[:, None], j[None, :], drop_below)
            grad_probability = tl.where(kept, grad_probability * keep_scale, 0.0)
        grad_score = (probability * (grad_probability - delta_i[:, None])).to(k.dtype)
        grad_q = tl.dot(grad_score, k, grad_q, input_precision=PRECISION)

        # Keys of buckets >= r are those up to column place_i - first_offset of the tile.
        cumulative = tl.dot(grad_score, sum_up_to, input_precision=PRECISION)
        last = (place_i - key_tile % tl.cdiv(length, TILE) * TILE)[:, None] - first_offset[None, :]
        summed = tl.gather(cumulative, tl.minimum(tl.maximum(last, 0), TILE - 1), 1)
        from_bucket += tl.where(last >= 0, summed, 0.0)

    next_bucket = tl.minimum(r + 1, R - 1)[None, :] + tl.zeros((TILE, 1), tl.int32)
    grad_p = from_bucket - tl.gather(from_bucket, next_bucket, 1)
    grad_p = tl.where(r[None, :] < NUM_BUCKETS, grad_p, 0.0).to(q.dtype)
    kp = tl.load(key_pos + h * NUM_BUCKETS * E + r[:, None] * E + e[None, :], r[:, None] < NUM_BUCKETS, 0.0)
    grad_q = tl.dot(grad_p, kp, grad_q * scale, input_precision=PRECISION)
    tl.store(
        grad_query + i[:, None] * grad_query_stride_x + e[None, :],
        grad_q.to(grad_query.dtype.element_ty),
        exists_i[:, None],
    )
    product = tl.program_id(0).to(tl.int64) * TILE * R + c[:, None] * R + r[None, :]
    tl.store(grad_product + product, grad_p)


@triton.jit
def _key_gradient_kernel(
    query, key, value, query_pos, query_product, key_product, grad_out, log_sum, delta, row_keys,
    grad_key, grad_value, grad_product,
    query_stride_b, query_stride_h, query_stride_x, key_stride_b, key_stride_h, key_stride_x,
    value_stride_b, value_stride_h, value_stride_x, grad_out_stride_b, grad_out_stride_h, grad_out_stride_x,
    grad_key_stride_b, grad_key_stride_h, grad_key_stride_x,
    grad_value_stride_b, grad_value_stride_h, grad_value_stride_x,
    bucket_D, first_offset_R, document_BX, group_BX, order_BX, limit_BX, query_tiles_BNN, query_tiles_BN,
    length, columns, tiles, heads, scale, drop_below, keep_scale,
    DROPOUT: tl.constexpr, NUM_BUCKETS: tl.constexpr, R: tl.constexpr, E: tl.constexpr, TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, and of the keys' products with `query_pos`."""
    # Scores are transposed here, [keys, queries], so that the sums over queries are matrix products from registers.
    tile, bh = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    b, h = (bh // heads).to(tl.int64), bh % heads
    e, r, c = tl.arange(0, E), tl.arange(0, R), tl.arange(0, TILE)
    query += b * query_stride_b + h * query_stride_h
    key += b * key_stride_b + h * key_stride_h
    value += b * value_stride_b + h * value_stride_h
    grad_out += b * grad_out_stride_b + h * grad_out_stride_h
    grad_key += b * grad_key_stride_b + h * grad_key_stride_h
    grad_value += b * grad_value_stride_b + h * grad_value_stride_h
    head_rows = bh.to(tl.int64) * columns
    query_product += bh.to(tl.int64) * tiles * TILE * R
    key_product += bh.to(tl.int64) * tiles * TILE * R

    j, place_j, exists_j = _tile_columns(tile, length, TILE)
    document_j = tl.where(exists_j, tl.load(document_BX + b * columns + j), -3)
    if group_BX is not None:
        group_j = tl.load(group_BX + b * columns + j)
        order_j = tl.load(order_BX + b * columns + j)
    k = tl.load(key + j[:, None] * key_stride_x + e[None, :])
    v = tl.load(value + j[:, None] * value_stride_x + e[None, :])

    sum_from = tl.where(c[:, None] >= c[None, :], 1.0, 0.0).to(k.dtype)
    first_offset = tl.load(first_offset_R + r)
    grad_k = tl.zeros((TILE, E), tl.float32)
    grad_v = tl.zeros((TILE, E), tl.float32)
    from_bucket = tl.zeros((TILE, R), tl.float32)  # sums of the scores' gradients over buckets >= r
    for n in tl.range(tl.load(query_tiles_BN + b * tiles + tile), disable_licm=True):  # hoisting would spill registers
        query_tile = tl.load(query_tiles_BNN + (b * tiles + tile) * tiles + n)
        i, _, exists_i = _tile_columns(query_tile, length, TILE)
        q = tl.load(query + i[:, None] * query_stride_x + e[None, :])
        go = tl.load(grad_out + i[:, None] * grad_out_stride_x + e[None, :])
        score = _lookup(key_product, query_product, bucket_D, tile, query_tile, length, -1, R, TILE)
        score = tl.dot(k, tl.trans(q), score, input_precision=PRECISION)
        document_i = tl.where(exists_i, tl.load(document_BX + b * columns + i), -2)
        visible = document_j[:, None] == document_i[None, :]
        if group_BX is not None:
            group_i = tl.load(group_BX + b * columns + i)
            limit_i = tl.load(limit_BX + b * columns + i)
            visible &= (group_j[:, None] == group_i[None, :]) | (order_j[:, None] < limit_i[None, :])
        log_sum_i = tl.load(log_sum + head_rows + i)
        probability = tl.exp2(tl.where(visible, score * (scale * LOG2_E) - log_sum_i[None, :], float("-inf")))
        grad_probability = tl.dot(v, tl.trans(go), input_precision=PRECISION)
        dropped = probability
        if DROPOUT:
            kept = _kept(tl.load(row_keys + head_rows + i)[None, :], j[:, None], drop_below)
            dropped = tl.where(kept, probability, 0.0)
            grad_probability = tl.where(kept, grad_probability * keep_scale, 0.0)
        grad_v = tl.dot(dropped.to(v.dtype), go, grad_v, input_precision=PRECISION)
        delta_i = tl.load(delta + head_rows + i)
        grad_score = (probability * (grad_probability - delta_i[None, :])).to(k.dtype)
        grad_k = tl.dot(grad_score, q, grad_k, input_precision=PRECISION)

        # Queries of buckets >= r are those from column place_j + first_offset of the tile on.
        cumulative = tl.dot(grad_score, sum_from, input_precision=PRECISION)
        first = (place_j - query_tile % tl.cdiv(length, TILE) * TILE)[:, None] + first_offset[None, :]
        summed = tl.gather(cumulative, tl.minimum(tl.maximum(first, 0), TILE - 1), 1)
        from_bucket += tl.where(first < TILE, summed, 0.0)

    next_bucket = tl.minimum(r + 1, R - 1)[None, :] + tl.zeros((TILE, 1), tl.int32)
    grad_p = from_bucket - tl.gather(from_bucket, next_bucket, 1)
    grad_p = tl.where(r[None, :] < NUM_BUCKETS, grad_p, 0.0).to(k.dtype)
    qp = tl.load(query_pos + h * NUM_BUCKETS * E + r[:, None] * E + e[None, :], r[:, None] < NUM_BUCKETS, 0.0)
    grad_k = tl.dot(grad_p, qp, grad_k * scale, input_precision=PRECISION)
    tl.store(
        grad_key + j[:, None] * grad_key_stride_x + e[None, :], grad_k.to(grad_key.dtype.element_ty), exists_j[:, None]
    )
    tl.store(
        grad_value + j[:, None] * grad_value_stride_x + e[None, :],
        (grad_v * keep_scale).to(grad_value.dtype.element_ty),
        exists_j[:, None],
    )
    product = tl.program_id(0).to(tl.int64) * TILE * R + c[:, None] * R + r[None, :]
    tl.store(grad_product + product, grad_p)


@triton.jit
def _table_gradient_kernel(
    source, grad_product, partial, stride_b, stride_h, stride_x, length, tiles, rows, heads, tiles_per_program,
    NUM_BUCKETS: tl.constexpr, R: tl.constexpr, E: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_product^T . source over one share of the tiles of a head: [programs, H, R, E]."""
    h, share = tl.program_id(0) % heads, tl.program_id(0) // heads
    e, r, c = tl.arange(0, E), tl.arange(0, R), tl.arange(0, TILE)
    table = tl.zeros((R, E), tl.float32)
    for n in range(share * tiles_per_program, tl.minimum((share + 1) * tiles_per_program, rows * tiles)):
        b, tile = (n // tiles).to(tl.int64), n % tiles
        x, _, _ = _tile_columns(tile, length, TILE)
        s = tl.load(source + b * stride_b + h * stride_h + x[:, None] * stride_x + e[None, :])
        # Rows beyond the last place have gradients of zero.
        g = tl.load(grad_product + ((b * heads + h) * tiles + tile) * TILE * R + c[:, None] * R + r[None, :])
        table = tl.dot(tl.trans(g), s, table, input_precision=PRECISION)
    to = ((share * heads + h) * NUM_BUCKETS + r[:, None]) * E + e[None, :]
    tl.store(partial + to, table, r[:, None] < NUM_BUCKETS)


# ---- the operation, which is opaque to torch.compile ----


def _constants(query: Tensor, num_buckets: int, tile: int) -> dict[str, Any]:
    """Compile-time arguments that all kernels share."""
    return {
        "NUM_BUCKETS": num_buckets,
        "R": _padded_buckets(num_buckets),
        "E": query.shape[-1],
        "TILE": tile,
        "PRECISION": "ieee",  # float32 products, where TF32 would be the default
    }


def _dropout_threshold(rate: float) -> tuple[int, float]:
    """The lowest hash, as int32, that is kept, and the factor of kept probabilities."""
    dropped = round(rate * 2**32)
    return dropped - 2**31, 2**32 / (2**32 - dropped)


def _products(
    query: Tensor,
    key: Tensor,
    query_pos: Tensor,
    key_pos: Tensor,
    length: int,
    tiles: int,
    scale: float,
    launch: Launch,
    constants: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """query . key_pos / scale and key . query_pos / scale, [B, H, N * TILE, R] each."""
    rows, heads = query.shape[:2]
    query_product, key_product = (
        query.new_empty(rows, heads, tiles * constants["TILE"], constants["R"]) for _ in range(2)
    )
    _product_kernel[(rows * heads * tiles,)](
        query, key, query_pos, key_pos, query_product, key_product, *query.stride()[:3], *key.stride()[:3],
        length, tiles, heads, scale, num_warps=launch.products[0], num_stages=launch.products[1], **constants,
    )  # fmt: skip
    return query_product, key_product


@torch.library.custom_op("ltg_mdlm::fused_attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_pos: Tensor,
    key_pos: Tensor,
    seed: Tensor | None,
    length: int,
    num_buckets: int,
    tile: int,
    bucket_D: Tensor,
    first_offset_R: Tensor,
    document_BX: Tensor,
    group_BX: Tensor | None,
    order_BX: Tensor | None,
    limit_BX: Tensor | None,
    key_tiles_BNN: Tensor,
    key_tiles_BN: Tensor,
    query_tiles_BNN: Tensor,
    query_tiles_BN: Tensor,
    scale: float,
    dropout_rate: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The context; what the backward pass needs: logarithms of the softmax sums and keys of dropout, [B, H, X] each."""
    constants = _constants(query, num_buckets, tile)
    launch = launch_for(query.shape[-1], query.dtype, _capability(query.device))
    rows, heads, columns, _ = query.shape
    out, log_sum, row_keys = _empty_results(query, dropout_rate)
    tiles = key_tiles_BN.shape[1]
    query_product, key_product = _products(query, key, query_pos, key_pos, length, tiles, scale, launch, constants)
    _forward_kernel[(rows * heads * tiles,)](
        query, key, value, query_product, key_product, out, log_sum, row_keys,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *out.stride()[:3],
        bucket_D, document_BX, group_BX, order_BX, limit_BX, key_tiles_BNN, key_tiles_BN,
        length, columns, tiles, heads, scale, seed, *_dropout_threshold(dropout_rate),
        DROPOUT=dropout_rate > 0, num_warps=launch.forward[0], num_stages=launch.forward[1], **constants,
    )  # fmt: skip
    return out, log_sum, row_keys


def _empty_results(query: Tensor, dropout_rate: float) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads, columns, width = query.shape
    out = query.new_empty(rows, columns, heads, width).transpose(1, 2)
    log_sum = query.new_empty(rows, heads, columns, dtype=torch.float32)
    return out, log_sum, torch.empty_like(log_sum if dropout_rate else log_sum[:0], dtype=torch.int32)


@_attention.register_fake
def _(query: Tensor, *operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(query, operands[-1])


@torch.library.custom_op("ltg_mdlm::fused_attention_backward", mutates_args=())
def _attention_backward(
    grad_out: Tensor,
    out: Tensor,
    log_sum: Tensor,
    row_keys: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_pos: Tensor,
    key_pos: Tensor,
    length: int,
    num_buckets: int,
    tile: int,
    bucket_D: Tensor,
    first_offset_R: Tensor,
    document_BX: Tensor,
    group_BX: Tensor | None,
    order_BX: Tensor | None,
    limit_BX: Tensor | None,
    key_tiles_BNN: Tensor,
    key_tiles_BN: Tensor,
    query_tiles_BNN: Tensor,
    query_tiles_BN: Tensor,
    scale: float,
    dropout_rate: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value, query_pos and key_pos."""
    constants = _constants(query, num_buckets, tile)
    launch = launch_for(query.shape[-1], query.dtype, _capability(query.device))
    rows, heads, columns, width = query.shape
    tiles = key_tiles_BN.shape[1]
    # The products are computed again, since keeping them would double what attention keeps.
    query_product, key_product = _products(query, key, query_pos, key_pos, length, tiles, scale, launch, constants)
    grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
    grad_query_product, grad_key_product = torch.empty_like(query_product), torch.empty_like(key_product)
    delta = torch.empty_like(log_sum)
    grid = (rows * heads * tiles,)
    rules = bucket_D, first_offset_R, document_BX, group_BX, order_BX, limit_BX
    rest = length, columns, tiles, heads, scale, *_dropout_threshold(dropout_rate)
    inputs = *query.stride()[:3], *key.stride()[:3], *value.stride()[:3]
    _query_gradient_kernel[grid](
        query, key, value, key_pos, query_product, key_product, out, grad_out, log_sum, row_keys,
        grad_query, grad_query_product, delta,
        *inputs, *out.stride()[:3], *grad_out.stride()[:3], *grad_query.stride()[:3],
        *rules, key_tiles_BNN, key_tiles_BN, *rest,
        DROPOUT=dropout_rate > 0, num_warps=launch.query_gradient[0], num_stages=launch.query_gradient[1], **constants,
    )  # fmt: skip
    _key_gradient_kernel[grid](
        query, key, value, query_pos, query_product, key_product, grad_out, log_sum, delta, row_keys,
        grad_key, grad_value, grad_key_product,
        *inputs, *grad_out.stride()[:3], *grad_key.stride()[:3], *grad_value.stride()[:3],
        *rules, query_tiles_BNN, query_tiles_BN, *rest,
        DROPOUT=dropout_rate > 0, num_warps=launch.key_gradient[0], num_stages=launch.key_gradient[1], **constants,
    )  # fmt: skip

    tiles_per_program = triton.cdiv(rows * tiles, TABLE_PROGRAMS)
    programs = triton.cdiv(rows * tiles, tiles_per_program)
    grad_tables = []
    for source, grad_product in ((key, grad_key_product), (query, grad_query_product)):
        partial = log_sum.new_empty(programs, heads, num_buckets, width)
        _table_gradient_kernel[(programs * heads,)](
            source, grad_product, partial, *source.stride()[:3], length, tiles, rows, heads, tiles_per_program,
            num_warps=launch.products[0], num_stages=launch.products[1], **constants,
        )  # fmt: skip
        grad_tables.append(partial.sum(0).to(query.dtype))
    return grad_query, grad_key, grad_value, grad_tables[0], grad_tables[1]


@_attention_backward.register_fake
def _(grad_out: Tensor, out: Tensor, log_sum: Tensor, row_keys: Tensor, *operands: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) for x in operands[:5])


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, query_pos, key_pos, _, *rules, ctx.scale, ctx.dropout_rate = inputs
    ctx.save_for_backward(*output, query, key, value, query_pos, key_pos)
    ctx.rules = rules


def _backward(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    gradients = _attention_backward(grad_out, *ctx.saved_tensors, *ctx.rules, ctx.scale, ctx.dropout_rate)
    return *gradients, *[None] * (3 + len(ctx.rules))


_attention.register_autograd(_backward, setup_context=_keep_for_backward)


def fused_attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_pos: Tensor,
    key_pos: Tensor,
    rules: AttentionRules,
    scale: float,
    dropout_rate: float,
    seed: Tensor | None = None,
) -> Tensor:
    """softmax(scores) with dropout, times value: [B, H, X, E], in memory as [B, X, H, E].

    Args:
        query, key, value: [B, H, X, E] in bfloat16, float16 or float32; any strides, but the last must be 1
        query_pos, key_pos: position tables [H, R, E], already scaled
        rules: see `attention_rules`
        dropout_rate: share of probabilities set to 0; the others are divided by 1 - dropout_rate
        seed: int64[1] on the same device; the dropout mask is a function of it.  None: drawn from the device's default
            generator, so that activation checkpointing repeats the mask.  The draw does not wait for the device.

    All five operands receive gradients, which are deterministic.  Matrix products of float32 operands are computed in
    float32, not TF32.  A query that may see no key has the context 0.

    Raises ValueError for widths and dtypes that `launch_for` refuses, and for rules and tables of other shapes.
    """
    rows, heads, columns, width = query.shape
    if launch_for(width, query.dtype, _capability(query.device)).tile != rules.tile:
        raise ValueError(f"the rules were made for another width or dtype than {width} and {query.dtype}")
    if rules.document_BX.shape != (rows, columns):
        raise ValueError(f"rules of {list(rules.document_BX.shape)} rows and columns for queries of {[rows, columns]}")
    if query_pos.shape != (heads, rules.num_buckets, width) or key_pos.shape != query_pos.shape:
        raise ValueError(f"position tables must be {[heads, rules.num_buckets, width]}, not {list(query_pos.shape)}")
    if not dropout_rate:
        seed = None
    elif seed is None:
        seed = torch.randint(2**63 - 1, (1,), device=query.device)
    operands = [x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)]
    tables = [x.to(query.dtype).contiguous() for x in (query_pos, key_pos)]
    out, _, _ = _attention(*operands, *tables, seed, *rules, scale, dropout_rate)
    return cast(Tensor, out)
