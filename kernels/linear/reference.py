"""Defines linear in plain torch: y = x W^T + b, accumulated in float32."""

from __future__ import annotations

import torch


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (T, Din), weight (Dout, Din), bias (Dout) -> (T, Dout) in x.dtype, rounded once at the end."""
    y = x.float() @ weight.float().T  # (T, Dout)
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)
