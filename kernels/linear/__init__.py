"""Multiplies by a weight matrix; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.linear import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["linear"]


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, batch_invariant: bool = False
) -> torch.Tensor:
    """x (T, Din), weight (Dout, Din) row-major, bias (Dout) -> (T, Dout) in x.dtype. For inference: no gradient.

    With batch_invariant a row's bits are the same in a batch of any size, where the native or Triton kernels serve.
    """
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"linear takes x (T, Din) and weight (Dout, Din), got {tuple(x.shape)}, {tuple(weight.shape)}")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(f"linear takes a bias ({weight.shape[0]},), got {tuple(bias.shape)}")
    if use_triton(x):
        from kernels.linear import kernel

        return kernel.linear(x, weight, bias, batch_invariant=batch_invariant)
    if x.is_cpu:
        return cpu.linear(x, weight, bias, batch_invariant=batch_invariant)
    return reference.linear(x, weight, bias)
