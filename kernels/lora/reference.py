"""Defines what adapters add to a projection, in plain torch: low-rank adaptation (Hu et al., 2021)."""

from __future__ import annotations

import torch


def add_lora(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: torch.Tensor, adapters: torch.Tensor
) -> None:
    """y (T, Dout) += scaling * (x A^T) B^T, each row with its adapter's; shapes as in the public call.

    x A^T is rounded to x's number format, as two linear layers would; the sum with y is float32 and rounded once.
    """
    for adapter in range(len(a)):
        rows = (adapters == adapter).nonzero()[:, 0]
        low = (x[rows].float() @ a[adapter].float().t()).to(x.dtype)  # (n, r)
        delta = (low.float() @ b[adapter].float().t()) * scaling[adapter].float()
        y[rows] = (y[rows].float() + delta).to(y.dtype)
