"""Owns low-rank adapters on a GPU: y += scaling * (x A^T) B^T, tokens sorted by adapter.

    shrink   part[s, p] = x[token of p] A^T over one slice of the inputs    (slices, pairs, r) float32
    expand   y[token of p] += scaling * (sum over s of part[s, p]) B^T      slices in order, so that no bit depends on luck

A rank is far smaller than a GPU has processors: slices are what fills it. Both grids depend on shapes alone, with room for
any distribution of tokens over adapters; a program without tokens ends at once. Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from kernels.row_groups import RowGroups
from kernels.triton_runtime import Specialization, next_power_of_2, tl, triton, upcast

_MAX_SLICES = 8
_MIN_SLICE = 512  # inputs that are worth a program
_COLUMNS = 128
_MAX_RANK_TILE = 64  # of the rank that a program computes
_MAX_EXPANDED = 32  # of it that a program takes at a time


@triton.jit
def _shrink(
    x,
    a,
    part,
    order,
    ends,
    tile_groups,
    tile_starts,
    num_rows,
    din,
    rank,
    slice_size,
    x_stride,
    UPCAST: tl.constexpr,
    M: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
):
    """x (T, Din) rows x_stride apart, a (N, r, Din) dense. Grid: (tiles, slices of slice_size inputs, blocks of R of the rank)."""
    tile, input_slice = tl.program_id(0), tl.program_id(1)
    adapter = tl.load(tile_groups + tile)
    if adapter < 0:
        return
    place = tl.load(tile_starts + tile) + tl.arange(0, M)
    inside = place < tl.load(ends + adapter)
    token = tl.load(order + place, inside, 0).to(tl.int64)
    column = tl.program_id(2) * R + tl.arange(0, R)
    a_row = adapter.to(tl.int64) * rank + tl.where(column < rank, column, 0)
    total = tl.zeros((M, R), tl.float32)
    begin = input_slice * slice_size
    end = tl.minimum(begin + slice_size, din)
    for first in range(begin, end, K):
        inner = first + tl.arange(0, K)
        rows = tl.load(x + token[:, None] * x_stride + inner[None, :], (inner < end)[None, :], 0.0)
        columns = tl.load(a + a_row[None, :] * din + inner[:, None], (inner < end)[:, None], 0.0)
        if UPCAST:
            rows, columns = rows.to(tl.float32), columns.to(tl.float32)
        total = tl.dot(rows, columns, total, input_precision="ieee")
    part_at = part + (input_slice.to(tl.int64) * num_rows + place)[:, None] * rank + column[None, :]
    tl.store(part_at, total, inside[:, None] & (column < rank)[None, :])


@triton.jit
def _expand(
    part,
    b,
    scaling,
    y,
    order,
    ends,
    tile_groups,
    tile_starts,
    num_rows,
    dout,
    rank,
    y_stride,
    num_slices,
    UPCAST: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
):
    """b (N, Dout, r) dense, y (T, Dout) rows y_stride apart. Grid: (tiles, column blocks)."""
    tile = tl.program_id(0)
    adapter = tl.load(tile_groups + tile)
    if adapter < 0:
        return
    place = tl.load(tile_starts + tile) + tl.arange(0, M)
    inside = place < tl.load(ends + adapter)
    token = tl.load(order + place, inside, 0).to(tl.int64)
    column = tl.program_id(1) * N + tl.arange(0, N)
    dtype = y.dtype.element_ty
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, rank, R):
        inner = first + tl.arange(0, R)
        has = inside[:, None] & (inner < rank)[None, :]
        low = tl.zeros((M, R), tl.float32)
        for s in range(num_slices):
            low += tl.load(part + (s * num_rows + place).to(tl.int64)[:, None] * rank + inner[None, :], has, 0.0)
        low = low.to(dtype)
        b_row = adapter.to(tl.int64) * dout + tl.where(column < dout, column, 0)
        columns = tl.load(b + b_row[None, :] * rank + inner[:, None], (inner < rank)[:, None], 0.0)
        if UPCAST:
            low, columns = low.to(tl.float32), columns.to(tl.float32)
        total = tl.dot(low, columns, total, input_precision="ieee")
    y_at = y + token[:, None] * y_stride + column[None, :]
    writes = inside[:, None] & (column < dout)[None, :]
    total = tl.load(y_at, writes, 0.0).to(tl.float32) + total * tl.load(scaling + adapter)
    tl.store(y_at, total.to(dtype), writes)


def add_lora(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: torch.Tensor, rows: RowGroups
) -> None:
    """Shapes as in the public call. Raises ValueError for a y whose columns do not lie one after the other."""
    if y.stride(1) != 1 and y.shape[1] > 1:
        raise ValueError("add_lora adds to columns that lie one after the other")
    num_rows, din = x.shape
    rank, dout = a.shape[1], b.shape[1]
    if not y.numel() or not rank:
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    a, b, scaling = a.contiguous(), b.contiguous(), scaling.contiguous()
    tables = rows.order, rows.ends, rows.tile_groups, rows.tile_starts
    num_tiles, wide = len(rows.tile_groups), upcast(x.dtype)
    num_slices, slice_size, k = _slices(din)
    of_rank = _rank_tile(rank)
    part = x.new_empty((num_slices, num_rows, rank), dtype=torch.float32)
    _shrink[(num_tiles, num_slices, triton.cdiv(rank, of_rank))](
        x, a, part, *tables, num_rows, din, rank, slice_size, x.stride(0),
        UPCAST=wide, M=rows.tile_size, R=of_rank, K=k, num_warps=4, num_stages=4,
    )  # fmt: skip
    _expand[(num_tiles, triton.cdiv(dout, _COLUMNS))](
        part, b, scaling, y, *tables, num_rows, dout, rank, y.stride(0), num_slices,
        UPCAST=wide, M=rows.tile_size, N=_COLUMNS, R=min(of_rank, _MAX_EXPANDED), num_warps=4, num_stages=1,
    )  # fmt: skip


def _slices(din: int) -> tuple[int, int, int]:
    """How many slices of the inputs, how many inputs each, and how many at a time; they depend on the layer alone."""
    k = 128 if din >= 128 else 32
    wanted = min(_MAX_SLICES, max(1, din // _MIN_SLICE))
    size = triton.cdiv(triton.cdiv(din, wanted), k) * k
    return triton.cdiv(din, size), size, k


def _rank_tile(rank: int) -> int:
    """Tensor cores take 16 at least."""
    return min(_MAX_RANK_TILE, max(16, next_power_of_2(rank)))


_TABLES = dict.fromkeys(("order", "ends", "tile_groups", "tile_starts"), "*i32")


def _specializations(m: int, rank: int, dtype: str) -> list[Specialization]:
    """Both launches for a tile of m tokens, in a layer of 4,096 inputs."""
    _, _, k = _slices(4096)
    of_rank = _rank_tile(rank)
    return [
        Specialization(
            name=f"shrink-{m}-r{rank}-{dtype}",
            kernel=_shrink,
            types={"x": f"*{dtype}", "a": f"*{dtype}", "part": "*fp32", **_TABLES}
            | dict.fromkeys(("num_rows", "din", "rank", "slice_size", "x_stride"), "i32"),
            constants={"UPCAST": False, "M": m, "R": of_rank, "K": k},
            aligned=("din", "slice_size", "x_stride"),
            num_stages=4,
            wgmma=m >= 64,
        ),
        Specialization(
            name=f"expand-{m}-r{rank}-{dtype}",
            kernel=_expand,
            types={"part": "*fp32", "b": f"*{dtype}", "scaling": "*fp32", "y": f"*{dtype}", **_TABLES}
            | dict.fromkeys(("num_rows", "dout", "rank", "y_stride", "num_slices"), "i32"),
            constants={"UPCAST": False, "M": m, "N": _COLUMNS, "R": min(of_rank, _MAX_EXPANDED)},
            aligned=("dout", "y_stride"),
            num_stages=1,
            wgmma=m >= 64,
        ),
    ]


COMPILED = [
    *_specializations(16, 8, "bf16"),
    *_specializations(16, 16, "bf16"),
    *_specializations(32, 16, "fp16"),
    *_specializations(64, 16, "bf16"),
    *_specializations(64, 64, "bf16"),
    *_specializations(64, 256, "bf16"),
    *_specializations(16, 16, "fp32"),
]
