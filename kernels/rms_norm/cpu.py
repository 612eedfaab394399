"""Owns RMSNorm on the CPU: the native kernel, one pass over each row; the reference serves where there is none."""

from __future__ import annotations

import torch

from kernels import native
from kernels.batch_invariance import rowwise
from kernels.rms_norm import reference


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x (..., D), weight (D) or None for ones -> (..., D)."""
    code = native.codes.get(x.dtype)
    if code is None or weight is None or weight.dtype != x.dtype or not weight.is_contiguous():
        return rowwise(lambda rows: reference.rms_norm(rows, weight, eps), x)
    size = weight.shape[0]
    if x.is_contiguous():
        rows, outer, inner, inner_stride = x.numel() // max(size, 1), size, 1, 0
        y = torch.empty_like(x)
    elif x.dim() == 3 and x.stride(2) == 1:  # heads of a slice
        rows, outer, inner, inner_stride = x.shape[0] * x.shape[1], x.stride(0), x.shape[1], x.stride(1)
        y = x.new_empty(x.shape)
    else:
        return rms_norm(x.contiguous(), weight, eps)
    if rows:
        native.lib.norm(
            1,
            torch.get_num_threads(),
            code,
            x.data_ptr(),
            outer,
            inner,
            inner_stride,
            0,
            weight.data_ptr(),
            0,
            eps,
            y.data_ptr(),
            rows,
            size,
        )
    return y


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual (..., D), weight (D) or None -> (normed, residual), residual overwritten."""
    code = native.codes.get(x.dtype)
    dense = x.is_contiguous() and residual.is_contiguous()
    if code is None or weight is None or weight.dtype != x.dtype or not (dense and weight.is_contiguous()):
        residual.add_(x)
        return rms_norm(residual, weight, eps), residual
    size = weight.shape[0]
    y = torch.empty_like(x)
    rows = x.numel() // max(size, 1)
    if rows:
        native.lib.norm(
            1,
            torch.get_num_threads(),
            code,
            x.data_ptr(),
            size,
            1,
            0,
            residual.data_ptr(),
            weight.data_ptr(),
            0,
            eps,
            y.data_ptr(),
            rows,
            size,
        )
    return y, residual
