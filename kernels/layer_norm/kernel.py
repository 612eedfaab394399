"""Owns LayerNorm on a GPU: y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, after a residual add where there is one.

A program holds whole rows in registers, so that each number is read once and the variance is that of centred numbers.
Float32 throughout, rounded once at the end. Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from kernels.rms_norm.kernel import MAX_SIZE, as_rows, tile
from kernels.triton_runtime import Specialization, tl, triton

__all__ = ["COMPILED", "MAX_SIZE", "add_layer_norm", "layer_norm"]


@triton.jit
def _layer_norm(
    x,
    residual,
    weight,
    bias,
    y,
    num_rows,
    size,
    inner,
    outer_stride,
    inner_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row i of x begins at i // inner * outer_stride + i % inner * inner_stride; residual and y (num_rows, size) are dense.

    Grid: one program for each ROWS rows.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    in_row = column < size
    inside = (row < num_rows) & in_row
    place = row.to(tl.int64) * size + column
    begin = (row // inner).to(tl.int64) * outer_stride + (row % inner) * inner_stride
    value = tl.load(x + begin + column, inside, 0.0)
    dtype = value.dtype
    value = value.to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + place, inside, 0.0).to(tl.float32)
        value = value.to(dtype)
        tl.store(residual + place, value, inside)
        value = value.to(tl.float32)
    mean = tl.sum(value, 1) / size
    centred = tl.where(in_row, value - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / size
    normed = centred * tl.rsqrt(variance + eps)[:, None]
    if HAS_WEIGHT:
        normed *= tl.load(weight + column, in_row, 0.0).to(tl.float32)
    if HAS_BIAS:
        normed += tl.load(bias + column, in_row, 0.0).to(tl.float32)
    tl.store(y + place, normed.to(dtype), inside)


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x (..., D) with D at most MAX_SIZE, weight (D) or None, bias (D) or None -> (..., D)."""
    x, placed = as_rows(x)
    return _launch(x, None, weight, bias, eps, placed)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual (..., D) -> (normed, residual), residual overwritten."""
    total = residual.contiguous()
    y = _launch(x.contiguous(), total, weight, bias, eps, (1, x.shape[-1], 0))
    if total is not residual:
        residual.copy_(total)
    return y, residual


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    placed: tuple[int, int, int],
) -> torch.Tensor:
    size = x.shape[-1]
    y = x.new_empty(x.shape)
    if not x.numel():
        return y
    num_rows = x.numel() // size
    rows, block, num_warps = tile(size)
    _layer_norm[(triton.cdiv(num_rows, rows),)](
        x,
        residual,
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        y,
        num_rows,
        size,
        *placed,
        eps,
        HAS_RESIDUAL=residual is not None,
        HAS_WEIGHT=weight is not None,
        HAS_BIAS=bias is not None,
        ROWS=rows,
        BLOCK=block,
        num_warps=num_warps,
    )
    return y


def _specialization(size: int, dtype: str, *, has_residual: bool) -> Specialization:
    rows, block, num_warps = tile(size)
    counts = ("num_rows", "size", "inner", "outer_stride", "inner_stride")
    pointers = ("x", "weight", "bias", "y", *(("residual",) if has_residual else ()))
    return Specialization(
        name=f"D{size}-{dtype}{'-residual' if has_residual else ''}",
        kernel=_layer_norm,
        types={**dict.fromkeys(pointers, f"*{dtype}"), **dict.fromkeys(counts, "i32"), "eps": "fp32"},
        constants={"HAS_RESIDUAL": has_residual, "HAS_WEIGHT": True, "HAS_BIAS": True, "ROWS": rows, "BLOCK": block}
        | ({} if has_residual else {"residual": None}),
        aligned=("size", "outer_stride", "inner_stride"),
        num_warps=num_warps,
    )


COMPILED = [
    _specialization(size, dtype, has_residual=has_residual)
    for size, dtype, has_residual in [
        (768, "bf16", True), (4096, "bf16", False), (12288, "fp16", True), (32768, "bf16", True), (768, "fp32", True),
    ]
]  # fmt: skip
