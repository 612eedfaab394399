"""The layers of vision towers (Dosovitskiy et al., 2021): full attention over patches, with what towers change in it.

L patches of N pictures of one size; D is the tower's own hidden size here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from gpu_executor.models.towers.activations import ACTIVATIONS


@dataclasses.dataclass(frozen=True, slots=True)
class VitLayers:
    """Facts of a stack of layers. Norms stand before the branches, or behind them with `post_norm`."""

    hidden_size: int
    num_heads: int
    mlp_size: int
    num_layers: int
    act: str = "gelu"  # of activations.ACTIVATIONS
    norm: Literal["layer", "rms"] = "layer"
    eps: float = 1e-6
    qkv_bias: bool = True
    k_bias: bool = True  # of keys, where queries and values have one
    o_bias: bool = True
    qk_norm: bool = False  # queries and keys are normed, all heads together
    branch_scales: bool = False  # what a branch adds is multiplied by learned numbers (D)
    post_norm: bool = False

    def make_norm(self) -> nn.Module:
        """A norm over D."""
        kind = nn.LayerNorm if self.norm == "layer" else nn.RMSNorm
        return kind(self.hidden_size, eps=self.eps)


# Queries or keys (N, H, L, K) -> the same, turned by where they are.
Rotate = Callable[[torch.Tensor], torch.Tensor]


class VitAttention(nn.Module):
    """softmax(q k' / sqrt(K)) v over all patches of a picture."""

    def __init__(self, vit: VitLayers) -> None:
        super().__init__()
        self.num_heads, size = vit.num_heads, vit.hidden_size
        biases = (vit.qkv_bias, vit.qkv_bias and vit.k_bias, vit.qkv_bias)
        self.q, self.k, self.v = (nn.Linear(size, size, bias=bias) for bias in biases)
        self.q_norm, self.k_norm = (vit.make_norm() if vit.qk_norm else nn.Identity() for _ in range(2))
        self.o = nn.Linear(size, size, bias=vit.o_bias)

    def forward(self, x: torch.Tensor, rotate: Rotate | None = None, seen: torch.Tensor | None = None) -> torch.Tensor:
        """x (N, L, D) -> (N, L, D); only patches that are `seen` have a part in others.

        `seen` (N, L) bool says which; (N, L, L), which by which of the others.
        """
        parts = self.q_norm(self.q(x)), self.k_norm(self.k(x)), self.v(x)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)  # (N, H, L, K)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        if seen is not None:
            seen = seen[:, None, None] if seen.dim() == 2 else seen[:, None]  # (N, 1, 1 or L, L)
        mixed = F.scaled_dot_product_attention(q, k, v, seen)
        return self.o(mixed.transpose(1, 2).flatten(2))


class VitMlp(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, vit: VitLayers) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(vit.hidden_size, vit.mlp_size), nn.Linear(vit.mlp_size, vit.hidden_size)
        self.act = ACTIVATIONS[vit.act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, L, D) -> (N, L, D)."""
        return self.down(self.act(self.up(x)))


class VitLayer(nn.Module):
    """Attention, then the MLP, each added to the stream."""

    def __init__(self, vit: VitLayers) -> None:
        super().__init__()
        self.norm1, self.attn = vit.make_norm(), VitAttention(vit)
        self.norm2, self.mlp = vit.make_norm(), VitMlp(vit)
        self.post_norm = vit.post_norm
        scales = (nn.Parameter(torch.empty(vit.hidden_size)) if vit.branch_scales else None for _ in range(2))
        self.scale1, self.scale2 = scales

    def forward(self, x: torch.Tensor, rotate: Rotate | None = None, seen: torch.Tensor | None = None) -> torch.Tensor:
        """x (N, L, D) -> (N, L, D), the rest as attention takes it."""

        def attend(x: torch.Tensor) -> torch.Tensor:
            return self.attn(x, rotate, seen)

        for norm, branch, scale in ((self.norm1, attend, self.scale1), (self.norm2, self.mlp, self.scale2)):
            added = norm(branch(x)) if self.post_norm else branch(norm(x))
            x = x + (added if scale is None else added * scale)
        return x


class VitStack(nn.Module):
    """All layers, one after the other."""

    def __init__(self, vit: VitLayers) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VitLayer(vit) for _ in range(vit.num_layers))

    def forward(self, x: torch.Tensor, rotate: Rotate | None = None, seen: torch.Tensor | None = None) -> torch.Tensor:
        """x (N, L, D) -> (N, L, D), the rest as attention takes it."""
        for layer in self.layers:
            x = layer(x, rotate, seen)
        return x


def resized_positions(positions: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """A square table of positions (n * n, D), drawn bicubically to another grid: (rows * cols, D) in its own dtype."""
    side = round(len(positions) ** 0.5)
    if (rows, cols) == (side, side):
        return positions
    grid = positions.float().view(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, n, n)
    grid = F.interpolate(grid, size=(rows, cols), mode="bicubic", align_corners=False)
    return grid.flatten(2).squeeze(0).t().to(positions.dtype)
