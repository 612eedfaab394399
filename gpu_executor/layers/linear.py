"""Owns the linear layer. What changes a product (quantization, adapters, sharding) changes it here, for every model."""

from __future__ import annotations

import torch

from kernels.linear import linear
from kernels.quantized_linear import PackedWeight, quantized_linear


class Linear:
    """y = x W^T + b."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: torch.Tensor | PackedWeight, bias: torch.Tensor | None = None) -> None:
        """weight (out, in), plain or quantized; bias (out)."""
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, in) -> (T, out)."""
        if isinstance(self.weight, PackedWeight):
            return quantized_linear(x, self.weight, self.bias)
        return linear(x, self.weight, self.bias)
