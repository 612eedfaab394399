"""Owns the mixture of gated MLPs on a GPU: pairs of token and expert sorted by expert, and two grouped products.

    h[p] = act(x[token of p] Wg^T) * (x[token of p] Wu^T)   one launch; gate and up of a column meet in its epilogue
    o[p] = h[p] Wd^T                                        one launch; back in the order of tokens
    y[t] = sum over k of weight * o                         one launch; in the order of k, so that no bit depends on luck

Products accumulate in float32 and are rounded where the reference rounds. Every grid depends on shapes alone: it has room
for the worst distribution over experts, and a program without rows ends at once. Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from kernels import batch_invariance
from kernels.activation.kernel import gated
from kernels.linear.kernel import Tile, block_of_program
from kernels.row_groups import RowGroups, group_rows
from kernels.triton_runtime import Specialization, tl, triton, upcast

_SWIZZLE = 8  # tiles of rows that share a column block's weights while these are in the cache
_COMBINE_BLOCK = 1024


@triton.jit
def _gate_up(
    x,
    weight,
    h,
    order,
    ends,
    tile_groups,
    tile_starts,
    num_tiles,
    hidden_size,
    size,
    top_k,
    x_stride,
    ACT: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    """x (T, D) rows x_stride apart, weight (E, 2F, D) dense -> h (pairs, F) by expert. Grid: tiles * column blocks of F."""
    tile, column_block = block_of_program(num_tiles, tl.cdiv(size, N), SWIZZLE)
    expert = tl.load(tile_groups + tile)
    if expert < 0:
        return
    place = tl.load(tile_starts + tile) + tl.arange(0, M)
    inside = place < tl.load(ends + expert)
    token = tl.load(order + place, inside, 0) // top_k
    column = column_block * N + tl.arange(0, N)
    row_of_weight = tl.where(column < size, column, 0)  # a column outside reads another's weights and is not written
    inner = tl.arange(0, K)
    x_at = x + token.to(tl.int64)[:, None] * x_stride + inner[None, :]
    gate_at = weight + (expert.to(tl.int64) * 2 * size + row_of_weight)[None, :] * hidden_size + inner[:, None]
    up_at = gate_at + size * hidden_size
    gate, up = tl.zeros((M, N), tl.float32), tl.zeros((M, N), tl.float32)
    for first in range(0, hidden_size, K):
        if EVEN_K:
            rows, gate_weight, up_weight = tl.load(x_at), tl.load(gate_at), tl.load(up_at)
        else:
            left = hidden_size - first
            rows = tl.load(x_at, inner[None, :] < left, 0.0)
            gate_weight = tl.load(gate_at, inner[:, None] < left, 0.0)
            up_weight = tl.load(up_at, inner[:, None] < left, 0.0)
        if UPCAST:
            rows, gate_weight, up_weight = rows.to(tl.float32), gate_weight.to(tl.float32), up_weight.to(tl.float32)
        gate = tl.dot(rows, gate_weight, gate, input_precision="ieee")
        up = tl.dot(rows, up_weight, up, input_precision="ieee")
        x_at += K
        gate_at += K
        up_at += K
    dtype = h.dtype.element_ty
    result = gated(gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32), 0.0, dtype, ACT)
    h_at = h + place.to(tl.int64)[:, None] * size + column[None, :]
    tl.store(h_at, result.to(dtype), inside[:, None] & (column < size)[None, :])


@triton.jit
def _down(
    h,
    weight,
    out,
    order,
    ends,
    tile_groups,
    tile_starts,
    num_tiles,
    size,
    hidden_size,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    """h (pairs, F) by expert, weight (E, D, F) dense -> out (pairs, D) by token. Grid: tiles * column blocks of D."""
    tile, column_block = block_of_program(num_tiles, tl.cdiv(hidden_size, N), SWIZZLE)
    expert = tl.load(tile_groups + tile)
    if expert < 0:
        return
    place = tl.load(tile_starts + tile) + tl.arange(0, M)
    inside = place < tl.load(ends + expert)
    pair = tl.load(order + place, inside, 0).to(tl.int64)
    column = column_block * N + tl.arange(0, N)
    row_of_weight = tl.where(column < hidden_size, column, 0)
    inner = tl.arange(0, K)
    h_at = h + tl.where(inside, place, 0).to(tl.int64)[:, None] * size + inner[None, :]
    weight_at = weight + (expert.to(tl.int64) * hidden_size + row_of_weight)[None, :] * size + inner[:, None]
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, size, K):
        if EVEN_K:
            rows, columns = tl.load(h_at), tl.load(weight_at)
        else:
            left = size - first
            rows = tl.load(h_at, inner[None, :] < left, 0.0)
            columns = tl.load(weight_at, inner[:, None] < left, 0.0)
        if UPCAST:
            rows, columns = rows.to(tl.float32), columns.to(tl.float32)
        total = tl.dot(rows, columns, total, input_precision="ieee")
        h_at += K
        weight_at += K
    out_at = out + pair[:, None] * hidden_size + column[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), inside[:, None] & (column < hidden_size)[None, :])


@triton.jit
def _combine(out, weights, ids, y, hidden_size, num_experts, top_k, BLOCK: tl.constexpr):
    """out (pairs, D), weights, ids (T, top_k) dense -> y (T, D). Grid: T * column blocks, in one dimension."""
    num_blocks = tl.cdiv(hidden_size, BLOCK)
    token = (tl.program_id(0) // num_blocks).to(tl.int64)
    column = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(top_k):
        pair = token * top_k + k
        expert = tl.load(ids + pair)
        width = tl.where((expert >= 0) & (expert < num_experts), hidden_size, 0)  # nothing where it is not here
        value = tl.load(out + pair * hidden_size + column, column < width, 0.0)
        total += tl.load(weights + pair).to(tl.float32) * value.to(tl.float32)
    tl.store(y + token * hidden_size + column, total.to(y.dtype.element_ty), column < hidden_size)


def tiles(num_pairs: int, num_experts: int, dtype: torch.dtype) -> tuple[Tile, Tile]:
    """Of the gate_up and of the down product, by how many rows an expert has on average."""
    if dtype == torch.float32:  # without tensor cores
        return Tile(16, 32, 32, 4, 2), Tile(16, 64, 32, 4, 2)
    average = 64 if batch_invariance.is_on() else num_pairs / num_experts
    if average <= 16:
        return Tile(16, 64, 128, 4, 4), Tile(16, 64, 128, 4, 4)
    if average <= 64:
        return Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 4, 4)
    return Tile(128, 64, 64, 8, 4), Tile(128, 128, 64, 8, 4)


def moe_experts(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, act: str, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """x (T, D), gate_up (E, 2F, D), down (E, D, F), weights, ids (T, k) -> (T, D). Raises ValueError for mixed formats."""
    if not x.dtype == gate_up.dtype == down.dtype:
        raise ValueError(f"experts and tokens have one number format, got {x.dtype}, {gate_up.dtype}, {down.dtype}")
    num_tokens, top_k = ids.shape
    num_experts, hidden_size, size = down.shape
    y = x.new_empty(x.shape)
    if not y.numel():
        return y
    x = x if x.stride(1) == 1 else x.contiguous()
    gate_up, down, weights, ids = gate_up.contiguous(), down.contiguous(), weights.contiguous(), ids.contiguous()
    first, second = tiles(ids.numel(), num_experts, x.dtype)
    pairs = group_rows(ids.flatten(), num_experts, first.m)
    h, out = x.new_empty(ids.numel(), size), x.new_empty(ids.numel(), hidden_size)
    num_tiles, tables = len(pairs.tile_groups), _tables(pairs)
    _gate_up[(num_tiles * triton.cdiv(size, first.n),)](
        x, gate_up, h, *tables, num_tiles, hidden_size, size, top_k, x.stride(0),
        ACT=act, **_constants(first, hidden_size, upcast(x.dtype)), num_warps=first.num_warps, num_stages=first.num_stages,
    )  # fmt: skip
    _down[(num_tiles * triton.cdiv(hidden_size, second.n),)](
        h, down, out, *tables, num_tiles, size, hidden_size,
        **_constants(second, size, upcast(x.dtype)), num_warps=second.num_warps, num_stages=second.num_stages,
    )  # fmt: skip
    _combine[(num_tokens * triton.cdiv(hidden_size, _COMBINE_BLOCK),)](
        out, weights, ids, y, hidden_size, num_experts, top_k, BLOCK=_COMBINE_BLOCK, num_warps=4
    )
    return y


def _tables(rows: RowGroups) -> tuple[torch.Tensor, ...]:
    return rows.order, rows.ends, rows.tile_groups, rows.tile_starts


def _constants(tile: Tile, inner_size: int, upcast: bool) -> dict[str, int | bool]:
    return {
        "EVEN_K": inner_size % tile.k == 0,
        "UPCAST": upcast,
        "M": tile.m,
        "N": tile.n,
        "K": tile.k,
        "SWIZZLE": _SWIZZLE,
    }


_TABLES = dict.fromkeys(("order", "ends", "tile_groups", "tile_starts"), "*i32")
_SIZES = dict.fromkeys(("num_tiles", "hidden_size", "size"), "i32")


def _specializations(average: int, dtype: str) -> list[Specialization]:
    """Both products where experts have so many rows on average."""
    of_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    first, second = tiles(average, 1, of_dtype)
    shared = {"aligned": ("hidden_size", "size", "x_stride")}
    return [
        Specialization(
            name=f"gate_up-{average}-{dtype}",
            kernel=_gate_up,
            types={
                **dict.fromkeys(("x", "weight", "h"), f"*{dtype}"),
                **_TABLES,
                **_SIZES,
                "top_k": "i32",
                "x_stride": "i32",
            },
            constants={"ACT": "silu", **_constants(first, first.k, False)},
            num_warps=first.num_warps,
            num_stages=first.num_stages,
            wgmma=first.m >= 64,
            **shared,
        ),
        Specialization(
            name=f"down-{average}-{dtype}",
            kernel=_down,
            types={**dict.fromkeys(("h", "weight", "out"), f"*{dtype}"), **_TABLES, **_SIZES},
            constants=_constants(second, second.k, False),
            num_warps=second.num_warps,
            num_stages=second.num_stages,
            wgmma=second.m >= 64,
            **shared,
        ),
    ]


COMPILED = [
    *_specializations(1, "bf16"),
    *_specializations(64, "bf16"),
    *_specializations(512, "bf16"),
    *_specializations(512, "fp16"),
    *_specializations(64, "fp32"),
    Specialization(
        name="combine-bf16",
        kernel=_combine,
        types={"out": "*bf16", "weights": "*fp32", "ids": "*i64", "y": "*bf16"}
        | dict.fromkeys(("hidden_size", "num_experts", "top_k"), "i32"),
        constants={"BLOCK": _COMBINE_BLOCK},
        aligned=("hidden_size",),
    ),
]
