"""Owns Pixtral's vision transformer (Agrawal et al., 2024): one picture of any size, positions that rotate in two axes."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from gpu_executor.models.towers.activations import ACTIVATIONS

_EPS = 1e-5


@dataclasses.dataclass(frozen=True, slots=True)
class PixtralVit:
    """Facts of the transformer. Of the pairs (i, i + K/2) of a head, the first half turn with a patch's row and the others
    with its column; their frequencies take turns."""

    patch_size: int
    hidden_size: int
    mlp_size: int
    num_heads: int
    num_layers: int
    act: str
    theta: float
    num_channels: int = 3

    @property
    def output_size(self) -> int:
        return self.hidden_size

    def build(self) -> PixtralVitModel:
        return PixtralVitModel(self)


class PixtralVitModel(nn.Module):
    """The transformer."""

    def __init__(self, facts: PixtralVit) -> None:
        super().__init__()
        self._facts = facts
        size = facts.patch_size
        self.patch = nn.Conv2d(facts.num_channels, facts.hidden_size, size, stride=size, bias=False)
        self.pre_norm = nn.RMSNorm(facts.hidden_size, _EPS)
        self.layers = nn.ModuleList(_Layer(facts) for _ in range(facts.num_layers))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (1, C, H, W), both a multiple of patch_size -> (1, patches, D), row by row."""
        patches = self.patch(pixels)  # (1, D, rows, columns)
        cos, sin = self._rotation(*patches.shape[2:], patches)
        x = self.pre_norm(patches.flatten(2).transpose(1, 2))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return x

    def _rotation(self, num_rows: int, num_columns: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (patches, K) in the dtype and on the device of `like`."""
        head_dim = self._facts.hidden_size // self._facts.num_heads
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=like.device) / head_dim
        frequencies = 1.0 / self._facts.theta**exponents
        rows = torch.arange(num_rows, device=like.device).repeat_interleave(num_columns)
        columns = torch.arange(num_columns, device=like.device).repeat(num_rows)
        angles = torch.cat([torch.outer(rows, frequencies[0::2]), torch.outer(columns, frequencies[1::2])], -1)
        angles = torch.cat([angles, angles], -1)  # (patches, K)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


class _Layer(nn.Module):
    def __init__(self, facts: PixtralVit) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(facts.hidden_size, _EPS)
        self.attn = _Attention(facts.hidden_size, facts.num_heads)
        self.norm2 = nn.RMSNorm(facts.hidden_size, _EPS)
        self.mlp = _GatedMlp(facts)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self._num_heads = num_heads
        self.q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x (1, patches, D) -> (1, patches, D)."""
        q, k, v = (
            projection(x).unflatten(-1, (self._num_heads, -1)).transpose(1, 2)  # (1, H, patches, K)
            for projection in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(_rotated(q, cos, sin), _rotated(k, cos, sin), v)
        return self.o(attended.transpose(1, 2).flatten(2))


class _GatedMlp(nn.Module):
    def __init__(self, facts: PixtralVit) -> None:
        super().__init__()
        self.act = ACTIVATIONS[facts.act]
        self.gate = nn.Linear(facts.hidden_size, facts.mlp_size, bias=False)
        self.up = nn.Linear(facts.hidden_size, facts.mlp_size, bias=False)
        self.down = nn.Linear(facts.mlp_size, facts.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (..., K) turned in pairs (i, i + K/2)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
