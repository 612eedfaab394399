"""Defines LayerNorm and residual add + LayerNorm in plain torch: float32 throughout, rounded once at the end."""

from __future__ import annotations

import torch


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x (..., D), weight (D), bias (D) -> (..., D)."""
    x32 = x.float()
    centred = x32 - x32.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.float()
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual (..., D) -> (normed, residual); residual is overwritten with x + residual."""
    residual.add_(x)
    return layer_norm(residual, weight, bias, eps), residual
