"""Owns adapters on the CPU: the definition, and in the batch-invariant mode the same by linear's own form of it."""

from __future__ import annotations

import torch

from kernels import batch_invariance
from kernels.linear import linear
from kernels.lora import reference


def add_lora(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: torch.Tensor, adapters: torch.Tensor
) -> None:
    """Shapes as in the public call."""
    if not batch_invariance.is_on():
        reference.add_lora(y, x, a, b, scaling, adapters)
        return
    for adapter in range(len(a)):
        rows = (adapters == adapter).nonzero()[:, 0]
        low = linear(x[rows].float(), a[adapter].float()).to(x.dtype)  # (n, r)
        delta = linear(low.float(), b[adapter].float()) * scaling[adapter].float()
        y[rows] = (y[rows].float() + delta).to(y.dtype)
