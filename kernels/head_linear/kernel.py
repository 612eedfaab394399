"""Owns the product of each head with its matrix on a GPU, by linear's kernel: no head is copied to lie by itself."""

from __future__ import annotations

import torch

from kernels import batch_invariance
from kernels.linear.kernel import Tile, linear_of_heads, specialization


def tile(num_tokens: int, dtype: torch.dtype) -> Tile:
    """By how many tokens share a head's matrix."""
    if dtype == torch.float32:  # without tensor cores
        return Tile(16, 64, 32, 4, 2)
    return Tile(16, 64, 128, 4, 4) if num_tokens <= 32 and not batch_invariance.is_on() else Tile(64, 64, 64, 4, 4)


def head_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x (T, H, Din), weight (H, Dout, Din) -> (T, H, Dout). Raises ValueError for mixed number formats."""
    return linear_of_heads(x, weight, None, tile(len(x), x.dtype))


COMPILED = [
    specialization(name, dtype, tile(num_tokens, of_dtype), has_bias=False, transposed=transposed)
    for name, dtype, of_dtype, num_tokens, transposed in [
        ("T1", "bf16", torch.bfloat16, 1, False),
        ("T1-transposed", "bf16", torch.bfloat16, 1, True),
        ("T64", "bf16", torch.bfloat16, 64, False),
        ("T64-transposed", "bf16", torch.bfloat16, 64, True),
        ("T64", "fp32", torch.float32, 64, False),
    ]
]
