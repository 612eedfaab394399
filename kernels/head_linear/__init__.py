"""Multiplies each head by a matrix of its own; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.head_linear import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["head_linear"]


def head_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (T, H, Din), weight (H, Dout, Din) -> (T, H, Dout) in x.dtype. For inference: no gradient."""
    if x.dim() != 3 or weight.dim() != 3 or x.shape[1:] != weight.shape[::2]:
        raise ValueError(
            f"head_linear takes x (T, H, Din) and weight (H, Dout, Din), got {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    if use_triton(x):
        from kernels.head_linear import kernel

        return kernel.head_linear(x, weight)
    return (cpu if x.is_cpu else reference).head_linear(x, weight)
