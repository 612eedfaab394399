"""Owns layers that towers share: attention of all places to each other, and the activations that configs name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU as CLIP (Radford et al., 2021) approximates it: x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU (Hendrycks and Gimpel, 2016) with the tanh approximation."""
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}

# (B, N, H, K) queries or keys -> the same, turned by their places.
Rotate = Callable[[torch.Tensor], torch.Tensor]


class SelfAttention(nn.Module):
    """Attention of every place of a sequence to all others, with queries, keys and values from one product."""

    def __init__(self, size: int, num_heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(size, 3 * size, bias=bias)
        self.proj = nn.Linear(size, size)

    def forward(self, x: torch.Tensor, rotate: Rotate | None = None) -> torch.Tensor:
        """x (B, N, D), sequences apart from each other -> (B, N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # (B, N, H, K) each
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, N, K)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, size: int, inner_size: int, act: str, *, out_size: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, inner_size, bias=bias)
        self.act = ACTIVATIONS[act]
        self.fc2 = nn.Linear(inner_size, out_size or size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class PreNormBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), with LayerNorm."""

    def __init__(
        self, size: int, num_heads: int, mlp_size: int, act: str, eps: float, *, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size, eps), nn.LayerNorm(size, eps)
        self.attn = SelfAttention(size, num_heads, bias=qkv_bias)
        self.mlp = Mlp(size, mlp_size, act)

    def forward(self, x: torch.Tensor, rotate: Rotate | None = None) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rotate)
        return x + self.mlp(self.norm2(x))
