"""Owns linear on a GPU: y = x W^T + b, of each head with a matrix of its own where there are heads.

NVIDIA's library multiplies dense weights; it takes another way of adding up for another number of tokens. Where a row's bits
must not depend on its batch, this Triton kernel serves: one tile for batches of any size, and one order over the inner size.
It is head_linear's kernel too. Products accumulate in float32, rounded once. Not yet run on a GPU.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from kernels import batch_invariance
from kernels.triton_runtime import Specialization, tl, triton, upcast

_SWIZZLE = 8  # row blocks that share a column block's weights while these are in the cache


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """Rows, columns and inner size that a program works on at a time, and what it works with."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


@triton.jit
def block_of_program(num_row_blocks, num_column_blocks, SWIZZLE: tl.constexpr):
    """Row block and column block of this program: SWIZZLE row blocks for each column block in turn."""
    program = tl.program_id(0)
    width = SWIZZLE * num_column_blocks
    first = program // width * SWIZZLE
    height = tl.minimum(num_row_blocks - first, SWIZZLE)
    inner = program % width
    return first + inner % height, inner // height


@triton.jit
def _linear(
    x,
    weight,
    bias,
    y,
    num_rows,
    inner_size,
    num_columns,
    x_stride,
    x_head_stride,
    weight_stride,
    weight_inner_stride,
    weight_head_stride,
    y_stride,
    y_head_stride,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    """x (T, H, Din), weight (H, Dout, Din), bias (Dout), y (T, H, Dout). Grid: (row blocks * column blocks, heads)."""
    row_block, column_block = block_of_program(tl.cdiv(num_rows, M), tl.cdiv(num_columns, N), SWIZZLE)
    head = tl.program_id(1).to(tl.int64)
    row = row_block * M + tl.arange(0, M)
    column = column_block * N + tl.arange(0, N)
    inner = tl.arange(0, K)
    # What lies outside reads row or column 0 in its stead and is not written.
    x_row = tl.where(row < num_rows, row, 0).to(tl.int64)
    weight_row = tl.where(column < num_columns, column, 0).to(tl.int64)
    x_at = x + head * x_head_stride + x_row[:, None] * x_stride + inner[None, :]
    weight_at = (
        weight + head * weight_head_stride + weight_row[None, :] * weight_stride + inner[:, None] * weight_inner_stride
    )
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, inner_size, K):
        if EVEN_K:
            rows, columns = tl.load(x_at), tl.load(weight_at)
        else:
            left = inner_size - first
            rows = tl.load(x_at, inner[None, :] < left, 0.0)
            columns = tl.load(weight_at, inner[:, None] < left, 0.0)
        if UPCAST:
            rows, columns = rows.to(tl.float32), columns.to(tl.float32)
        total = tl.dot(rows, columns, total, input_precision="ieee")
        x_at += K
        weight_at += K * weight_inner_stride
    if HAS_BIAS:
        total += tl.load(bias + column, column < num_columns, 0.0).to(tl.float32)[None, :]
    y_at = y + head * y_head_stride + row.to(tl.int64)[:, None] * y_stride + column[None, :]
    tl.store(y_at, total.to(y.dtype.element_ty), (row < num_rows)[:, None] & (column < num_columns)[None, :])


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (T, Din), weight (Dout, Din), bias (Dout) -> (T, Dout). Raises ValueError for mixed number formats."""
    if not batch_invariance.is_on():
        return F.linear(x, weight, bias)
    return linear_of_heads(x[:, None], weight[None], bias, invariant_tile(x.dtype))[:, 0]


def invariant_tile(dtype: torch.dtype) -> Tile:
    """The one for all batch sizes: another would use other instructions, which add up in another order."""
    return Tile(32, 64, 32, 4, 2) if dtype == torch.float32 else Tile(64, 128, 64, 4, 4)


def linear_of_heads(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: Tile) -> torch.Tensor:
    """x (T, H, Din), weight (H, Dout, Din), bias (Dout) for all heads or None -> (T, H, Dout)."""
    if x.dtype != weight.dtype:
        raise ValueError(f"a product takes one number format, got {x.dtype} and {weight.dtype}")
    x = x if x.stride(2) == 1 else x.contiguous()
    num_rows, num_heads, inner_size = x.shape
    num_columns = weight.shape[1]
    y = x.new_empty(num_rows, num_heads, num_columns)
    if y.numel():
        _linear[(triton.cdiv(num_rows, tile.m) * triton.cdiv(num_columns, tile.n), num_heads)](
            x, weight, None if bias is None else bias.contiguous(), y, num_rows, inner_size, num_columns,
            x.stride(0), x.stride(1), weight.stride(1), weight.stride(2), weight.stride(0), y.stride(0), y.stride(1),
            HAS_BIAS=bias is not None, EVEN_K=inner_size % tile.k == 0, UPCAST=upcast(x.dtype),
            M=tile.m, N=tile.n, K=tile.k, SWIZZLE=_SWIZZLE, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return y


def specialization(name: str, dtype: str, tile: Tile, *, has_bias: bool, transposed: bool = False) -> Specialization:
    """How _linear is compiled; `transposed` where a weight's rows and not its columns are dense."""
    strides = ["x_stride", "x_head_stride", "weight_stride", "weight_inner_stride", "weight_head_stride"]
    strides += ["y_stride", "y_head_stride"]
    dense = "weight_stride" if transposed else "weight_inner_stride"
    strides.remove(dense)
    pointers = ("x", "weight", "y", *(("bias",) if has_bias else ()))
    return Specialization(
        name=f"{name}-{dtype}",
        kernel=_linear,
        types={
            **dict.fromkeys(pointers, f"*{dtype}"),
            **dict.fromkeys(("num_rows", "inner_size", "num_columns", *strides), "i32"),
        },
        constants={
            dense: 1, "HAS_BIAS": has_bias, "EVEN_K": True, "UPCAST": False, "M": tile.m, "N": tile.n, "K": tile.k,
            "SWIZZLE": _SWIZZLE, **({} if has_bias else {"bias": None}),
        },
        aligned=("inner_size", "num_columns", *strides),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        wgmma=tile.m >= 64,
    )  # fmt: skip


COMPILED = [
    specialization("batch_invariant", "bf16", invariant_tile(torch.bfloat16), has_bias=True),
    specialization("batch_invariant", "fp16", invariant_tile(torch.float16), has_bias=False),
    specialization("batch_invariant", "fp32", invariant_tile(torch.float32), has_bias=False),
]
