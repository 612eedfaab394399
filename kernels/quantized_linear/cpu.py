"""Owns the product with a quantized weight on the CPU: the definition, in the batch-invariant mode by linear's form of it."""

from __future__ import annotations

import torch

from kernels import batch_invariance
from kernels.linear import linear
from kernels.quantized_linear import reference
from kernels.quantized_linear.packed import PackedWeight


def quantized_linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """x (T, Din) -> (T, Dout)."""
    if not batch_invariance.is_on():
        return reference.quantized_linear(x, weight, bias)
    values = reference.dequantize(weight).contiguous()
    return linear(x.float(), values, None if bias is None else bias.float()).to(x.dtype)
