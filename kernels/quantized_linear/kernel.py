"""Owns the product with a quantized weight on a GPU: values are widened in registers, and scales multiply the sums.

    y[t, o] = sum over groups of scale[g, o] * sum over inputs of the group of x[t, i] (value[o, i] - zero[g, o])

Values less their zeros are exact in bfloat16 and float16, so that tensor cores take them as they are and nothing but the
products' sums, float32, is rounded before the end. Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from kernels import batch_invariance
from kernels.linear.kernel import Tile, block_of_program
from kernels.quantized_linear.packed import PackedWeight
from kernels.triton_fp8 import FP8_BITS_SCALE, from_fp8
from kernels.triton_runtime import Specialization, tl, triton, upcast

_SWIZZLE = 8
_FP8_BITS_SCALE = tl.constexpr(FP8_BITS_SCALE)


@triton.jit
def _load_values(values, first, column, exists, din, dout, KIND: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    """Inputs first .. first + K of the outputs `column` -> (K, N): int32, or float16 for fp8. 0 behind the last input."""
    if KIND == "int4":
        word = first // 8 + tl.arange(0, K // 8)
        inside = (word < din // 8)[:, None] & exists[None, :]
        packed = tl.load(values + word.to(tl.int64)[:, None] * dout + column[None, :], inside, 0)
        nibbles = (packed[:, None, :] >> (tl.arange(0, 8) * 4)[None, :, None]) & 15  # (K / 8, 8, N)
        result = tl.reshape(nibbles, (K, N))
    else:
        inner = first + tl.arange(0, K)
        inside = (inner < din)[:, None] & exists[None, :]
        result = tl.load(values + column.to(tl.int64)[None, :] * din + inner[:, None], inside, 0)
        if KIND == "fp8":
            result = from_fp8(result)
    return result


@triton.jit
def _quantized_linear(
    x,
    values,
    scales,
    zeros,
    input_order,
    bias,
    y,
    num_rows,
    din,
    dout,
    group_size,
    x_stride,
    KIND: tl.constexpr,
    GROUPED: tl.constexpr,
    REORDERED: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    """x (T, Din) rows x_stride apart, the weight's tensors as PackedWeight has them, fp8 as uint8; y (T, Dout) dense.

    GROUPED: more than one group; K divides group_size then. Grid: row blocks * column blocks.
    """
    row_block, column_block = block_of_program(tl.cdiv(num_rows, M), tl.cdiv(dout, N), SWIZZLE)
    row, column = row_block * M + tl.arange(0, M), column_block * N + tl.arange(0, N)
    exists = column < dout
    x_at = x + tl.where(row < num_rows, row, 0).to(tl.int64)[:, None] * x_stride
    dtype = tl.float32 if UPCAST else x.dtype.element_ty
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, din, K):
        inner = first + tl.arange(0, K)
        place = tl.load(input_order + inner, inner < din, 0) if REORDERED else inner
        rows = tl.load(x_at + place[None, :], (inner < din)[None, :], 0.0)
        part = _load_values(values, first, column, exists, din, dout, KIND, K, N)
        group = first // group_size
        if HAS_ZEROS:
            part = part.to(tl.int32) - tl.load(zeros + group * dout + column, exists, 0).to(tl.int32)[None, :]
        if GROUPED:
            product = tl.dot(rows.to(dtype), part.to(dtype), input_precision="ieee")
            total += product * tl.load(scales + group * dout + column, exists, 0.0).to(tl.float32)[None, :]
        else:
            total = tl.dot(rows.to(dtype), part.to(dtype), total, input_precision="ieee")
    if not GROUPED:
        total *= tl.load(scales + column, exists, 0.0).to(tl.float32)[None, :]
    if KIND == "fp8":
        total *= _FP8_BITS_SCALE
    if HAS_BIAS:
        total += tl.load(bias + column, exists, 0.0).to(tl.float32)[None, :]
    y_at = y + row.to(tl.int64)[:, None] * dout + column[None, :]
    tl.store(y_at, total.to(y.dtype.element_ty), (row < num_rows)[:, None] & exists[None, :])


def tile(num_tokens: int, dtype: torch.dtype, group_size: int | None) -> Tile:
    """By how many tokens share the weight; group_size is None where there is one group. Raises ValueError for odd groups."""
    if dtype == torch.float32:  # without tensor cores
        wanted = Tile(16, 32, 32, 4, 2)
    elif num_tokens <= 16 and not batch_invariance.is_on():
        wanted = Tile(16, 32, 128, 4, 4)
    elif num_tokens <= 64 or batch_invariance.is_on():
        wanted = Tile(64, 64, 64, 4, 4)
    else:
        wanted = Tile(128, 128, 64, 8, 3)
    if group_size is None:
        return wanted
    k = min(wanted.k, group_size & -group_size)  # the largest power of two that divides it
    if k < 16:
        raise ValueError(f"inputs that share a scale come in multiples of 16, not {group_size}")
    return Tile(wanted.m, wanted.n, k, wanted.num_warps, wanted.num_stages)


def quantized_linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """x (T, Din) -> (T, Dout)."""
    x = x if x.stride(1) == 1 else x.contiguous()
    num_rows, din = x.shape
    y = x.new_empty(num_rows, weight.dout)
    if not y.numel():
        return y
    grouped = len(weight.scales) > 1
    of = tile(num_rows, x.dtype, weight.group_size if grouped else None)
    values = weight.values.view(torch.uint8) if weight.kind == "fp8" else weight.values
    _quantized_linear[(triton.cdiv(num_rows, of.m) * triton.cdiv(weight.dout, of.n),)](
        x, values, weight.scales, weight.zeros, weight.input_order, None if bias is None else bias.contiguous(), y,
        num_rows, din, weight.dout, weight.group_size, x.stride(0),
        **_constants(
            weight.kind, of, grouped, weight.input_order is not None, weight.zeros is not None, bias is not None,
            upcast(x.dtype),
        ),
        num_warps=of.num_warps, num_stages=of.num_stages,
    )  # fmt: skip
    return y


def _constants(
    kind: str, of: Tile, grouped: bool, reordered: bool, has_zeros: bool, has_bias: bool, upcast: bool
) -> dict[str, str | int | bool]:
    return {
        "KIND": kind, "GROUPED": grouped, "REORDERED": reordered, "HAS_ZEROS": has_zeros, "HAS_BIAS": has_bias,
        "UPCAST": upcast,
        "M": of.m, "N": of.n, "K": of.k, "SWIZZLE": _SWIZZLE,
    }  # fmt: skip


def _specialization(
    kind: str,
    num_tokens: int,
    group_size: int | None,
    *,
    dtype: str = "bf16",
    reordered: bool = False,
    zeros: str | None = None,
    max_stack_bytes: int = 0,
) -> Specialization:
    of_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    of = tile(num_tokens, of_dtype, group_size)
    zeros = "*u8" if kind == "int4" else zeros
    absent = {"bias", *(() if zeros else ("zeros",)), *(() if reordered else ("input_order",))}
    pointers = {
        "x": f"*{dtype}", "y": f"*{dtype}", "values": {"fp8": "*u8", "int8": "*i8", "int4": "*i32"}[kind],
        "scales": "*fp16" if kind == "int4" else "*fp32", "zeros": zeros, "input_order": "*i32",
    }  # fmt: skip
    return Specialization(
        name=f"{kind}-T{num_tokens}-{dtype}{f'-groups{group_size}' if group_size else ''}{'-reordered' if reordered else ''}"
        f"{'-zeros' if zeros == '*i16' else ''}",
        kernel=_quantized_linear,
        types={
            **{name: type for name, type in pointers.items() if name not in absent},
            **dict.fromkeys(("num_rows", "din", "dout", "group_size", "x_stride"), "i32"),
        },
        constants={
            **_constants(kind, of, group_size is not None, reordered, bool(zeros), False, False), **dict.fromkeys(absent),
        },
        aligned=("din", "dout", "group_size", "x_stride"),
        num_warps=of.num_warps,
        num_stages=of.num_stages,
        wgmma=of.m >= 64,
        max_stack_bytes=max_stack_bytes,
    )  # fmt: skip


COMPILED = [
    *(
        _specialization(kind, num_tokens, group_size)
        for kind, group_size in (("fp8", None), ("fp8", 128), ("int8", None), ("int4", 128), ("int4", 32))
        for num_tokens in (1, 64, 256)
    ),
    _specialization("int4", 1, 128, dtype="fp16", reordered=True),
    _specialization("int4", 256, 128, dtype="fp16", reordered=True, max_stack_bytes=48),
    _specialization("fp8", 1, 128, dtype="fp32"),
    _specialization("int8", 64, 128, zeros="*i16"),
]
