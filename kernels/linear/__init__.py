"""Multiplies by a weight matrix; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.linear import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["linear"]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (T, Din), weight (Dout, Din) row-major, bias (Dout) -> (T, Dout) in x.dtype. For inference: no gradient."""
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"linear takes x (T, Din) and weight (Dout, Din), got {tuple(x.shape)}, {tuple(weight.shape)}")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(f"linear takes a bias ({weight.shape[0]},), got {tuple(bias.shape)}")
    if use_triton(x):
        from kernels.linear import kernel

        return kernel.linear(x, weight, bias)
    if x.is_cpu:
        return cpu.linear(x, weight, bias)
    return reference.linear(x, weight, bias)
