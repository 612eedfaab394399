"""Owns RMSNorm on a GPU: y = x / sqrt(mean(x^2) + eps) * weight, with the residual add before it where there is one.

A program holds whole rows in registers, so that each number is read once. Sums are float32; roundings are the reference's.
Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from kernels.triton_runtime import Specialization, next_power_of_2, tl, triton

MAX_SIZE = 32768  # of a row that a program's registers can hold


@triton.jit
def _rms_norm(
    x,
    residual,
    weight,
    y,
    num_rows,
    size,
    inner,
    outer_stride,
    inner_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row i of x begins at i // inner * outer_stride + i % inner * inner_stride; residual and y (num_rows, size) are dense.

    Grid: one program for each ROWS rows.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < num_rows) & (column < size)
    begin = (row // inner).to(tl.int64) * outer_stride + (row % inner) * inner_stride
    place = row.to(tl.int64) * size + column
    value = tl.load(x + begin + column, inside, 0.0)
    dtype = value.dtype
    value = value.to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + place, inside, 0.0).to(tl.float32)
        value = value.to(dtype)
        tl.store(residual + place, value, inside)
        value = value.to(tl.float32)
    square = tl.sum(value * value, 1) / size
    normed = (value * tl.rsqrt(square + eps)[:, None]).to(dtype)
    if HAS_WEIGHT:
        # The rounding before the scale is the reference's.
        normed = normed.to(tl.float32) * tl.load(weight + column, column < size, 0.0).to(tl.float32)
    tl.store(y + place, normed.to(dtype), inside)


def tile(size: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and its warps, for rows of `size` numbers."""
    block = next_power_of_2(max(size, 16))
    rows = max(1, 512 // block)  # short rows, the heads of q and k, share a program
    return rows, block, min(32, max(2, rows * block // 512))


def as_rows(x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """x (..., D), copied where it must be, and its rows' inner count, outer stride and inner stride, see _rms_norm."""
    if x.dim() == 3 and x.stride(2) == 1:  # heads, also of a slice
        return x, (x.shape[1], x.stride(0), x.stride(1))
    return x.contiguous(), (1, x.shape[-1], 0)


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x (..., D) with D at most MAX_SIZE, weight (D) or None -> (..., D)."""
    x, placed = as_rows(x)
    y = x.new_empty(x.shape)
    _launch(x, None, weight, y, eps, placed)
    return y


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual (..., D), weight (D) or None -> (normed, residual), residual overwritten."""
    x, total = x.contiguous(), residual.contiguous()
    y = torch.empty_like(x)
    _launch(x, total, weight, y, eps, (1, x.shape[-1], 0))
    if total is not residual:
        residual.copy_(total)
    return y, residual


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    y: torch.Tensor,
    eps: float,
    placed: tuple[int, int, int],
) -> None:
    size = x.shape[-1]
    if not x.numel():
        return
    num_rows = x.numel() // size
    rows, block, num_warps = tile(size)
    _rms_norm[(triton.cdiv(num_rows, rows),)](
        x,
        residual,
        None if weight is None else weight.contiguous(),
        y,
        num_rows,
        size,
        *placed,
        eps,
        HAS_RESIDUAL=residual is not None,
        HAS_WEIGHT=weight is not None,
        ROWS=rows,
        BLOCK=block,
        num_warps=num_warps,
    )


def _specialization(size: int, dtype: str, *, has_residual: bool) -> Specialization:
    rows, block, num_warps = tile(size)
    counts = ("num_rows", "size", "inner", "outer_stride", "inner_stride")
    pointers = ("x", "weight", "y", *(("residual",) if has_residual else ()))
    return Specialization(
        name=f"D{size}-{dtype}{'-residual' if has_residual else ''}",
        kernel=_rms_norm,
        types={**dict.fromkeys(pointers, f"*{dtype}"), **dict.fromkeys(counts, "i32"), "eps": "fp32"},
        constants={"HAS_RESIDUAL": has_residual, "HAS_WEIGHT": True, "ROWS": rows, "BLOCK": block}
        | ({} if has_residual else {"residual": None}),
        aligned=("size", "outer_stride", "inner_stride"),
        num_warps=num_warps,
    )


COMPILED = [
    _specialization(size, dtype, has_residual=has_residual)
    for size, dtype, has_residual in [
        (128, "bf16", False), (896, "bf16", True), (4096, "bf16", False), (4096, "bf16", True), (12288, "bf16", True),
        (18432, "fp16", True), (32768, "bf16", True), (4096, "fp32", True),
    ]
]  # fmt: skip
