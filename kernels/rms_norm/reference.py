"""Defines RMSNorm and residual add + RMSNorm in plain torch, with the roundings of transformers' LlamaRMSNorm."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x (..., D), weight (D) or None for ones -> (..., D). Normalised in float32, rounded to x.dtype, then scaled."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    if weight is None:
        return normed.to(x.dtype)
    # The cast before the scale is what LlamaRMSNorm does; for bfloat16 the result differs without it.
    return (weight * normed.to(x.dtype)).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual (..., D), weight (D) -> (normed, residual); residual is overwritten with x + residual."""
    residual.add_(x)
    return rms_norm(residual, weight, eps), residual
