"""RMSNorm, alone or after a residual add; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.rms_norm import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["add_rms_norm", "rms_norm"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x (..., D), weight (D) or None for ones -> (..., D)."""
    if weight is not None and (weight.dim() != 1 or weight.shape[0] != x.shape[-1]):
        raise ValueError(f"rms_norm takes a weight ({x.shape[-1]},), got {tuple(weight.shape)}")
    if use_triton(x):
        from kernels.rms_norm import kernel

        return (kernel if x.shape[-1] <= kernel.MAX_SIZE else reference).rms_norm(x, weight, eps)
    return (cpu if x.is_cpu else reference).rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual (..., D), weight (D) or None -> (rms_norm(x + residual), residual). Residual is overwritten with the sum."""
    if (weight is not None and weight.shape != x.shape[-1:]) or x.shape != residual.shape or x.dtype != residual.dtype:
        raise ValueError(
            f"add_rms_norm takes x and a residual of its shape and dtype and a weight ({x.shape[-1]},), got "
            f"{tuple(x.shape)} {x.dtype}, {tuple(residual.shape)} {residual.dtype}, "
            f"{None if weight is None else tuple(weight.shape)}"
        )
    if use_triton(x):
        from kernels.rms_norm import kernel

        return (kernel if x.shape[-1] <= kernel.MAX_SIZE else reference).add_rms_norm(x, residual, weight, eps)
    return (cpu if x.is_cpu else reference).add_rms_norm(x, residual, weight, eps)
