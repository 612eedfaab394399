"""Defines the product of each head with its matrix in plain torch, accumulated in float32."""

from __future__ import annotations

import torch


def head_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (T, H, Din), weight (H, Dout, Din) -> (T, H, Dout), rounded once at the end."""
    return torch.einsum("thi,hoi->tho", x.float(), weight.float()).to(x.dtype)
