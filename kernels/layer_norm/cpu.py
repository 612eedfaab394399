"""Owns LayerNorm on the CPU: the native kernel while a row is in cache, torch's own where there is none."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels import native
from kernels.batch_invariance import rowwise


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x (..., D), weight (D), bias (D) -> (..., D)."""
    code = _native_code(x, weight, bias)
    if code is None:
        return rowwise(lambda rows: torch_layer_norm(rows, weight, bias, eps), x)
    return _native_norm(code, x.contiguous(), None, weight, bias, eps)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual (..., D) -> (normed, residual), residual overwritten."""
    code = _native_code(x, weight, bias)
    if code is None or not residual.is_contiguous():
        residual.add_(x)
        return layer_norm(residual, weight, bias, eps), residual
    return _native_norm(code, x.contiguous(), residual, weight, bias, eps), residual


def torch_layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """The same from torch; its kernel takes parameters of x's number format only."""
    if all(p is None or p.dtype == x.dtype for p in (weight, bias)):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    weight, bias = (None if p is None else p.float() for p in (weight, bias))
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)


def _native_code(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> int | None:
    """The kernel's name for x's number format, None where it cannot take these tensors."""
    for p in (weight, bias):
        if p is not None and (p.dtype != x.dtype or not p.is_contiguous()):
            return None
    return native.codes.get(x.dtype) if x.numel() else None


def _native_norm(
    code: int,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    size = x.shape[-1]
    y = torch.empty_like(x)
    native.lib.norm(
        0,
        torch.get_num_threads(),
        code,
        x.data_ptr(),
        size,
        1,
        0,
        0 if residual is None else residual.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        eps,
        y.data_ptr(),
        x.numel() // size,
        size,
    )
    return y
