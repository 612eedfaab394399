"""Owns the linear layer. What changes a product (quantization, adapters, sharding) changes it here, for every model."""

from __future__ import annotations

import torch

from kernels.linear import linear


class Linear:
    """y = x W^T + b."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """weight (out, in), bias (out)."""
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, in) -> (T, out)."""
        return linear(x, self.weight, self.bias)
